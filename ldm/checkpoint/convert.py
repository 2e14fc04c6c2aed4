"""Any file or folder that loads -> one .safetensors file or a diffusers folder, in another layout or dtype."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ldm.checkpoint import load, single_file
from ldm.checkpoint.diffusers_save import save_folder
from ldm.checkpoint.fit import cast, check_fit, stored
from ldm.checkpoint.load import is_untold, skeleton
from ldm.checkpoint.write import write
from ldm.models.latent_diffusion import LatentDiffusion


def convert(
    path: str | Path,
    out: str | Path,
    *,
    layout: Literal["ldm", "original", "diffusers"] = "ldm",
    dtype: torch.dtype | None = None,
    config: str | Path | Mapping[str, Any] | None = None,
    use_ema: bool | None = None,
    variant: str | None = None,
    parameterization: str | None = None,
    ask: bool = True,
    note: Callable[[str], object] | None = None,
) -> None:
    """Write `out`, which must not be there, atomically: a .safetensors file with its config inside, which `load` reads
    without another, or a folder that diffusers loads.

    layout: names in memory ("ldm"), those of CompVis and Stability ("original"), or a folder ("diffusers"). The
    weights of the model are written, and from an original file to "original" all else that is in it, unchanged: its
    other copy of the UNet too, unless `use_ema` says which one is wanted.
    dtype: None keeps each tensor's own.
    ask: where nothing tells whether an SD 2 network predicts eps or v, it is asked, as `load` does: a forward pass and
    the memory of the model in float32. False writes the config of eps.
    The rest as in `load`. Raises CheckpointError or ConfigError, and OSError where `out` cannot be made.
    """
    path, out = Path(path), Path(out)
    model, tensors, tree, source, weights = skeleton(path, config, use_ema, variant, parameterization)
    if ask and config is None and parameterization is None and is_untold(weights):
        said, sentence = load.ask(path, use_ema, variant)
        if note is not None:
            note(sentence)
        model, tensors, tree, source, weights = skeleton(path, None, use_ema, variant, said)
    check_fit(model, tensors, path, source)
    model.load_state_dict(tensors, assign=True)
    if layout == "diffusers":
        save_folder(model, tree, out, path, dtype)
        return
    if layout == "ldm":
        named, rest = model.state_dict(), {}
    else:
        named, rest = single_file.to_original(model), _rest(weights.tensors, model, use_ema)
    write(out, stored(named, path, dtype) | cast(rest, dtype), {"config": json.dumps(tree)}, exclusive=True)


def _rest(tensors: Mapping[str, Tensor], model: LatentDiffusion, use_ema: bool | None) -> dict[str, Tensor]:
    """What an original file holds beside the model's weights. They need not be finite: a mask is not."""
    if not single_file.is_original(tensors):
        return {}
    rest = single_file.left_over(tensors, model)
    is_chosen = use_ema is not None or not any(name.startswith(single_file.PREFIXES["unet"]) for name in tensors)
    return {name: tensor for name, tensor in rest.items() if not (is_chosen and name.startswith("model_ema."))}
