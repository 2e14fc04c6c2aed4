"""Folders of diffusers models in pixel space, in miniature: they load as they are, and compute what diffusers does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

import ldm
from ldm.checkpoint.configs import CONFIGS
from ldm.checkpoint.diffusers_folder import OLD_ATTENTION, read_any
from ldm.checkpoint.pixel_config import translate
from ldm.checkpoint.read import CheckpointError
from ldm.config import load_config
from ldm.models.diffusion import SPACINGS, ddim, ddpm
from ldm.models.latent_diffusion import LatentDiffusion

pytestmark = pytest.mark.usefixtures("no_grad")

CAT = {  # ddpm-cat-256's, but for the widths and the number of levels
    "sample_size": 16,
    "block_out_channels": (16, 16, 32),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": None,
    "norm_num_groups": 8,
    "norm_eps": 1e-6,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
}
OTHER = {"attention_head_dim": 8, "norm_eps": 1e-3, "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0}
Relative = Callable[[Tensor, Tensor], float]


@pytest.fixture(scope="module")
def theirs() -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(**CAT).eval()


@pytest.fixture(scope="module")
def folder(theirs: UNet2DModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ddpm")
    DDPMPipeline(theirs, DDPMScheduler(clip_sample=False)).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> LatentDiffusion:
    return ldm.load(folder)


def error_of(model: LatentDiffusion, theirs: UNet2DModel, relative_error: Relative) -> float:
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 700])
    return relative_error(model.unet(x, t), theirs(x, t).sample)


@pytest.mark.parametrize("options", [{}, OTHER, {"layers_per_block": 1, "dropout": 0.1}])
def test_agrees_with_diffusers(options: dict[str, Any], tmp_path: Path, relative_error: Relative) -> None:
    torch.manual_seed(1)
    theirs = UNet2DModel(**CAT | options).eval()
    DDPMPipeline(theirs, DDPMScheduler()).save_pretrained(tmp_path)
    assert error_of(ldm.load(tmp_path), theirs, relative_error) <= 1e-5


def test_what_the_folder_says(model: LatentDiffusion) -> None:
    assert (model.image_size, model.guidance_scale, model.parameterization) == (16, 1.0, "eps")
    assert model.latent_shape(16, 24) == (3, 16, 24) and not model.denoiser.clip_x0
    torch.testing.assert_close(model.schedule.alphas_cumprod.float(), DDPMScheduler().alphas_cumprod, rtol=1e-5, atol=0)


def test_everything_at_the_top_and_old_names(
    folder: Path, theirs: UNet2DModel, tmp_path: Path, relative_error: Relative
) -> None:
    """As the published folders are: model_index.json, config.json, scheduler_config.json and a .bin side by side."""
    state = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    for old, new in OLD_ATTENTION.items():
        state = {name.replace(f".attentions.0.{new}.", f".attentions.0.{old}."): state[name] for name in state}
    assert any(name.endswith("attentions.0.proj_attn.weight") for name in state)
    torch.save(state, tmp_path / "diffusion_pytorch_model.bin")
    for file in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json"):
        shutil.copy(folder / file, tmp_path)
    loaded = ldm.load(tmp_path)
    assert error_of(loaded, theirs, relative_error) <= 1e-5 and not loaded.denoiser.clip_x0

    for name in ("model_index.json", "scheduler_config.json"):  # the bare component: the paper's schedule
        (tmp_path / name).unlink()
    bare = ldm.load(tmp_path)
    assert error_of(bare, theirs, relative_error) <= 1e-5 and bare.denoiser.clip_x0
    assert error_of(ldm.load(folder / "unet"), theirs, relative_error) <= 1e-5


def test_ddim_is_that_of_diffusers(model: LatentDiffusion, theirs: UNet2DModel, relative_error: Relative) -> None:
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    start = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    wanted = start
    for t in scheduler.timesteps:
        wanted = scheduler.step(theirs(wanted, t).sample, t, wanted).prev_sample

    sigmas = SPACINGS["trailing"](model.schedule, 10)
    cond = model.condition(["", ""])
    x = start * (sigmas[0] ** 2 + 1).sqrt().float()
    *_, last = ddim(lambda x, sigma: model.denoiser(x, sigma, cond), x, sigmas, noise=None)
    assert relative_error(last.x, wanted) < 1e-4
    assert torch.equal(model.decode(last.x), last.x) and torch.equal(model.encode(last.x), last.x)


def test_ddpm_is_that_of_the_paper(folder: Path, theirs: UNet2DModel, relative_error: Relative) -> None:
    """With the estimate clipped, eta 1 is the variance called fixed small."""
    scheduler = DDPMScheduler(clip_sample=True, variance_type="fixed_small", timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    start = wanted = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(4)
    for t in scheduler.timesteps:
        wanted = scheduler.step(theirs(wanted, t).sample, t, wanted, generator=generator).prev_sample

    tree = load_config(CONFIGS / "ddpm-cat-256.yaml")
    tree["params"] |= {
        "unet": translate(json.loads((folder / "unet" / "config.json").read_text()), {})["params"]["unet"]
    }
    model = ldm.load(folder, config=tree)
    sigmas = SPACINGS["trailing"](model.schedule, 10)
    draws = torch.Generator().manual_seed(4)
    x = start * (sigmas[0] ** 2 + 1).sqrt().float()
    cond = model.condition([""])
    *_, last = ddpm(
        lambda x, sigma: model.denoiser(x, sigma, cond),
        x,
        sigmas,
        noise=lambda x, *_: torch.randn(x.shape, generator=draws),
    )
    assert relative_error(last.x, wanted) < 1e-4


def test_it_draws_pictures(model: LatentDiffusion) -> None:
    (result,) = ldm.txt2img(model, "", steps=2)
    assert result.image.size == (16, 16)
    (again,) = ldm.img2img(model, "", result.image, strength=0.0, steps=2)
    assert again.image.tobytes() == result.image.tobytes()  # no autoencoder, so nothing is lost


def test_half_precision_is_the_networks_alone(folder: Path) -> None:
    half = ldm.load(folder, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    pixels = torch.rand(1, 3, 16, 16)
    assert torch.equal(half.decode(pixels), pixels) and torch.equal(half.encode(pixels), pixels)


def test_a_part_of_a_latent_diffusion_model_is_not_in_pixel_space(tmp_path: Path) -> None:
    """The UNet of LDM's FFHQ is a UNet2DModel, too."""
    save_file({"conv_in.weight": torch.zeros(224, 3, 3, 3)}, tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel", "in_channels": 3}')
    assert "config" not in read_any(tmp_path).metadata


def test_the_published_configs_translate_to_ours() -> None:
    """google/ddpm-cat-256: its config.json and scheduler_config.json."""
    unet = CAT | {
        "_class_name": "UNet2DModel",
        "sample_size": 256,
        "block_out_channels": [128, 128, 256, 256, 512, 512],
        "down_block_types": [*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4],
        "norm_num_groups": 32,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "act_fn": "silu",
        "center_input_sample": False,
        "time_embedding_type": "positional",
    }
    scheduler = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02, "clip_sample": True}
    found, wanted = translate(unet, scheduler), load_config(CONFIGS / "ddpm-cat-256.yaml")
    defaults = {"dropout": 0.0, "norm_num_groups": 32}
    wanted["params"]["unet"]["params"] |= defaults
    assert found == wanted


