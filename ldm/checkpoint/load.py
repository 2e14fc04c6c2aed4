"""Name or path -> a model with every weight in its place; and back to a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ldm.checkpoint import borrow, layouts, probe
from ldm.checkpoint.configs import PACKAGE, carried_config, find_config, shipped_configs, with_cut_tower
from ldm.checkpoint.detect import FAMILIES, signature
from ldm.checkpoint.diffusers_folder import read_any
from ldm.checkpoint.fit import check_fit, fill, stored
from ldm.checkpoint.meta import on_meta
from ldm.checkpoint.read import CheckpointError, Weights, read
from ldm.checkpoint.repeated import gathered
from ldm.checkpoint.strangers import lone_part, stranger
from ldm.checkpoint.write import write
from ldm.config import build
from ldm.models.latent_diffusion import LatentDiffusion

SHIPPED = ("scenes", "scenes-inpainting", "scenes-x4", "judge")  # whose weights are in ldm/assets

M = TypeVar("M", bound=nn.Module)


class Skeleton(NamedTuple):
    """A model on the meta device, and the tensors it is to be filled with."""

    model: LatentDiffusion
    tensors: dict[str, Tensor]
    tree: Mapping[str, Any]  # what it was built from
    source: str  # and what to call that in errors
    weights: Weights  # all that the file holds


def load(
    name_or_path: str | Path,
    *,
    config: str | Path | Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    autoencoder_dtype: torch.dtype | None = None,
    use_ema: bool | None = None,
    variant: str | None = None,
    parameterization: str | None = None,
    autoencoder: str | Path | None = None,
    text_encoder: str | Path | None = None,
    note: Callable[[str], object] | None = None,
) -> LatentDiffusion:
    """A model in eval mode: a shipped one by name ("scenes"), or the weights in a file or a diffusers folder.

    config: a YAML file, the name of one in configs/, or its tree; None takes the one stored in the file, or the one of
    the family that the weights are of.
    dtype: of the networks, whatever the file stores; None is float32. `autoencoder_dtype`: None is `dtype`.
    use_ema: the averaged copy of the UNet, or the plain one; None is the plain one if it is there.
    variant: "fp16" takes a folder's half-precision files; None the plain ones if they are there.
    parameterization: what the UNet predicts ("eps", "v", "x0"), where it is not what the config says. Where neither
    this nor a config or the file tells, and the family has both (SD 2), the network is asked: one forward pass.
    autoencoder, text_encoder: another file or folder to take this part from.
    note: called with a sentence about what was found out on the way, such as that.
    Raises CheckpointError or ConfigError, both ValueErrors. The file must hold every weight of the model and no other.
    """
    path = weights_path(name_or_path)
    others = {"autoencoder": autoencoder, "text_encoder": text_encoder}
    model, tensors, _, source, weights = skeleton(path, config, use_ema, variant, parameterization, others)
    dtype = torch.float32 if dtype is None else dtype
    child_dtypes = {} if autoencoder_dtype is None else {"autoencoder": autoencoder_dtype}
    fill(model, tensors, path, source, dtype, child_dtypes)
    model = model.to(device).eval()
    return model if config is not None or parameterization is not None else _asked(model, weights, path, note)


def _asked(
    model: LatentDiffusion, weights: Weights, path: Path, note: Callable[[str], object] | None
) -> LatentDiffusion:
    """The model by the config of its family that fits what its network predicts, if nothing in the file tells."""
    if not is_untold(weights):
        return model
    said, share = probe.parameterization(model)
    if note is not None:
        note(_answer(path, weights, said, share))
    if said == model.parameterization:
        return model
    tree, source = find_config(Weights(weights.tensors, {"parameterization": said}), path)
    with on_meta():
        other = build(tree, source, expected=LatentDiffusion)
    assert isinstance(other, LatentDiffusion)
    other.load_state_dict(model.state_dict(), assign=True)
    return other.eval()


def is_untold(weights: Weights) -> bool:
    """Whether nothing but the network itself tells what it predicts: its family has both eps and v."""
    found = signature(weights.tensors)
    many = found in FAMILIES and len(FAMILIES[found].configs) > 1
    return many and not {"config", "parameterization"} & set(weights.metadata)


def ask(path: Path, use_ema: bool | None = None, variant: str | None = None) -> tuple[str, str]:
    """ "eps" or "v", from a forward pass of an untold file's network in float32; and the sentence about it."""
    model, tensors, _, source, weights = skeleton(path, None, use_ema, variant)
    fill(model, tensors, path, source)
    said, share = probe.parameterization(model.eval())
    return said, _answer(path, weights, said, share)


def _answer(path: Path, weights: Weights, said: str, share: float) -> str:
    found = signature(weights.tensors)
    title = FAMILIES[found].title if found in FAMILIES else "unknown"
    return (
        f"{path}: nothing says what this {title} network predicts; asked, it answers as one of {said} does "
        f"({share:.2f} of the noise; `parameterization` overrules it)"
    )


