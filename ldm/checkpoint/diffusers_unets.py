"""A UNet's params -> the config.json of diffusers' class for it. The tensors have diffusers' names already.

Refused, as a CheckpointError, is what those classes cannot compute.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ldm.checkpoint.pixel_config import DOWN_BLOCKS, UNET, UP_BLOCKS
from ldm.checkpoint.read import CheckpointError
from ldm.models.encoders import NoText
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.modules.unet_plan import per_level

Node = dict[str, Any]


def unet(p: Mapping[str, Any], model: LatentDiffusion) -> Node:
    """p: the params, with what they leave out."""
    size = model.image_size // model.autoencoder.downsample_factor
    if isinstance(model.text_encoder, NoText):
        return _without_context(p, size)
    return _with_context(p, size) | _told(model)


def refuse(name: str, refused: Mapping[str, bool]) -> None:
    """CheckpointError for the first of these that is so, which the class of that name cannot have."""
    what = next((what for what, is_so in refused.items() if is_so), None)
    if what is not None:
        raise CheckpointError(f"diffusers' {name} has no {what}; use the layout ldm or original")


def _without_context(p: Mapping[str, Any], size: int) -> Node:
    """The inverse of `pixel_config.unet_params`."""
    widths = list(p["block_out_channels"])
    attends = per_level("attention_levels", p["attention_levels"], len(widths))
    attended = {width for width, attend in zip([*widths, widths[-1]], [*attends, True], strict=True) if attend}
    head_channels = p["head_channels"]
    if p["num_heads"] not in (None, 1) and len(attended) == 1:
        head_channels = attended.pop() // p["num_heads"]
    depths = per_level("transformer_depth", p["transformer_depth"], len(widths))
    refused = {
        "transformers": any(depths) or bool(p["mid_transformer_depth"]),
        "heads of several widths": head_channels is None and p["num_heads"] != 1,
        "scale_shift_norm": p["scale_shift_norm"],
        f"resample {p['resample']!r}": p["resample"] != "conv",
        "num_classes or y_dim": p["num_classes"] is not None or p["y_dim"] is not None,
    }
    refuse("UNet2DModel", refused)
    down = {attend: name for name, attend in DOWN_BLOCKS.items()}
    up = {attend: name for name, attend in UP_BLOCKS.items()}
    return {
        "_class_name": "UNet2DModel",
        "sample_size": size,
        "in_channels": p["in_channels"],
        "out_channels": p["out_channels"],
        "down_block_types": [down[attend] for attend in attends],
        "up_block_types": [up[attend] for attend in reversed(attends)],
        "attention_head_dim": head_channels,  # channels; None is one head
        **{theirs: p[ours] for theirs, (ours, _) in UNET.items()},
    }


def _with_context(p: Mapping[str, Any], size: int) -> Node:
    """Heads are counted, although diffusers calls their number `attention_head_dim`."""
    widths = list(p["block_out_channels"])
    attends = per_level("attention_levels", p["attention_levels"], len(widths))
    depths = per_level("transformer_depth", p["transformer_depth"], len(widths))
    mid = depths[-1] if p["mid_transformer_depth"] is None else p["mid_transformer_depth"]
    plain = any(depth == 0 for attend, depth in zip([*attends, True], [*depths, mid], strict=True) if attend)
    refused = {
        "attention without a context": p["context_dim"] is None or plain,
        "this mid_transformer_depth": attends[-1] and mid != depths[-1],
        f"resample {p['resample']!r}": p["resample"] != "conv",
        f"transformer_norm_eps {p['transformer_norm_eps']}": p["transformer_norm_eps"] != 1e-6,
    }
    refuse("UNet2DConditionModel", refused)
    heads = p["num_heads"] if p["head_channels"] is None else [width // p["head_channels"] for width in widths]
    downs = ["CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends]
    only = p["only_cross_attention"]
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": size,
        "in_channels": p["in_channels"],
        "out_channels": p["out_channels"],
        "block_out_channels": widths,
        "layers_per_block": p["layers_per_block"],
        "down_block_types": downs,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "up_block_types": [down.replace("Down", "Up") for down in reversed(downs)],
        "transformer_layers_per_block": [*depths[:-1], mid],
        "attention_head_dim": heads,
        "cross_attention_dim": p["context_dim"],
        "use_linear_projection": p["use_linear_projection"],
        "only_cross_attention": only if isinstance(only, bool) else list(only),
        "mid_block_only_cross_attention": p["mid_only_cross_attention"],
        "num_class_embeds": p["num_classes"],
        "resnet_time_scale_shift": "scale_shift" if p["scale_shift_norm"] else "default",
        "dropout": p["dropout"],
        "norm_num_groups": p["norm_num_groups"],
        "norm_eps": p["norm_eps"],
        "flip_sin_to_cos": p["flip_sin_to_cos"],
        "freq_shift": p["freq_shift"],
        "downsample_padding": p["downsample_padding"],
        "act_fn": "silu",
    }


def _told(model: LatentDiffusion) -> Node:
    """How a UNet takes a vector `y`: SDXL's makes it from the pooled text and numbers, unCLIP's is given it."""
    if model.unet.y_dim is None:
        return {}
    width = {"projection_class_embeddings_input_dim": model.unet.y_dim}
    if model.framing_embedding is None:
        return width | {"class_embed_type": "projection"}
    return width | {"addition_embed_type": "text_time", "addition_time_embed_dim": model.framing_embedding.dim}
