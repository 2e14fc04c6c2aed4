"""The depth estimator's tensors as MiDaS names them, in Stable Diffusion 2's depth file, and as Hugging Face does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ldm
from ldm.checkpoint import depth_keys, layouts, single_file
from ldm.checkpoint.configs import CONFIGS
from ldm.checkpoint.convert import convert
from ldm.checkpoint.fit import check_fit
from ldm.checkpoint.meta import on_meta
from ldm.checkpoint.read import CheckpointError
from ldm.checkpoint.report import report
from ldm.config import build, load_config
from ldm.models.depth import DPTDepthEstimator

UNUSED = tuple(f"depth_model.model.pretrained.model.{name}." for name in ("norm", "head"))  # of ViT's classifier
SAME = {  # MiDaS' name: that of transformers' DPTForDepthEstimation
    "pretrained.model.cls_token": "dpt.embeddings.cls_token",
    "pretrained.model.pos_embed": "dpt.embeddings.position_embeddings",
    "pretrained.model.patch_embed.proj.bias": "dpt.embeddings.projection.bias",
    "pretrained.model.patch_embed.backbone.stem.norm.bias": "dpt.embeddings.backbone.bit.embedder.norm.bias",
    "pretrained.model.patch_embed.backbone.stages.2.blocks.0.downsample.conv.weight": (
        "dpt.embeddings.backbone.bit.encoder.stages.2.layers.0.downsample.conv.weight"
    ),
    "pretrained.model.blocks.3.attn.proj.weight": "dpt.encoder.layer.3.attention.output.dense.weight",
    "pretrained.model.blocks.0.mlp.fc2.weight": "dpt.encoder.layer.0.output.dense.weight",
    "pretrained.model.blocks.0.norm2.weight": "dpt.encoder.layer.0.layernorm_after.weight",
    "pretrained.act_postprocess3.0.project.0.weight": "neck.reassemble_stage.readout_projects.2.0.weight",
    "pretrained.act_postprocess4.3.bias": "neck.reassemble_stage.layers.3.projection.bias",
    "pretrained.act_postprocess4.4.weight": "neck.reassemble_stage.layers.3.resize.weight",
    "scratch.layer1_rn.weight": "neck.convs.0.weight",
    "scratch.refinenet4.out_conv.bias": "neck.fusion_stage.layers.0.projection.bias",
    "scratch.refinenet1.resConfUnit2.conv1.weight": "neck.fusion_stage.layers.3.residual_layer2.convolution1.weight",
    "scratch.output_conv.4.weight": "head.head.4.weight",
}


@pytest.fixture
def small(miniature: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    return miniature("sd-v2-depth")


def test_every_tensor_of_the_published_network_has_its_place(layout: Callable[..., Any]) -> None:
    """At full size. Its names are those of timm's `vit_base_r50_s16_384` and of MiDaS' decoder."""
    entries = layout("sd-v2-depth") | layout("parts/midas-dpt-hybrid")
    tensors = {key: torch.tensor(float(i)).expand(shape) for i, (key, shape) in enumerate(entries.items())}
    with on_meta():
        model = build(load_config(CONFIGS / "sd-v2-depth.yaml"))
    inside = layouts.to_internal(layouts.unwrapped(tensors), model)
    check_fit(model, inside, Path("file"), "config")
    model.load_state_dict(inside, assign=True)
    back = {k: v for k, v in single_file.to_original(model).items() if k.startswith("depth_model.")}
    wanted = {k: v for k, v in tensors.items() if k.startswith("depth_model.") and not k.startswith(UNUSED)}
    assert back.keys() == wanted.keys() and len(back) == 364
    assert all(back[k].flatten()[0] == v.flatten()[0] and back[k].shape == v.shape for k, v in wanted.items())


def test_the_names_of_midas_and_of_hugging_face(filled: Callable[..., Any], small: dict[str, Any]) -> None:
    estimator = filled(DPTDepthEstimator(**small["params"]["depth_estimator"]["params"]))
    theirs, hugging_face = depth_keys.to_original(estimator), depth_keys.to_hugging_face(estimator)
    for name, other in SAME.items():
        assert torch.equal(theirs[name], hugging_face[other]), name
    q, k, v = (hugging_face[f"dpt.encoder.layer.1.attention.attention.{n}.bias"] for n in ("query", "key", "value"))
    assert torch.equal(theirs["pretrained.model.blocks.1.attn.qkv.bias"], torch.cat([q, k, v]))
    for back in (
        depth_keys.from_original(theirs, estimator),
        depth_keys.from_hugging_face(hugging_face, estimator),
    ):
        assert back.keys() == estimator.state_dict().keys()
        assert all(torch.equal(back[name], tensor) for name, tensor in estimator.state_dict().items())


@pytest.mark.long
def test_a_file_with_it_without_it_and_with_another_kind(
    filled: Callable[..., Any], small: dict[str, Any], tmp_path: Path
) -> None:
    model = filled(build(small))
    tensors = {k: v.clone() for k, v in single_file.to_original(model).items()}
    vit = "depth_model.model.pretrained.model."
    extra = {f"{vit}norm.weight": torch.ones(16), f"{vit}head.weight": torch.ones(9, 16)}
    save_file(tensors | extra, tmp_path / "whole.safetensors")
    loaded = ldm.load(tmp_path / "whole.safetensors", config=small)
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())
    assert "depth estimator" in report(tmp_path / "whole.safetensors")["holds"]

    plain = {k: v for k, v in tensors.items() if not k.startswith("depth_model.")}
    other = {f"{vit}patch_embed.proj.weight": torch.ones(16, 3, 16, 16), "depth_model.model.scratch.x": torch.ones(1)}
    for rest in ({}, other):  # nothing, or MiDaS of another kind
        save_file(plain | rest, tmp_path / "plain.safetensors")
        assert ldm.load(tmp_path / "plain.safetensors", config=small).depth_estimator is None
        assert "depth estimator" not in report(tmp_path / "plain.safetensors")["holds"]

    broken = {k: v for k, v in tensors.items() if ".refinenet2." not in k} | extra
    save_file(broken, tmp_path / "broken.safetensors")
    with pytest.raises(CheckpointError, match=r"10 missing \(depth_estimator.fusions.1"):
        ldm.load(tmp_path / "broken.safetensors", config=small)


def test_a_folder_holds_it_and_transformers_computes_the_same(
    filled: Callable[..., Any],
    small: dict[str, Any],
    tmp_path: Path,
    relative_error: Callable[..., float],
    no_grad: None,
) -> None:
    from transformers import DPTForDepthEstimation

    model = filled(build(small)).eval()
    ldm.save(model, tmp_path / "in.safetensors", config=small)
    convert(tmp_path / "in.safetensors", tmp_path / "folder", layout="diffusers")
    estimator = DPTForDepthEstimation.from_pretrained(tmp_path / "folder" / "depth_estimator").eval()
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    wanted = model.depth_estimator(pixels)
    assert wanted.std() > 0 and relative_error(estimator(pixels).predicted_depth, wanted) < 1e-5
    index = json.loads((tmp_path / "folder" / "model_index.json").read_text())
    assert index["depth_estimator"] == ["transformers", "DPTForDepthEstimation"]
    assert index["feature_extractor"] == ["transformers", "DPTImageProcessor"]
    back = ldm.load(tmp_path / "folder", config=small).state_dict()
    depth = {k: v for k, v in model.state_dict().items() if k.startswith("depth_estimator.")}
    assert all(torch.equal(back[k], v) for k, v in depth.items())
    assert load_file(tmp_path / "folder" / "depth_estimator" / "model.safetensors").keys() == (
        estimator.state_dict().keys()
    )
