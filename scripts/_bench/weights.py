"""The same weights for both sides: a file of random numbers in a family's layout, and both sides' models of it."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _bench.harness import Bench

POOL = (1 << 22) - 3  # random numbers, used again and again; odd, so that no two rows of a matrix are the same
PROMPT = "a photograph of an astronaut riding a horse"


@dataclass(frozen=True)
class Checkpoint:
    """A file of weights, its config, and the folder of configs that diffusers wants beside it."""

    family: str
    file: Path
    tree: dict[str, Any]
    configs: Path

    @property
    def params(self) -> dict[str, Any]:
        params: dict[str, Any] = self.tree["params"]
        return params

    def ours(self, dtype: Any = None, device: str = "cpu", **options: Any) -> Any:
        """As a user loads it; dtype None is what `ldm.load` takes by itself."""
        import ldm

        return ldm.load(self.file, config=self.tree, dtype=dtype, device=device, **options)

    def ours_by_default(self, device: str = "cpu") -> Any:
        """In the precision that scripts/txt2img.py chooses without being told."""
        import torch
        from _draw import choose_device
        from _record import DTYPES

        with contextlib.redirect_stdout(io.StringIO()):
            device, precision = choose_device(argparse.Namespace(device=device, precision=None, backend="torch"))
        return hasten(self.ours(DTYPES[precision], device, autoencoder_dtype=torch.float32))

    def theirs(self, dtype: Any, device: str = "cpu", *parts: str) -> Any:
        """diffusers' modules with these weights, of those parts ("unet", "autoencoder", "text_encoder"; all)."""
        from _diffusers import Theirs, towers_of, unet_of, vae_of

        from ldm.checkpoint.fit import fill
        from ldm.checkpoint.load import skeleton

        found = skeleton(self.file, self.tree)
        fill(found.model, found.tensors, self.file, self.family, dtype)
        model = found.model.to(device)
        wanted = parts or ("unet", "autoencoder", "text_encoder")
        return Theirs(
            unet_of(self.params, model) if "unet" in wanted else None,
            vae_of(self.params, model) if "autoencoder" in wanted else None,
            [tower.to(device) for tower in towers_of(model)] if "text_encoder" in wanted else [],
        )

    def theirs_from_file(self, dtype: Any = None, **options: Any) -> Any:
        """diffusers' own way in: `from_single_file`. dtype None is what it takes by itself."""
        import diffusers

        kind = getattr(diffusers, json.loads((self.configs / "model_index.json").read_text())["_class_name"])
        given = {} if dtype is None else {"torch_dtype": dtype}
        pipe = kind.from_single_file(
            str(self.file), config=str(self.configs), local_files_only=True, **given, **options
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe


def hasten(model: Any, compiled: bool = False) -> Any:
    """What scripts/_draw.py does to a model that it has loaded."""
    import _speed

    _speed.hasten(argparse.Namespace(compile=compiled, precision=None), [model])
    return model


def checkpoint(bench: Bench, family: str, dtype: str = "fp16") -> Checkpoint:
    """Of the bench's folder, where it is made first if it is not there."""
    name = f"{family}-{dtype}{'-tiny' if bench.tiny else ''}"
    file, configs = bench.folder / f"{name}.safetensors", bench.folder / f"{name}-configs"
    if not (configs / "tree.json").is_file():
        bench.alone(synthesize, family, dtype, bench.tiny, file, configs)
    return Checkpoint(family, file, json.loads((configs / "tree.json").read_text()), configs)


def described(bench: Bench, file: Path) -> Checkpoint:
    """A file of the user's; what diffusers needs beside it, to ask no network, goes into the bench's folder."""
    digest = hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:8]
    configs = bench.folder / f"{file.stem}-{digest}-configs"
    if not (configs / "tree.json").is_file():
        bench.alone(describe, file, configs)
    return Checkpoint("its own", file, json.loads((configs / "tree.json").read_text()), configs)


def describe(file: Path, configs: Path) -> None:
    from ldm.checkpoint.load import skeleton

    found = skeleton(file)
    write_configs(found.model, found.tree, configs)


