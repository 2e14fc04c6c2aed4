"""The models before CLIP as diffusers folders: its pipelines load them, and compute what our model does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

import ldm
from ldm.checkpoint.configs import CONFIGS
from ldm.checkpoint.convert import convert
from ldm.config import build, load_config

PIPELINES = {"ddpm-cat-256": "DDPMPipeline", "ldm-ffhq": "LDMPipeline", "ldm-text2img": "LDMTextToImagePipeline"}
PROMPTS = ["A virus monster, playing guitar", ""]


def small(family: str) -> dict[str, Any]:
    tree = load_config(CONFIGS / f"{family}.yaml")
    params = tree["params"] | {"image_size": 128 if family == "ldm-text2img" else 64}
    unet = params["unet"]["params"]
    unet["block_out_channels"] = [32] * len(unet["block_out_channels"])
    unet["layers_per_block"] = 1
    if family == "ldm-ffhq":
        unet["head_channels"] = 16
    if family == "ldm-text2img":
        unet["context_dim"] = 16
        params["text_encoder"]["params"] = {"width": 16, "layers": 2, "heads": 2, "head_channels": 4}
    if family != "ddpm-cat-256":
        autoencoder = params["autoencoder"]["params"]
        autoencoder["block_out_channels"] = [32] * len(autoencoder["block_out_channels"])
        autoencoder["scaling_factor"] = 0.5
    if family == "ldm-ffhq":
        autoencoder["num_codes"] = 64
    return tree | {"params": params}


@pytest.mark.parametrize("family", PIPELINES)
@torch.no_grad()
def test_the_pipeline_computes_the_same_and_we_read_the_same_bits(
    family: str,
    filled: Callable[[nn.Module], nn.Module],
    relative_error: Callable[..., float],
    tmp_path: Path,
) -> None:
    tree, folder = small(family), tmp_path / "out"
    model: Any = filled(build(tree)).eval()
    ldm.save(model, tmp_path / "in.safetensors", config=tree)
    convert(tmp_path / "in.safetensors", folder, layout="diffusers")
    pipeline = getattr(diffusers, PIPELINES[family]).from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)

    torch.manual_seed(0)
    x, t, context = torch.randn(2, model.unet.in_channels, 32, 32), torch.tensor([3, 901]), model.condition(PROMPTS)
    told = () if context.context is None else (context.context,)
    assert relative_error(pipeline.unet(x, t, *told).sample, model.unet(x, t, *told)) < 1e-5
    betas = torch.as_tensor(pipeline.scheduler.betas, dtype=torch.float64)
    assert torch.allclose(betas, model.schedule.betas, rtol=1e-5)
    assert pipeline.scheduler.config.clip_sample == (family == "ddpm-cat-256")
    if family == "ldm-text2img":
        tokens = pipeline.tokenizer(PROMPTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        assert torch.equal(tokens.input_ids, model.text_encoder.tokenize(PROMPTS))
        assert relative_error(pipeline.bert(tokens.input_ids)[0], context.context) < 1e-5
    if family != "ddpm-cat-256":
        vae, image = pipeline.vqvae, torch.randn(1, 3, 32, 32)
        encoded, ours = vae.encode(image), model.encode(image)
        z = encoded.latents if family == "ldm-ffhq" else encoded.latent_dist.mode()
        assert relative_error(z * 0.5, ours if family == "ldm-ffhq" else ours.mean) < 1e-5
        assert relative_error(vae.decode(z).sample, model.decode(z * 0.5)) < 1e-5
    prompt = PROMPTS[:1] if family == "ldm-text2img" else []
    picture = pipeline(*prompt, num_inference_steps=2, output_type="np").images
    assert picture.shape == (1, model.image_size, model.image_size, 3) and picture.std() > 0

    loaded = ldm.load(folder, config=None if family == "ddpm-cat-256" else tree)
    a, b = loaded.state_dict(), model.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    for name in ("parameterization", "image_size"):
        assert getattr(loaded, name) == getattr(model, name)
    assert loaded.denoiser.clip_x0 == model.denoiser.clip_x0
