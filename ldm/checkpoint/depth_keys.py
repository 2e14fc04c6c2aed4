"""Names of the depth estimator's tensors: MiDaS' own (in original files) and Hugging Face's (in folders) <-> ours.

A table is of beginnings of names, (theirs, ours), and the first that fits counts; what follows is the same in both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ldm.models.depth import DPTDepthEstimator

Pairs = list[tuple[str, str]]

NOT_LOADED = (  # what lies behind the last layer that is read
    "pretrained.model.norm.",
    "pretrained.model.head.",
    "dpt.layernorm.",
)
PROOFS = (  # that a network is DPT-hybrid: other kinds of MiDaS have no such tensor
    "pretrained.model.patch_embed.backbone.stem.conv.weight",
    "dpt.embeddings.backbone.bit.embedder.convolution.weight",
    "backbone.stem.conv.weight",  # ours
)


def from_original(tensors: Mapping[str, Tensor], estimator: DPTDepthEstimator) -> dict[str, Tensor]:
    """Names as MiDaS has them -> ours. Unknown ones are kept, for a strict load to report."""
    pairs = list(_original(estimator))
    return {_renamed(k, pairs): v for k, v in tensors.items() if not k.startswith(NOT_LOADED)}


def to_original(estimator: DPTDepthEstimator) -> dict[str, Tensor]:
    """The inverse, without what is not loaded."""
    pairs = [(ours, theirs) for theirs, ours in _original(estimator)]
    return {_renamed(k, pairs): v for k, v in estimator.state_dict().items()}


def from_hugging_face(tensors: Mapping[str, Tensor], estimator: DPTDepthEstimator) -> dict[str, Tensor]:
    """Names of `DPTForDepthEstimation` -> ours: query, key and value become one matrix."""
    kept = {k: v for k, v in tensors.items() if not k.startswith(NOT_LOADED)}
    for key in list(kept):
        match = re.fullmatch(r"(.+)\.attention\.attention\.query\.(weight|bias)", key)
        parts = [f"{match[1]}.attention.attention.{n}.{match[2]}" for n in ("query", "key", "value")] if match else []
        if match and all(part in kept for part in parts):
            kept[f"{match[1]}.attn.qkv.{match[2]}"] = torch.cat([kept.pop(part) for part in parts])
    pairs = list(_hugging_face(estimator))
    return {_renamed(k, pairs): v for k, v in kept.items()}


def to_hugging_face(estimator: DPTDepthEstimator) -> dict[str, Tensor]:
    """The inverse. The last norm, which changes no depth, is there as one that does nothing."""
    pairs = [(ours, theirs) for theirs, ours in _hugging_face(estimator)]
    out: dict[str, Tensor] = {}
    for key, value in estimator.state_dict().items():
        name = _renamed(key, pairs)
        before, qkv, leaf = name.partition(".attn.qkv.")
        names = [f"{before}.attention.attention.{n}.{leaf}" for n in ("query", "key", "value")] if qkv else [name]
        out |= dict(zip(names, value.chunk(len(names)), strict=True))
    last = {"dpt.layernorm.weight": torch.ones(estimator.width), "dpt.layernorm.bias": torch.zeros(estimator.width)}
    return out | last


def _renamed(key: str, pairs: Pairs) -> str:
    return next((new + key[len(old) :] for old, new in pairs if key.startswith(old)), key)


def _original(estimator: DPTDepthEstimator) -> Iterator[tuple[str, str]]:
    """Names of timm's ViT, and of MiDaS' decoder, which counts from 1 and from the finest map."""
    vit = "pretrained.model."
    for i, depth in enumerate(estimator.stage_depths):
        for j in range(depth):
            yield f"{vit}patch_embed.backbone.stages.{i}.blocks.{j}.", f"backbone.stages.{i}.{j}."
    yield f"{vit}patch_embed.backbone.", "backbone."
    yield f"{vit}patch_embed.proj.", "patch_proj."
    for i in range(len(estimator.blocks)):
        yield f"{vit}blocks.{i}.mlp.fc", f"blocks.{i}.fc"
    for i in range(2):
        yield f"pretrained.act_postprocess{i + 3}.0.project.0.", f"readouts.{i}.project."
        yield f"pretrained.act_postprocess{i + 3}.3.", f"readouts.{i}.conv."
    yield "pretrained.act_postprocess4.4.", "downsample."
    for i in range(4):
        yield f"scratch.layer{i + 1}_rn.", f"inputs.{i}."
        for unit in (1, 2):
            yield f"scratch.refinenet{i + 1}.resConfUnit{unit}.", f"fusions.{i}.residual{unit}."
        yield f"scratch.refinenet{i + 1}.", f"fusions.{i}."
    yield "scratch.output_conv.", "head."
    yield vit, ""


def _hugging_face(estimator: DPTDepthEstimator) -> Iterator[tuple[str, str]]:
    """Their decoder begins with the coarsest map; `attn.qkv` is ours still."""
    bit, neck = "dpt.embeddings.backbone.bit.", "neck."
    for i, depth in enumerate(estimator.stage_depths):
        for j in range(depth):
            yield f"{bit}encoder.stages.{i}.layers.{j}.", f"backbone.stages.{i}.{j}."
    yield f"{bit}embedder.convolution.", "backbone.stem.conv."
    yield f"{bit}embedder.norm.", "backbone.stem.norm."
    yield "dpt.embeddings.projection.", "patch_proj."
    yield "dpt.embeddings.cls_token", "cls_token"
    yield "dpt.embeddings.position_embeddings", "pos_embed"
    for i in range(len(estimator.blocks)):
        theirs, ours = f"dpt.encoder.layer.{i}.", f"blocks.{i}."
        yield f"{theirs}layernorm_before.", f"{ours}norm1."
        yield f"{theirs}layernorm_after.", f"{ours}norm2."
        yield f"{theirs}attention.output.dense.", f"{ours}attn.proj."
        yield f"{theirs}intermediate.dense.", f"{ours}fc1."
        yield f"{theirs}output.dense.", f"{ours}fc2."
        yield theirs, ours
    for i in range(2):
        yield f"{neck}reassemble_stage.readout_projects.{i + 2}.0.", f"readouts.{i}.project."
        yield f"{neck}reassemble_stage.layers.{i + 2}.projection.", f"readouts.{i}.conv."
    yield f"{neck}reassemble_stage.layers.3.resize.", "downsample."
    for i in range(4):
        theirs, ours = f"{neck}fusion_stage.layers.{3 - i}.", f"fusions.{i}."
        yield f"{neck}convs.{i}.", f"inputs.{i}."
        yield f"{theirs}projection.", f"{ours}out_conv."
        for unit in (1, 2):
            for conv in (1, 2):
                yield f"{theirs}residual_layer{unit}.convolution{conv}.", f"{ours}residual{unit}.conv{conv}."
    yield "head.head.", "head."
