"""Foreign tensors -> the names of a model, whichever layout they have: single file, part of one, folder, or ours."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ldm.checkpoint import diffusers_folder, single_file
from ldm.models.latent_diffusion import LatentDiffusion

ANCHORS = {  # a tensor that each part has -> the part's prefix in a whole file
    "input_blocks.0.0.weight": "model.diffusion_model.",
    "encoder.down.0.block.0.norm1.weight": "first_stage_model.",
    "down_blocks.0.resnets.0.norm1.weight": "unet.",
    "encoder.down_blocks.0.resnets.0.norm1.weight": "autoencoder.",
    "text_model.embeddings.token_embedding.weight": "text_encoder.",
}


def unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As in a whole file: what some program put before every name is removed, and a lone part gets its prefix."""
    for anchor, prefix in ANCHORS.items():
        if anchor in tensors:
            return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
        ending = f".{prefix}{anchor}"
        extra = next((name.removesuffix(ending) for name in tensors if name.endswith(ending)), "")
        if extra:
            return {name.removeprefix(f"{extra}."): tensor for name, tensor in tensors.items()}
    return dict(tensors)


def to_internal(
    tensors: Mapping[str, Tensor], model: LatentDiffusion, use_ema: bool | None = None
) -> dict[str, Tensor]:
    """Unwrapped tensors -> the names of `model`. Unknown names are kept, for a strict load to report.

    use_ema: as in `load`; ValueError if the wanted copy of the UNet is not there.
    """
    if single_file.is_original(tensors):
        return single_file.to_internal(single_file.with_one_unet(tensors, model, use_ema), model)
    if use_ema:
        raise ValueError("holds no EMA weights; leave use_ema out")
    return diffusers_folder.to_internal(tensors, model)