@pytest.mark.parametrize(
    ("unet", "scheduler", "words"),
    [
        ({"down_block_types": ["SkipDownBlock2D"] * 3}, {}, "down_block_types 'SkipDownBlock2D' is not supported"),
        ({"up_block_types": ["UpBlock2D"] * 3}, {}, "are not those of the way down"),
        ({"time_embedding_type": "fourier"}, {}, "'fourier' of UNet2DModel is not supported: only 'positional' is"),
        ({"in_channels": 1}, {}, "in_channels 1 of UNet2DModel"),
        ({"resnet_time_scale_shift": "scale_shift"}, {}, "only 'default' is"),
        ({}, {"beta_schedule": "sigmoid"}, "beta_schedule 'sigmoid'"),
        ({}, {"trained_betas": [0.1]}, "trained_betas"),
        ({}, {"prediction_type": "flow"}, "prediction_type 'flow'"),
    ],
)
def test_what_is_not_supported_is_named(
    unet: dict[str, Any], scheduler: dict[str, Any], words: str, folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model"
    shutil.copytree(folder, path)
    for file, change in (("unet/config.json", unet), ("scheduler/scheduler_config.json", scheduler)):
        (path / file).write_text(json.dumps(json.loads((path / file).read_text()) | change))
    with pytest.raises(CheckpointError) as caught:
        ldm.load(path)
    assert words in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)
