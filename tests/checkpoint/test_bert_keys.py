"""The text-to-image model of 2022 in miniature, through its original file and as a diffusers folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
from safetensors.torch import load_file, save_file

import ldm
from ldm.checkpoint import bert_keys, single_file
from ldm.checkpoint.configs import CONFIGS
from ldm.config import build, load_config
from ldm.models.bert import BertTextEncoder
from ldm.models.latent_diffusion import LatentDiffusion

BERT = {"width": 16, "layers": 3, "heads": 2, "head_channels": 4, "context_length": 12}


@pytest.fixture(scope="module")
def tree() -> dict[str, Any]:
    tree = load_config(CONFIGS / "ldm-text2img.yaml")
    params = tree["params"]
    params["unet"]["params"] |= {"block_out_channels": [32, 32, 64, 64], "context_dim": 16}
    params["autoencoder"]["params"]["block_out_channels"] = [32, 32, 32, 32]
    params["text_encoder"]["params"] = dict(BERT)
    return tree


@pytest.fixture(scope="module")
def model(tree: dict[str, Any]) -> LatentDiffusion:
    torch.manual_seed(0)
    return build(tree).eval()


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_original_file_there_and_back(model: LatentDiffusion, tree: dict[str, Any], tmp_path: Path) -> None:
    original = {name: tensor.contiguous() for name, tensor in single_file.to_original(model).items()}
    logits = {"cond_stage_model.transformer.to_logits.weight": torch.rand(30522, 16)}
    save_file(original | logits, tmp_path / "model.safetensors")
    loaded = ldm.load(tmp_path / "model.safetensors", config=tree)
    assert same(loaded, model)
    back = single_file.to_original(loaded)
    assert back.keys() == original.keys() and all(torch.equal(back[name], original[name]) for name in back)
    assert back["cond_stage_model.transformer.attn_layers.layers.5.1.net.0.0.weight"].shape == (64, 16)

    tokens = loaded.text_encoder.tokenize(["a virus monster"])
    assert torch.equal(loaded.condition(["a virus monster"]).context, model.text_encoder(tokens).states)


def test_diffusers_folder(model: LatentDiffusion, tree: dict[str, Any], tmp_path: Path) -> None:
    """CompVis/ldm-text2im-large-256: the tower is `bert`, the autoencoder, of kind KL, `vqvae`."""
    config = LDMBertConfig(
        max_position_embeddings=12, encoder_layers=3, encoder_ffn_dim=64, encoder_attention_heads=2, head_dim=4,
        d_model=16,
    )  # fmt: skip
    theirs = LDMBertModel(config).eval()
    theirs.save_pretrained(tmp_path / "bert")
    for part, module in {"unet": model.unet, "vqvae": model.autoencoder}.items():
        (tmp_path / part).mkdir()
        state = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
        save_file(state, tmp_path / part / "diffusion_pytorch_model.safetensors")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "LDMTextToImagePipeline"}))
    loaded = ldm.load(tmp_path, config=tree)
    assert same(loaded.unet, model.unet) and same(loaded.autoencoder, model.autoencoder)
    stored = load_file(tmp_path / "bert" / "model.safetensors")
    assert torch.equal(loaded.text_encoder.layers[1].attn.to_q.weight, stored["model.layers.1.self_attn.q_proj.weight"])

    elsewhere = ldm.load(tmp_path, config=tree, text_encoder=tmp_path / "bert")
    assert same(elsewhere, loaded)


def test_names_of_ours_and_unknown_ones_are_kept(filled: Callable[..., Any]) -> None:
    encoder = filled(BertTextEncoder(**BERT, vocab_size=40))
    state = encoder.state_dict()
    kept = bert_keys.to_memory(state | {"odd.weight": torch.zeros(1), "odd": torch.zeros(1)}, encoder)
    assert kept.keys() == state.keys() | {"odd.weight", "odd"}
    foreign = [name for name in bert_keys.to_original(encoder) if not name.startswith("transformer.")]
    assert foreign == []