def write_configs(model: Any, tree: Mapping[str, Any], configs: Path) -> None:
    from ldm.checkpoint.diffusers_save import save_configs
    from ldm.checkpoint.read import CheckpointError
    from ldm.files import write_text

    configs.mkdir(exist_ok=True)
    with contextlib.suppress(CheckpointError):  # diffusers has no such model: its model_index.json will be missed
        save_configs(model, tree, configs)
    write_text(configs / "tree.json", json.dumps(tree))


def synthesize(family: str, dtype: str, tiny: bool, file: Path, configs: Path) -> None:
    """A file in the family's original layout; at full size, or with few channels."""
    import safetensors.torch
    import torch
    from _synthetic import shrink

    from ldm.checkpoint import single_file
    from ldm.checkpoint.configs import CONFIGS
    from ldm.checkpoint.meta import on_meta
    from ldm.config import build, load_config

    tree = load_config(CONFIGS / f"{family}.yaml")
    tree = shrink(tree) if tiny else tree
    with on_meta():
        model = build(tree, family)
        shapes = {name: tensor.shape for name, tensor in single_file.to_original(model).items()}
    pool = torch.randn(POOL, generator=torch.Generator().manual_seed(0))
    kind = {"fp16": torch.float16, "fp32": torch.float32}[dtype]
    safetensors.torch.save_file({name: weight(pool, name, shape).to(kind) for name, shape in shapes.items()}, file)
    write_configs(model, tree, configs)


def weight(pool: Any, name: str, shape: Sequence[int]) -> Any:
    """As `_synthetic.weight`, whose numbers are made for each tensor, of a pool: seconds instead of minutes."""
    count = math.prod(shape)
    values = pool.repeat(-(-count // len(pool)))[:count].reshape(tuple(shape))
    if len(shape) >= 2:
        embedding = "embedding" in name
        return values * ((0.5 if embedding else 1.0) / math.sqrt(shape[-1] if embedding else math.prod(shape[1:])))
    return values * 0.1 + (1 if name.endswith("weight") else 0)


# --- inputs ------------------------------------------------------------------------------------------------------


def unet_inputs(params: Mapping[str, Any], batch: int, side: int, dtype: Any, device: str = "cpu") -> dict[str, Any]:
    """What a UNet of this config is called with: x, t, context, and for SDXL y, the same for both sides."""
    import torch

    unet = params["unet"]["params"]
    made = torch.Generator().manual_seed(1)
    given: dict[str, Any] = {
        "x": torch.randn(batch, unet.get("in_channels", 4), side, side, generator=made),
        "context": torch.randn(batch, 77, unet["context_dim"], generator=made),
    }
    if "framing_embedding" in params:
        numbers, dim = (params["framing_embedding"]["params"][name] for name in ("numbers", "dim"))
        given["pooled"] = torch.randn(batch, unet["y_dim"] - dim * len(numbers), generator=made)
    given = {name: tensor.to(device, dtype) for name, tensor in given.items()}
    return given | {"t": torch.full((batch,), 501, device=device), "framing": (1024, 1024, 0, 0, 1024, 1024)}


def call_ours(model: Any, given: Mapping[str, Any]) -> Any:
    y = None
    if "pooled" in given:
        from ldm.models.framing import Framing

        y = model.framing_embedding(given["pooled"], Framing(*given["framing"])).to(given["x"].dtype)
    return lambda: model.unet(given["x"], given["t"], context=given["context"], y=y)


def call_theirs(unet: Any, given: Mapping[str, Any]) -> Any:
    import torch

    told: dict[str, Any] = {}
    if "pooled" in given:
        numbers = torch.tensor([list(given["framing"])] * len(given["x"]), dtype=given["x"].dtype)
        told = {
            "added_cond_kwargs": {"text_embeds": given["pooled"], "time_ids": numbers.to(given["x"].device)},
        }
    return lambda: unet(given["x"], given["t"], encoder_hidden_states=given["context"], **told).sample
