"""Families by the published lists of tensors, and the names a person would call them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ldm.checkpoint.configs import CONFIGS
from ldm.checkpoint.detect import FAMILIES, Signature, parts, signature
from ldm.checkpoint.meta import on_meta
from ldm.config import build, load_config

LAYOUTS = Path(__file__).parents[1] / "golden" / "layouts"
CONFIG = {
    "sd-v2-unclip-h-unet-vae-text": "sd-v2-unclip",
    "ldm-cin256-vq4": "ldm-cin256",
    "ldm-ffhq-vq4": "ldm-ffhq",
    "ldm-lsun-churches-kl8": "ldm-lsun-churches",
    "ldm-text2img-1p4b": "ldm-text2img",
}


def layout(name: str, prefix: str = "") -> dict[str, torch.Tensor]:
    entries = json.loads((LAYOUTS / f"{name}.json").read_text())
    return {f"{prefix}{key}": torch.empty(shape, device="meta") for key, (shape, _) in entries.items()}


def config_of(tensors: dict[str, torch.Tensor]) -> str:
    found = signature(tensors)
    assert found is not None
    return FAMILIES[found].configs[0]


@pytest.mark.parametrize("name", sorted(path.stem for path in LAYOUTS.glob("*.json")))
def test_single_files(name: str) -> None:
    tensors = layout(name)
    assert config_of(tensors) == CONFIG.get(name, name)
    assert list(parts(tensors).values())[:3] == [True, False, True]

    ema = {f"model_ema.{k[6:].replace('.', '')}": v for k, v in tensors.items() if k.startswith("model.diff")}
    assert config_of(ema) == CONFIG.get(name, name)
    assert parts(ema) == {"unet": False, "unet (EMA)": True, "autoencoder": False, "text encoder": False}


@pytest.mark.parametrize("name", sorted(path.stem for path in LAYOUTS.glob("diffusers/*.unet.json")))
def test_diffusers_components(name: str) -> None:
    assert config_of(layout(f"diffusers/{name}", "unet.")) == name.removesuffix(".unet")


@pytest.mark.parametrize("config", sorted({name for f in FAMILIES.values() for name in f.configs}))
def test_a_config_builds_the_family_it_stands_for(config: str) -> None:
    path = CONFIGS / f"{config}.yaml"
    with on_meta():
        model = build(load_config(path))
    found = signature(model.state_dict())
    assert found is not None and config in FAMILIES[found].configs


def test_words() -> None:
    assert str(Signature(320, 9, 1024)) == "SD 2.x inpainting (context 1024, 9 input channels)"
    assert str(Signature(8, 4)) == "a UNet of no published family (4 input channels, width 8)"
    assert signature(layout("diffusers/vae", "autoencoder.")) is None
    assert signature({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(3)}) is None