def skeleton(
    path: Path,
    config: str | Path | Mapping[str, Any] | None = None,
    use_ema: bool | None = None,
    variant: str | None = None,
    parameterization: str | None = None,
    others: Mapping[str, str | Path | None] | None = None,
) -> Skeleton:
    """What `load` fills. others: where to take a part from, by the part's name; the rest as in `load`."""
    weights = _read_model(path, variant)
    named = {part: weights_path(other) for part, other in (others or {}).items() if other is not None}
    parts = {part: (other, _read(other, None)) for part, other in named.items()}
    tree, source = find_config(weights, path, config, parameterization)
    tree = with_cut_tower(tree, parts["text_encoder"][1] if "text_encoder" in parts else weights, source)
    with on_meta():
        model = build(tree, source, expected=LatentDiffusion)
    assert isinstance(model, LatentDiffusion)
    _check_family(model, weights.tensors, path, source)
    tensors = _renamed(weights, model, path, use_ema) | borrowed_parts(weights, path)
    for part, (other, contents) in parts.items():
        tensors = borrow.with_part(tensors, part, _renamed(contents, model, other), other)
    return Skeleton(model, tensors, tree, source, weights)


def outline(
    name_or_path: str | Path,
    *,
    config: str | Path | Mapping[str, Any] | None = None,
    variant: str | None = None,
    parameterization: str | None = None,
    text_encoder: str | Path | None = None,
) -> LatentDiffusion:
    """The model that `load` would fill, on the meta device: no weight is read. The name of a config will do, too."""
    path = weights_path(name_or_path)
    if config is None and not path.exists() and str(name_or_path) in shipped_configs():
        config = str(name_or_path)
    is_there = config is None or path.exists()
    weights = _read_model(path, variant, verify=False) if is_there else Weights({})
    tree, source = find_config(weights, path, config, parameterization)
    tower = weights if text_encoder is None else _read(weights_path(text_encoder), None, verify=False)
    tree = with_cut_tower(tree, tower, source)
    with on_meta():
        model = build(tree, source, expected=LatentDiffusion)
    assert isinstance(model, LatentDiffusion)
    return model.eval()


def load_part(name_or_path: str | Path, kind: type[M]) -> M:
    """A module saved alone, with its config, in eval mode and float32: the judge, an autoencoder, a text encoder."""
    path = weights_path(name_or_path)
    weights = read(path)
    tree, source = carried_config(weights, path)
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
    borrows: Mapping[str, str] | None = None,
) -> None:
    """Write a .safetensors file that `load` reads without a config, atomically. `dtype` None keeps each tensor's own.

    Non-finite weights are refused, and so is a config that does not build this very model.
    borrows: parts that are left out, to be taken from a shipped model: {"autoencoder": "scenes"}.
    """
    tensors = stored(model.state_dict(), Path(path), dtype)
    with on_meta():
        twin = build(config, "config", expected=type(model))
    check_fit(twin, tensors, Path(path), "the config to be stored with it")
    borrows = borrows or {}
    about = {**(metadata or {}), **borrow.note(tensors, borrows), "config": json.dumps(config)}
    borrowed_parts(Weights({}, about), Path(path))  # refuses a part that is not what it borrows
    own = {name: tensor for name, tensor in tensors.items() if name.partition(".")[0] not in borrows}
    write(path, gathered(own), about)


def weights_path(name_or_path: str | Path) -> Path:
    """The file of a shipped model's name, or the path itself."""
    return PACKAGE / "assets" / f"{name_or_path}.safetensors" if name_or_path in SHIPPED else Path(name_or_path)


def _read(path: Path, variant: str | None, *, verify: bool = True) -> Weights:
    """CheckpointError for what is neither a model nor a part of one."""
    weights = read_any(path, variant, verify=verify)
    if what := stranger(weights.tensors):
        raise CheckpointError(f"{path}: this is {what}")
    return Weights(layouts.unwrapped(weights.tensors), weights.metadata)


def _read_model(path: Path, variant: str | None, *, verify: bool = True) -> Weights:
    weights = _read(path, variant, verify=verify)
    if what := lone_part(weights.tensors):
        raise CheckpointError(f"{path}: this is {what}")
    return weights


def _renamed(weights: Weights, model: LatentDiffusion, path: Path, use_ema: bool | None = None) -> dict[str, Tensor]:
    try:
        return layouts.to_internal(weights.tensors, model, use_ema)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def borrowed_parts(weights: Weights, path: Path) -> dict[str, Tensor]:
    """The tensors of parts that the file takes from shipped models, which are named and unchanged since."""
    out: dict[str, Tensor] = {}
    try:
        borrowed = borrow.borrowed(weights.metadata)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    for part, (name, digest) in borrowed.items():
        if name not in SHIPPED:
            raise CheckpointError(
                f"{path}: takes its {part} from {name!r}, which is no shipped model; use a whole file"
            )
        tensors = read(weights_path(name)).tensors
        if borrow.digest(tensors, part) != digest:
            raise CheckpointError(
                f"{path}: takes its {part} from another {name} than the one here; use the ldm it fits"
            )
        out |= {key: tensor for key, tensor in tensors.items() if key.startswith(f"{part}.")}
    return out


def _check_family(model: LatentDiffusion, tensors: Mapping[str, Tensor], path: Path, source: str) -> None:
    """One sentence for a config of another family than the file's, instead of pages of shapes."""
    found, expected = signature(tensors), signature(model.state_dict())
    if found is None or expected is None or found == expected:
        return
    fitting = [name for name in FAMILIES[found].configs if name in shipped_configs()] if found in FAMILIES else []
    remedy = f"use the config {' or '.join(fitting)}" if fitting else "give the config this file was made for"
    raise CheckpointError(f"{path}: this file is {found}, but {source} is for {expected}; {remedy}")
