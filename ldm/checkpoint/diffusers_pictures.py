"""The networks in a diffusers folder that look at pictures, such as unCLIP's tower: names and configs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoint import text_keys
from ldm.models.image_encoder import MEAN, STD, OpenCLIPImageEncoder
from ldm.models.latent_diffusion import LatentDiffusion

Node = dict[str, Any]

PARTS = ("image_encoder", "image_augmentation")  # in memory
STATISTICS = {"mean": "data_mean", "std": "data_std"}  # the folder's name: ours
NOT_WEIGHTS = "vision_model.embeddings.position_ids"


def to_internal(tensors: Mapping[str, Tensor], model: LatentDiffusion) -> dict[str, Tensor]:
    """Those of a folder, or with names in memory, -> the names of `model`.

    What a folder holds of a network that the model has not is left out, as it is of a single file.
    """
    parts = {part: {k.removeprefix(f"{part}."): v for k, v in tensors.items() if k.startswith(part)} for part in PARTS}
    tower, statistics = parts["image_encoder"], parts["image_augmentation"]
    if not any(name.startswith("tower.") for name in tower):  # of a folder
        if model.image_encoder is None or model.image_augmentation is None:
            return {}
        tower.pop(NOT_WEIGHTS, None)
        tower = {f"tower.{k}": v for k, v in text_keys.from_hugging_face(tower, text_keys.IMAGE).items()}
        statistics = {STATISTICS.get(name, name): tensor for name, tensor in statistics.items()}
        if not model.image_augmentation.measured:
            width = model.image_augmentation.width
            statistics = {"data_mean": torch.zeros(1, width), "data_std": torch.ones(1, width)} | statistics
    found = {"image_encoder": tower, "image_augmentation": statistics}
    return {f"{part}.{name}": tensor for part, named in found.items() for name, tensor in named.items()}


def to_diffusers(model: LatentDiffusion) -> dict[str, dict[str, Tensor]]:
    """The inverse: each component's tensors."""
    if model.image_encoder is None or model.image_augmentation is None:
        return {}
    tower = dict(model.image_encoder.tower.state_dict())
    statistics = model.image_augmentation.state_dict()
    return {
        "image_encoder": text_keys.to_hugging_face(tower, text_keys.IMAGE),
        "image_normalizer": {theirs: statistics[ours] for theirs, ours in STATISTICS.items()},
    }


def image_encoder_configs(encoder: OpenCLIPImageEncoder, width: int) -> dict[str, Node]:
    """Of unCLIP's components but the scheduler. width: of the embeddings that the normalizer whitens."""
    tower = encoder.tower
    block, side = tower.transformer.resblocks[0], encoder.image_size
    return {
        "image_encoder/config.json": {
            "architectures": ["CLIPVisionModelWithProjection"],
            "model_type": "clip_vision_model",
            "hidden_size": tower.conv1.out_channels,
            "intermediate_size": block.mlp.c_fc.out_features,
            "num_attention_heads": block.attn.num_heads,
            "num_hidden_layers": len(tower.transformer.resblocks),
            "image_size": side,
            "patch_size": tower.conv1.kernel_size[0],
            "projection_dim": encoder.projection_dim,
            "hidden_act": "quick_gelu" if type(block.mlp.gelu).__name__ == "QuickGELU" else "gelu",
            "layer_norm_eps": tower.ln_pre.eps,
        },
        "image_normalizer/config.json": {"_class_name": "StableUnCLIPImageNormalizer", "embedding_dim": width},
        "feature_extractor/preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": side},
            "crop_size": {"height": side, "width": side},
            "resample": 3,  # bicubic
            "image_mean": list(MEAN),
            "image_std": list(STD),
        },
    }
