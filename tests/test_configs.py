"""The configs of the published families, on the meta device: they have the tensors and the numbers of the originals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.checkpoint import keys, text_keys
from ldm.checkpoint.configs import CONFIGS
from ldm.checkpoint.meta import on_meta
from ldm.config import build, load_config
from ldm.models.latent_diffusion import LatentDiffusion

COND, SGM = "cond_stage_model.", "conditioner.embedders."
ONE = {"": COND}
FAMILIES: dict[str, tuple[str, dict[str, str]]] = {  # config: (layout, part of the text encoder: prefix in the file)
    "sd-v1": ("sd-v1", ONE),
    "sd-v1-inpainting": ("sd-v1-inpainting", ONE),
    "sd-v2": ("sd-v2", ONE),
    "sd-v2-v": ("sd-v2", ONE),
    "sd-v2-inpainting": ("sd-v2-inpainting", ONE),
    "sd-v2-depth": ("sd-v2-depth", ONE),
    "sd-v2-unclip": ("sd-v2-unclip-h-unet-vae-text", ONE),
    "sd-x4-upscaler": ("sd-x4-upscaler", ONE),
    "sdxl-base": ("sdxl-base", {"first.": f"{SGM}0.", "second.": f"{SGM}1."}),
    "sdxl-refiner": ("sdxl-refiner", {"": f"{SGM}0."}),
    "ldm-lsun-churches": ("ldm-lsun-churches-kl8", {}),
    "ldm-ffhq": ("ldm-ffhq-vq4", {}),
    "ldm-cin256": ("ldm-cin256-vq4", ONE),
    "ldm-text2img": ("ldm-text2img-1p4b", ONE),
}
NUMBERS: dict[str, tuple[str, float, int, float, float, float]] = {
    # parameterization, guidance_scale, image_size, scaling_factor, first and last beta
    "sd-v1": ("eps", 7.5, 512, 0.18215, 0.00085, 0.012),
    "sd-v1-inpainting": ("eps", 7.5, 512, 0.18215, 0.00085, 0.012),
    "sd-v2": ("eps", 9.0, 512, 0.18215, 0.00085, 0.012),
    "sd-v2-v": ("v", 9.0, 768, 0.18215, 0.00085, 0.012),
    "sd-v2-inpainting": ("eps", 9.0, 512, 0.18215, 0.00085, 0.012),
    "sd-v2-depth": ("eps", 9.0, 512, 0.18215, 0.00085, 0.012),
    "sd-v2-unclip": ("v", 9.0, 768, 0.18215, 0.00085, 0.012),
    "sd-x4-upscaler": ("v", 9.0, 512, 0.08333, 0.0001, 0.02),
    "sdxl-base": ("eps", 5.0, 1024, 0.13025, 0.00085, 0.012),
    "sdxl-refiner": ("eps", 5.0, 1024, 0.13025, 0.00085, 0.012),
    "ldm-lsun-churches": ("eps", 1.0, 256, 1.0, 0.0015, 0.0155),
    "ldm-ffhq": ("eps", 1.0, 256, 1.0, 0.0015, 0.0195),
    "ldm-cin256": ("eps", 3.0, 256, 1.0, 0.0015, 0.0195),
    "ldm-text2img": ("eps", 5.0, 256, 0.18215, 0.00085, 0.012),
}


def skeleton(config: str) -> LatentDiffusion:
    with on_meta():
        model = build(load_config(CONFIGS / f"{config}.yaml"), config)
    assert isinstance(model, LatentDiffusion)
    return model


def test_every_family_has_a_config() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} >= FAMILIES.keys() == NUMBERS.keys()


@pytest.mark.parametrize("config", FAMILIES)
def test_published_tensors_and_numbers(config: str, layout: Callable[..., Any], shapes: Callable[..., Any]) -> None:
    """Every tensor of each part of the published file has its place, of its shape; schedule and scale are its own."""
    model, (published, text) = skeleton(config), FAMILIES[config]

    def stored(prefix: str) -> dict[str, Tensor]:
        return {key: torch.empty(shape, device="meta") for key, shape in layout(published, prefix).items()}

    for part, module in (("unet", model.unet), ("autoencoder", model.autoencoder)):
        assert shapes(keys.to_internal(stored(keys.PREFIXES[part]), module)) == shapes(module.state_dict())

    files = [stored(prefix) for prefix in text.values()]
    assert shapes(text_keys.towers_to_memory(files, model.text_encoder)) == shapes(model.text_encoder.state_dict())

    *numbers, start, end = NUMBERS[config]
    assert [model.parameterization, model.guidance_scale, model.image_size, model.autoencoder.scaling_factor] == numbers
    assert model.schedule.betas[[0, -1]].tolist() == pytest.approx([start, end])
    assert model.schedule.betas.sqrt().diff().std() < 1e-12  # linear in the root


def test_unclip_l_is_unclip_h_told_of_a_smaller_picture_tower() -> None:
    """No list of its tensors is at hand: all but the width of y and the tower of pictures is that of unCLIP-H."""
    large, huge = skeleton("sd-v2-unclip-l"), skeleton("sd-v2-unclip")
    assert (large.image_encoder.projection_dim, huge.image_encoder.projection_dim) == (768, 1024)
    found, wanted = (
        {k: v for k, v in model.state_dict().items() if not k.startswith("image_")} for model in (large, huge)
    )
    assert found.keys() == wanted.keys()
    differ = {name: tuple(found[name].shape) for name in found if found[name].shape != wanted[name].shape}
    assert differ == {"unet.add_embedding.linear_1.weight": (1280, 2 * 768)}
    assert (large.parameterization, large.image_size) == (huge.parameterization, huge.image_size) == ("v", 768)


def test_ddpm_has_the_tensors_and_numbers_of_the_published_folder(
    layout: Callable[..., Any], shapes: Callable[..., Any]
) -> None:
    model = skeleton("ddpm-cat-256")
    assert shapes(model.state_dict()) == {
        f"unet.{key}": shape for key, shape in layout("diffusers/ddpm-cat-256.unet").items()
    }
    assert model.schedule.betas[[0, -1]].tolist() == pytest.approx([1e-4, 0.02])
    assert model.schedule.betas.diff().std() < 1e-12  # linear, not in the root
    assert (model.parameterization, model.guidance_scale, model.latent_shape(256, 256)) == ("eps", 1.0, (3, 256, 256))
    assert model.denoiser.clip_x0


def test_sdxl_is_told_sizes() -> None:
    base, refiner = skeleton("sdxl-base"), skeleton("sdxl-refiner")
    for model, negative in ((base, False), (refiner, True)):
        cond = model.condition(["a cube", None], negative=negative)
        assert cond.context is not None and cond.context.shape == (2, 77, model.unet.context_dim)
        assert cond.y is not None and cond.y.shape == (2, model.unet.y_dim)
    assert (base.zero_unconditional, refiner.zero_unconditional) == (True, False)
    assert (base.text_encoder.first.pad_id, base.text_encoder.second.pad_id) == (49407, 0)


def test_the_upscaler_has_a_schedule_of_its_own() -> None:
    low = skeleton("sd-x4-upscaler").low_resolution
    assert (
        low is not None and low.max_level == 350 and low.schedule.betas[[0, -1]].tolist() == pytest.approx([1e-4, 0.02])
    )
