"""Constructor params of the original configs (CompVis, Stability) -> ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Say how to run, not what to compute, or repeat what other params say.
UNET_IGNORED = {
    "image_size",
    "use_checkpoint",
    "use_fp16",
    "use_bf16",
    "legacy",
    "use_spatial_transformer",
    "num_heads_upsample",
    "spatial_transformer_attn_type",
    "use_new_attention_order",  # belongs to the names: checkpoint.keys
}
UNET_USED = {
    "in_channels",
    "out_channels",
    "model_channels",
    "channel_mult",
    "num_res_blocks",
    "attention_resolutions",
    "transformer_depth",
    "transformer_depth_middle",
    "num_heads",
    "num_head_channels",
    "context_dim",
    "use_linear_in_transformer",
    "disable_self_attentions",
    "disable_middle_self_attn",
    "num_classes",
    "adm_in_channels",
    "conv_resample",
    "resblock_updown",
    "use_scale_shift_norm",
    "dropout",
}
DDCONFIG_IGNORED = {"double_z", "resolution", "attn_type", "attn_resolutions"}
DDCONFIG_USED = {"z_channels", "in_channels", "out_ch", "ch", "ch_mult", "num_res_blocks", "dropout"}


def unet_params(original: Mapping[str, Any]) -> dict[str, Any]:
    """Params of UNetModel -> params of UNet; ValueError for what no published model uses."""
    _refuse_unknown("UNetModel", original, UNET_USED | UNET_IGNORED)
    mult = list(original.get("channel_mult", (1, 2, 4, 8)))
    levels = range(len(mult))
    context_dim = _one("context_dim", original.get("context_dim"))
    no_self = original.get("disable_self_attentions")
    params = {
        "in_channels": original["in_channels"],
        "out_channels": original["out_channels"],
        "block_out_channels": [original["model_channels"] * m for m in mult],
        "layers_per_block": _one("num_res_blocks", original["num_res_blocks"]),
        "attention_levels": [2**i in original["attention_resolutions"] for i in levels],
        "transformer_depth": 0 if context_dim is None else original.get("transformer_depth", 1),
        "mid_transformer_depth": None if context_dim is None else original.get("transformer_depth_middle"),
        "context_dim": context_dim,
        "use_linear_projection": original.get("use_linear_in_transformer", False),
        "only_cross_attention": False if no_self is None else list(no_self),
        "mid_only_cross_attention": original.get("disable_middle_self_attn", False),
        "scale_shift_norm": original.get("use_scale_shift_norm", False),
        "dropout": original.get("dropout", 0.0),
        "resample": "conv" if original.get("conv_resample", True) else "pool",
    }
    if original.get("resblock_updown", False):
        params["resample"] = "resnet"
    head_channels = original.get("num_head_channels", -1)  # -1: the number is given
    params |= {"num_heads": original["num_heads"]} if head_channels == -1 else {"head_channels": head_channels}
    return params | _class_params(original)


def _class_params(original: Mapping[str, Any]) -> dict[str, Any]:
    num_classes = original.get("num_classes")
    if num_classes is None:
        return {}
    if num_classes == "sequential":
        return {"y_dim": original["adm_in_channels"]}
    if isinstance(num_classes, int):
        return {"num_classes": num_classes}
    raise ValueError(f'num_classes {num_classes!r} of UNetModel is not supported: only a number or "sequential" is')


def autoencoder_params(original: Mapping[str, Any]) -> dict[str, Any]:
    """Params of AutoencoderKL or VQModel (`ddconfig`, `embed_dim`, the latter's `n_embed`) -> ours, less the scale.

    The scale of the latents stands elsewhere in an original config: `scale_factor` of its LatentDiffusion.
    """
    ddconfig = original["ddconfig"]
    _refuse_unknown("ddconfig", ddconfig, DDCONFIG_USED | DDCONFIG_IGNORED)
    if original["embed_dim"] != ddconfig["z_channels"]:
        sizes = f"embed_dim {original['embed_dim']} and z_channels {ddconfig['z_channels']}"
        raise ValueError(f"{sizes} differ, which no published autoencoder does: make them equal")
    mult, resolutions = list(ddconfig["ch_mult"]), list(ddconfig["attn_resolutions"])
    params = {
        "in_channels": ddconfig["in_channels"],
        "out_channels": ddconfig["out_ch"],
        "latent_channels": original["embed_dim"],
        "block_out_channels": [ddconfig["ch"] * m for m in mult],
        "layers_per_block": ddconfig["num_res_blocks"],
        "attention_levels": [ddconfig["resolution"] // 2**i in resolutions for i in range(len(mult))],
        "dropout": ddconfig.get("dropout", 0.0),
    }
    return params | ({"num_codes": original["n_embed"]} if "n_embed" in original else {})


def _one(name: str, value: Any) -> Any:
    """A value, or a sequence that says the same for every level."""
    if not isinstance(value, Sequence):
        return value
    if len(set(value)) != 1:
        raise ValueError(f"{name} {list(value)} varies between levels, which is not supported: give one value")
    return value[0]


def _refuse_unknown(name: str, given: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(set(given) - known)
    if unknown:
        raise ValueError(f"{name} has params that are not known here: {', '.join(unknown)}")
