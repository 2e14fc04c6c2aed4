"""The shipped model: small, what its config says, and true to prompts it never saw."""

import json

import pytest
import torch
import torch.nn.functional as F
from PIL.Image import Resampling

from ldm.checkpoint.configs import CONFIGS, PACKAGE
from ldm.checkpoint.load import load, load_part
from ldm.checkpoint.read import read
from ldm.config import load_config
from ldm.data.datasets import as_bytes, as_pixels
from ldm.data.raycast import render
from ldm.images import to_images, to_tensor
from ldm.metrics.evaluate import evaluate, fresh_prompts, judged, psnr
from ldm.metrics.exchange import exchanges, paint
from ldm.metrics.judge import Judge, accuracy
from ldm.pipeline import upscale

ASSETS = PACKAGE / "assets"


@pytest.fixture(scope="module")
def model():
    return load("scenes")


@pytest.fixture(scope="module")
def judge():
    return load_part("judge", Judge)


def test_weights_are_small_and_say_where_they_come_from():
    sizes = {path.stem: path.stat().st_size for path in ASSETS.glob("*.safetensors")}
    assert sizes["scenes"] <= 30e6 and sizes["judge"] <= 3e6
    assert sizes["scenes-x4"] <= 15e6 and sizes["scenes-inpainting"] <= 15e6
    for name in sizes:
        weights = read(ASSETS / f"{name}.safetensors")
        assert {"config", "steps", "seed", "commit"} <= set(weights.metadata)
        assert all(tensor.dtype == torch.float16 for tensor in weights.tensors.values())


@pytest.mark.parametrize("name", ["scenes", "scenes-inpainting", "scenes-x4"])
def test_config_file_is_that_of_the_weights(name):
    carried = json.loads(read(ASSETS / f"{name}.safetensors").metadata["config"])
    assert carried == load_config(CONFIGS / f"{name}.yaml")


def test_enlarged_pictures_are_true_to_the_small_ones_and_sharper_than_interpolation():
    upscaler, scenes = load("scenes-x4"), fresh_prompts(4, seed=14)[0]
    for scene in scenes:
        small = to_images(F.interpolate(as_pixels(as_bytes(render(scene))[None]), size=(32, 32), mode="area"))[0]
        large = next(upscale(upscaler, "", small, steps=12)).image
        assert large.size == (128, 128)
        back = F.interpolate(to_tensor(large), size=(32, 32), mode="area")
        assert (back - to_tensor(small)).square().mean() < 4e-3  # 30 dB
        assert sharpness(to_tensor(large)) > 1.1 * sharpness(to_tensor(small.resize((128, 128), Resampling.BICUBIC)))


@pytest.mark.long
def test_things_painted_into_renders_are_the_ones_asked_for(judge):
    asked, model = exchanges(10, seed=15), load("scenes-inpainting")
    pictures = paint(model, asked, 15, lambda: None, steps=10, sampler="dpmpp_2m")
    found = judged(model, judge, [one.after for one in asked], pictures)["generated"]
    assert found["whole"] >= 0.5  # 0 where the mask is left alone; whole pictures of scenes: README


def sharpness(pixels):
    """Mean of the largest hundredth of the differences between neighbours: the edges."""
    steps = torch.cat([pixels.diff(dim=2).abs().flatten(), pixels.diff(dim=3).abs().flatten()])
    return steps.topk(len(steps) // 100).values.mean()


@pytest.mark.long
def test_judge_is_right_about_renders(judge):
    scenes, _ = fresh_prompts(60, seed=11)
    shares = accuracy(scenes, judge.look(as_pixels(torch.stack([as_bytes(render(scene)) for scene in scenes]))))
    assert min(shares[name] for name in ("count", "shape", "color", "size", "material", "relation", "sky")) > 0.95


def test_autoencoder_keeps_what_it_is_given(model):
    scenes, _ = fresh_prompts(12, seed=12)
    assert psnr(model, as_pixels(torch.stack([as_bytes(render(scene)) for scene in scenes]))) > 30


def test_pictures_follow_their_prompts(model, judge):
    report, _, _ = evaluate(model, judge, 16, seed=13, done=lambda: None, steps=15, batch_size=8)
    generated = report["generated"]
    guessing = {"sky": 1 / 4, "color": 1 / 8, "shape": 1 / 4, "size": 1 / 2}
    assert all(generated[name] > 0.65 > guessing[name] for name in guessing)  # so few pictures vary; the README has 500
