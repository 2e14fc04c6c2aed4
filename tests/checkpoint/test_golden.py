"""The UNets of the golden cases, from a file in the original layout with its YAML, compute what theirs computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

import ldm
from ldm.checkpoint import keys
from ldm.checkpoint.convert import convert
from ldm.checkpoint.original_config import autoencoder_params
from ldm.models.autoencoder import AutoencoderKL

CASES = [
    "sd-v1", "sd-v1-inpainting", "sd-v2", "sd-v2-depth", "sd-v2-unclip", "sd-x4-upscaler", "sdxl-base", "sdxl-refiner",
    "ldm-cin256", "ldm-ffhq", "ldm-lsun-churches", "ldm-uncond-new-order",
]  # fmt: skip
KL = {
    "embed_dim": 4,
    "ddconfig": {
        "double_z": True, "z_channels": 4, "resolution": 8, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1],
        "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
    },
}  # fmt: skip


@pytest.fixture
def published(golden: Callable[..., Any], tmp_path: Path) -> Callable[[str], tuple[Any, Path, Path]]:
    """A case as its authors would publish it: the UNet and a small autoencoder in one file, and a YAML."""

    def write(name: str) -> tuple[Any, Path, Path]:
        case = golden(f"unet-{name}")
        kl = AutoencoderKL(**autoencoder_params(KL))
        parts = {"model.diffusion_model.": case.weights, "first_stage_model.": keys.to_original(kl.state_dict(), kl)}
        tensors = {f"{prefix}{key}": t.contiguous() for prefix, part in parts.items() for key, t in part.items()}
        save_file(tensors, tmp_path / "model.safetensors")
        children = {
            "unet_config": {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": case.params},
            "first_stage_config": {"target": "ldm.models.autoencoder.AutoencoderKL", "params": KL},
            "cond_stage_config": "__is_unconditional__",
        }
        model = {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": {"image_size": 16} | children}
        OmegaConf.save({"model": model}, tmp_path / "model.yaml")
        return case, tmp_path / "model.safetensors", tmp_path / "model.yaml"

    return write


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_agrees_with_the_original(
    name: str,
    published: Callable[[str], tuple[Any, Path, Path]],
    relative_error: Callable[..., float],
    record_property: Callable[..., None],
) -> None:
    case, file, config = published(name)
    error = relative_error(ldm.load(file, config=config).unet(**case.inputs), case.outputs["out"])
    record_property("relative error", error)
    assert error <= 1e-5


def test_the_new_order_of_attention_goes_there_and_back(
    published: Callable[[str], tuple[Any, Path, Path]], tmp_path: Path
) -> None:
    """Its `use_new_attention_order` stays in the config that a converted file carries."""
    _, file, config = published("ldm-uncond-new-order")
    convert(file, tmp_path / "ours.safetensors", config=config)
    convert(tmp_path / "ours.safetensors", tmp_path / "back.safetensors", layout="original")
    convert(tmp_path / "back.safetensors", tmp_path / "again.safetensors")
    there, back = load_file(file), load_file(tmp_path / "back.safetensors")
    ours, again = load_file(tmp_path / "ours.safetensors"), load_file(tmp_path / "again.safetensors")
    assert back.keys() == there.keys() and all(torch.equal(back[key], there[key]) for key in back)
    assert again.keys() == ours.keys() and all(torch.equal(again[key], ours[key]) for key in again)
