"""Any file or folder that loads -> one .safetensors file in another layout or dtype, with its config inside."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ldm.checkpoint import layouts, single_file
from ldm.checkpoint.diffusers_folder import read_any
from ldm.checkpoint.fit import check_finite, check_fit
from ldm.checkpoint.load import find_config
from ldm.checkpoint.meta import on_meta
from ldm.checkpoint.read import CheckpointError, Weights
from ldm.config import build
from ldm.files import atomic
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.models.text_encoder import END, OpenCLIPTextEncoder


def convert(
    path: str | Path,
    out: str | Path,
    *,
    layout: Literal["ldm", "original"] = "ldm",
    dtype: torch.dtype | None = None,
    config: str | Path | Mapping[str, Any] | None = None,
    use_ema: bool | None = None,
) -> None:
    """Write `out`, which `load` reads without a config, atomically. What is no weight of the model is left out.

    layout: names in memory ("ldm"), or those of CompVis and Stability, for models with one CLIP tower ("original").
    dtype: None keeps each tensor's own. config, use_ema: as in `load`. Raises CheckpointError or ConfigError.
    """
    from safetensors.torch import save as to_bytes

    path, out = Path(path), Path(out)
    weights = read_any(path)
    weights = Weights(layouts.unwrapped(weights.tensors), weights.metadata)
    tree, source = find_config(weights, path, config)
    with on_meta():
        model = build(tree, source, expected=LatentDiffusion)
    try:
        tensors = layouts.to_internal(weights.tensors, model, use_ema)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    check_fit(model, tensors, path, source)
    model.load_state_dict(tensors, assign=True)
    named = model.state_dict() if layout == "ldm" else _original(model, path)
    named = {k: v.detach().to(dtype if v.is_floating_point() else None).contiguous() for k, v in named.items()}
    check_finite(named, path)
    with atomic(out) as file:
        file.write(to_bytes(named, metadata={"config": json.dumps(tree)}))


def _original(model: LatentDiffusion, path: Path) -> dict[str, Tensor]:
    tower = model.text_encoder
    if not isinstance(tower, OpenCLIPTextEncoder) or tower.tower.text_projection is not None:
        raise CheckpointError(f"{path}: the original layout is written for models with one CLIP tower; use layout ldm")
    prefix = "transformer." if tower.pad_id == END else "model."  # SD 1's CLIP came from Hugging Face, which pads so
    return single_file.to_original(model, text_prefix=prefix)
