"""The networks in a diffusers folder that look at pictures, such as unCLIP's tower: names and configs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoint import depth_keys, text_keys
from ldm.models.depth import LAYER_NORM_EPS, STEP, DPTDepthEstimator
from ldm.models.image_encoder import MEAN, STD, OpenCLIPImageEncoder
from ldm.models.latent_diffusion import LatentDiffusion

Node = dict[str, Any]
Tensors = dict[str, Tensor]

PARTS = ("image_encoder", "image_augmentation", "depth_estimator")  # in memory
STATISTICS = {"mean": "data_mean", "std": "data_std"}  # the folder's name: ours
NOT_WEIGHTS = "vision_model.embeddings.position_ids"


def to_internal(tensors: Mapping[str, Tensor], model: LatentDiffusion) -> dict[str, Tensor]:
    """Those of a folder, or with names in memory, -> the names of `model`.

    What a folder holds of a network that the model has not is left out, as it is of a single file.
    """
    starts = [f"{part}." for part in PARTS]
    named = [{k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)} for start in starts]
    tower, statistics, depth = named
    if not any(name.startswith("tower.") for name in tower):  # of a folder
        tower, statistics = _unclip(tower, statistics, model)
    if any(name.startswith("dpt.") for name in depth):
        depth = {} if model.depth_estimator is None else depth_keys.from_hugging_face(depth, model.depth_estimator)
    found = zip(starts, (tower, statistics, depth), strict=True)
    return {f"{start}{name}": tensor for start, part in found for name, tensor in part.items()}


def _unclip(tower: Tensors, statistics: Tensors, model: LatentDiffusion) -> tuple[Tensors, Tensors]:
    """Statistics that a family did not measure are 0 and 1, whether or not they are there."""
    if model.image_encoder is None or model.image_augmentation is None:
        return {}, {}
    tower = {name: tensor for name, tensor in tower.items() if name != NOT_WEIGHTS}
    tower = {f"tower.{k}": v for k, v in text_keys.from_hugging_face(tower, text_keys.IMAGE).items()}
    statistics = {STATISTICS.get(name, name): tensor for name, tensor in statistics.items()}
    if not model.image_augmentation.measured:
        width = model.image_augmentation.width
        statistics = {"data_mean": torch.zeros(1, width), "data_std": torch.ones(1, width)} | statistics
    return tower, statistics


def to_diffusers(model: LatentDiffusion) -> dict[str, dict[str, Tensor]]:
    """The inverse: each component's tensors."""
    parts = {}
    if model.depth_estimator is not None:
        parts["depth_estimator"] = depth_keys.to_hugging_face(model.depth_estimator)
    if model.image_encoder is None or model.image_augmentation is None:
        return parts
    tower = dict(model.image_encoder.tower.state_dict())
    statistics = model.image_augmentation.state_dict()
    return parts | {
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


def depth_configs(estimator: DPTDepthEstimator) -> dict[str, Node]:
    """Of the depth estimator and of what prepares its pictures."""
    channels = [estimator.stem_channels * times for times in (4, 8, 16)]
    side = 16 * estimator.positions
    return {
        "depth_estimator/config.json": {
            "architectures": ["DPTForDepthEstimation"],
            "model_type": "dpt",
            "is_hybrid": True,
            "hidden_size": estimator.width,
            "intermediate_size": 4 * estimator.width,
            "num_attention_heads": estimator.heads,
            "num_hidden_layers": len(estimator.blocks),
            "layer_norm_eps": LAYER_NORM_EPS,
            "image_size": side,
            "patch_size": 16,
            "backbone_featmap_shape": [1, channels[-1], estimator.positions, estimator.positions],
            "backbone_out_indices": [0, 1, *estimator.hooks],
            "neck_hidden_sizes": [*channels[:2], estimator.width, estimator.width],
            "reassemble_factors": [1, 1, 1, 0.5],
            "fusion_hidden_size": estimator.features,
            "backbone_config": {
                "model_type": "bit",
                "global_padding": "same",
                "layer_type": "bottleneck",
                "embedding_dynamic_padding": True,
                "embedding_size": estimator.stem_channels,
                "hidden_sizes": channels,
                "depths": list(estimator.stage_depths),
                "num_groups": estimator.norm_num_groups,
                "out_features": ["stage1", "stage2", "stage3"],
            },
        },
        "feature_extractor/preprocessor_config.json": {
            "image_processor_type": "DPTImageProcessor",
            "size": {"height": side, "width": side},
            "ensure_multiple_of": STEP,
            "resample": 3,  # bicubic
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        },
    }
