"""Name or path -> a model with every weight in its place; and back to a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ldm.checkpoint import single_file
from ldm.checkpoint.meta import on_meta
from ldm.checkpoint.read import CheckpointError, Weights, read
from ldm.config import ConfigError, build, load_config, parse_config
from ldm.files import atomic
from ldm.models.latent_diffusion import LatentDiffusion

PACKAGE = Path(__file__).parents[1]
CONFIGS = next(
    (folder for folder in (PACKAGE / "configs", PACKAGE.parent / "configs") if folder.is_dir()), PACKAGE / "configs"
)
SHIPPED = ("scenes", "judge")  # whose weights are in ldm/assets
COMPONENTS = ("unet", "autoencoder", "text_encoder")

M = TypeVar("M", bound=nn.Module)


def load(
    name_or_path: str | Path,
    *,
    config: str | Path | Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    autoencoder_dtype: torch.dtype | None = None,
) -> LatentDiffusion:
    """A model in eval mode: a shipped one by name ("scenes"), or the weights in a file.

    config: a YAML file, the name of one in configs/, or its tree; None takes the one stored in the file.
    dtype: of the networks, whatever the file stores; None is float32. `autoencoder_dtype`: None is `dtype`.
    Raises CheckpointError or ConfigError, both ValueErrors. The file must hold every weight of the model and no other.
    """
    path = weights_path(name_or_path)
    weights = read(path)
    tree, source = _carried_config(weights, path) if config is None else _config_tree(config)
    with on_meta():
        model = build(tree, source, expected=LatentDiffusion)
    assert isinstance(model, LatentDiffusion)
    tensors = weights.tensors
    if single_file.is_original(tensors):
        tensors = single_file.to_internal(tensors, model)
    _check_family(model, tensors, path, source)
    dtype = torch.float32 if dtype is None else dtype
    child_dtypes = {} if autoencoder_dtype is None else {"autoencoder": autoencoder_dtype}
    fill(model, tensors, path, source, dtype, child_dtypes)
    return model.to(device).eval()


def load_part(name_or_path: str | Path, kind: type[M]) -> M:
    """A module saved alone, with its config, in eval mode and float32: the judge, an autoencoder, a text encoder."""
    path = weights_path(name_or_path)
    weights = read(path)
    tree, source = _carried_config(weights, path)
    with on_meta():
        part = build(tree, source, expected=kind)
    assert isinstance(part, kind)
    fill(part, weights.tensors, path, source)
    return part.eval()


def save(
    model: nn.Module,
    path: str | Path,
    *,
    config: Mapping[str, Any],
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a .safetensors file that `load` reads without a config, atomically. `dtype` None keeps each tensor's own.

    Non-finite weights are refused, and so is a config that does not build this very model.
    """
    from safetensors.torch import save as to_bytes

    tensors = {
        k: v.detach().to("cpu", dtype if v.is_floating_point() else None).contiguous()
        for k, v in model.state_dict().items()
    }
    _check_finite(tensors, Path(path))
    with on_meta():
        twin = build(config, "config", expected=type(model))
    _check_fit(twin, tensors, Path(path), "the config to be stored with it")
    with atomic(Path(path)) as file:
        file.write(to_bytes(tensors, metadata={**(metadata or {}), "config": json.dumps(config)}))


def fill(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    path: Path,
    source: str,
    dtype: torch.dtype = torch.float32,
    child_dtypes: Mapping[str, torch.dtype] | None = None,
) -> None:
    """Give a model its weights: all of them, of the right shapes, finite, and nothing left over.

    dtype: what they become; child_dtypes: exceptions, by the name of a child module.
    """
    _check_fit(model, tensors, path, source)
    dtypes = {name: (child_dtypes or {}).get(name.partition(".")[0], dtype) for name in tensors}
    cast = {name: value.to(dtypes[name]) if value.is_floating_point() else value for name, value in tensors.items()}
    _check_finite(cast, path)
    model.load_state_dict(cast, assign=True)
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


def weights_path(name_or_path: str | Path) -> Path:
    """The file of a shipped model's name, or the path itself."""
    return PACKAGE / "assets" / f"{name_or_path}.safetensors" if name_or_path in SHIPPED else Path(name_or_path)


# --- configs -----------------------------------------------------------------------------------------------------


def _carried_config(weights: Weights, path: Path) -> tuple[Mapping[str, Any], str]:
    """The tree in the file's metadata, and what to call it in errors."""
    if "config" not in weights.metadata:
        raise ConfigError(f"{path} carries no config; give one: {_choices()}")
    source = f"the config in {path.name}"
    return parse_config(weights.metadata["config"], source), source


def _config_tree(config: str | Path | Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """The tree of a given config, and what to call it in errors."""
    if isinstance(config, Mapping):
        return config, "the given config"
    if str(config) in _shipped_configs():
        return load_config(CONFIGS / f"{config}.yaml"), f"configs/{config}.yaml"
    if not Path(config).is_file():
        raise ConfigError(f"no config {str(config)!r}; give {_choices()}")
    return load_config(config), str(config)


def _choices() -> str:
    return f"{', '.join(_shipped_configs())}, or the path of a YAML file"


def _shipped_configs() -> list[str]:
    return sorted(file.stem for file in CONFIGS.glob("*.yaml"))


# --- what a file must be -----------------------------------------------------------------------------------------


def _family(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The two numbers that tell the families apart, from the UNet's tensors under their names in memory."""
    context = next(
        (v.shape[1] for k, v in tensors.items() if k.startswith("unet.") and k.endswith("attn2.to_k.weight")), 0
    )
    conv_in = tensors.get("unet.conv_in.weight")
    return {"context width": context} | ({} if conv_in is None else {"input channels": conv_in.shape[1]})


def _check_family(model: LatentDiffusion, tensors: Mapping[str, Tensor], path: Path, source: str) -> None:
    found, expected = _family(tensors), _family(model.state_dict())
    if "input channels" not in found or found == expected:
        return
    fitting = []
    for name in _shipped_configs():
        params = load_config(CONFIGS / f"{name}.yaml")["params"]["unet"]["params"]
        if found == {"context width": params.get("context_dim", 0), "input channels": params.get("in_channels", 4)}:
            fitting.append(name)
    words = [" and ".join(f"{kind} {number}" for kind, number in family.items()) for family in (found, expected)]
    remedy = f"use the config {' or '.join(fitting)}" if fitting else "give the config this file was made for"
    raise CheckpointError(f"{path}: the UNet in this file has {words[0]}, but {source} expects {words[1]}; {remedy}")


def _check_fit(model: nn.Module, tensors: Mapping[str, Tensor], path: Path, source: str) -> None:
    """One CheckpointError that counts every misfit and shows the first five of each kind."""
    expected = model.state_dict()
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected]
    reshaped = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if name in tensors and tensors[name].shape != expected[name].shape
    ]
    for part in COMPONENTS:
        names = [name for name in expected if name.startswith(f"{part}.")]
        if names and not any(name in tensors for name in names):
            raise CheckpointError(
                f"{path}: holds no {part.replace('_', ' ')}, which {source} describes; use a complete file"
            )
    faults = [
        f"{len(names)} {words} ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})"
        for names, words in ((missing, "missing"), (unexpected, "unexpected"), (reshaped, "of another shape"))
        if names
    ]
    if faults:
        raise CheckpointError(
            f"{path}: does not fit {source}, tensors are {', '.join(faults)}; use the config this file was made for"
        )


def _check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    for name, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise CheckpointError(
                f"{path}: {name} holds NaN or infinity as {value.dtype}; use an intact file, or a wider dtype"
            )
