"""A diffusers model in pixel space, UNet2DModel's config.json and its scheduler's -> our config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Node = dict[str, Any]

UNET = {  # theirs -> ours, and what they leave out
    "block_out_channels": ("block_out_channels", [224, 448, 672, 896]),
    "layers_per_block": ("layers_per_block", 2),
    "dropout": ("dropout", 0.0),
    "norm_num_groups": ("norm_num_groups", 32),
    "norm_eps": ("norm_eps", 1e-5),
    "flip_sin_to_cos": ("flip_sin_to_cos", True),
    "freq_shift": ("freq_shift", 0),
    "downsample_padding": ("downsample_padding", 1),
}
DOWN_BLOCKS = {"DownBlock2D": False, "AttnDownBlock2D": True}  # does it attend
UP_BLOCKS = {"UpBlock2D": False, "AttnUpBlock2D": True}
ONE_KIND = {  # what UNet2DModel can vary and no published DDPM does
    "in_channels": 3,
    "out_channels": 3,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "center_input_sample": False,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2D",
    "downsample_type": "conv",
    "upsample_type": "conv",
    "act_fn": "silu",
    "resnet_time_scale_shift": "default",
    "attn_norm_num_groups": None,
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
}
BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


def translate(unet: Mapping[str, Any], scheduler: Mapping[str, Any]) -> Node:
    """The model's config; ValueError for what is not supported. An empty scheduler is that of Ho et al. 2020."""
    parameterization = _choice("prediction_type", scheduler.get("prediction_type", "epsilon"), PREDICTIONS)
    params = {
        "parameterization": parameterization,
        "image_size": unet.get("sample_size") or 256,
        "guidance_scale": 1.0,
        "clip_x0": scheduler.get("clip_sample", True),
        "schedule": {"target": "NoiseSchedule", "params": _schedule(scheduler)},
        "unet": {"target": "UNet", "params": unet_params(unet)},
        "autoencoder": {"target": "IdentityAutoencoder"},
        "text_encoder": {"target": "NoText"},
    }
    return {"target": "LatentDiffusion", "params": params}


def unet_params(config: Mapping[str, Any]) -> Node:
    """Params of UNet2DModel -> params of UNet; ValueError for what is not supported."""
    for name, only in ONE_KIND.items():
        if config.get(name, only) != only:
            raise ValueError(f"{name} {config[name]!r} of UNet2DModel is not supported: only {only!r} is")
    down = [_choice("down_block_types", kind, DOWN_BLOCKS) for kind in config.get("down_block_types", [])]
    up = [_choice("up_block_types", kind, UP_BLOCKS) for kind in config.get("up_block_types", [])]
    if down != up[::-1]:
        raise ValueError(f"up_block_types of UNet2DModel {config['up_block_types']} are not those of the way down")
    head_channels = config.get("attention_head_dim", 8)  # None is one head
    params: Node = {"in_channels": 3, "out_channels": 3}
    params |= {ours: config.get(theirs, default) for theirs, (ours, default) in UNET.items()}
    params |= {"num_heads": 1} if head_channels is None else {"head_channels": head_channels}
    return params | {"attention_levels": down, "transformer_depth": 0}


def _schedule(scheduler: Mapping[str, Any]) -> Node:
    if scheduler.get("trained_betas") is not None:
        raise ValueError("trained_betas of the scheduler are not supported: only a beta_schedule is")
    return {
        "beta_schedule": _choice("beta_schedule", scheduler.get("beta_schedule", "linear"), BETAS),
        "beta_start": scheduler.get("beta_start", 1e-4),
        "beta_end": scheduler.get("beta_end", 0.02),
        "num_timesteps": scheduler.get("num_train_timesteps", 1000),
    }


def _choice(name: str, value: Any, known: Mapping[str, Any]) -> Any:
    if value not in known:
        raise ValueError(f"{name} {value!r} is not supported: only {', '.join(known)} are")
    return known[value]
