"""Any file or folder that loads -> one .safetensors file or a diffusers folder, in another layout or dtype."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from ldm.checkpoint import load, single_file
from ldm.checkpoint.diffusers_save import save_folder
from ldm.checkpoint.fit import check_fit, stored
from ldm.checkpoint.load import is_untold, skeleton
from ldm.checkpoint.write import write


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
    """Write `out`, atomically: a .safetensors file with its config inside, which `load` reads without another, or a
    folder that diffusers loads.

    layout: names in memory ("ldm"), those of CompVis and Stability ("original"), or a folder ("diffusers"). Only the
    weights of the model are written: see `single_file.to_original` and `diffusers_save.save_folder` for what is not.
    dtype: None keeps each tensor's own.
    ask: where nothing tells whether an SD 2 network predicts eps or v, it is asked, as `load` does: a forward pass and
    the memory of the model in float32. False writes the config of eps.
    The rest as in `load`. Raises CheckpointError or ConfigError.
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
    named = model.state_dict() if layout == "ldm" else single_file.to_original(model)
    if layout == "original" and "scale_factor" in weights.tensors:
        named["scale_factor"] = weights.tensors[
            "scale_factor"
        ]  # of 2022's models: the original programs know it from nowhere else
    write(out, stored(named, path, dtype), {"config": json.dumps(tree)})
