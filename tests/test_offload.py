"""Parts of a model in turns: one at a time is on the device, and the pictures are the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import ldm
from ldm.config import build, load_config
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.offload import Offload

TINY = Path(__file__).parent / "tiny.yaml"
Watch = Callable[[], set[str]]


@pytest.fixture
def model() -> LatentDiffusion:
    torch.manual_seed(0)
    model = build(load_config(TINY), "tiny", expected=LatentDiffusion).eval()
    for parameter in model.unet.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return model


def parts(model: LatentDiffusion) -> dict[str, nn.Module]:
    return {"text": model.text_encoder, "unet": model.unet, "autoencoder": model.autoencoder}


def test_one_part_at_a_time_and_the_same_pictures(model: LatentDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is the CPU again, where what is "moved" is a copy: other memory than at home."""
    options = {"num_images": 3, "batch_size": 2, "steps": 2}
    plain = [result.image.tobytes() for result in ldm.txt2img(model, "a", **options)]
    at_home = {name: [p.data_ptr() for p in part.parameters()] for name, part in parts(model).items()}
    Offload("cpu").join(model)
    used: list[str] = []

    def watched(name: str, call: Callable[..., object]) -> Callable[..., object]:
        def run(*arguments: object, **options: object) -> object:
            away = {
                other
                for other, part in parts(model).items()
                if all(p.data_ptr() != home for p, home in zip(part.parameters(), at_home[other], strict=True))
            }
            assert away == {name}
            used.append(name)
            return call(*arguments, **options)

        return run

    monkeypatch.setattr(model.text_encoder, "forward", watched("text", model.text_encoder.forward))
    monkeypatch.setattr(model.unet, "forward", watched("unet", model.unet.forward))
    monkeypatch.setattr(model.autoencoder, "decode", watched("autoencoder", model.autoencoder.decode))
    turns = [result.image.tobytes() for result in ldm.txt2img(model, "a", **options)]
    assert turns == plain
    texts = ["text"] * used.index("unet")  # read once, for all batches
    assert texts and used == [*texts, "unet", "unet", "autoencoder", "autoencoder", "unet", "unet", "autoencoder"]


def test_a_picture_to_begin_from_and_the_device_it_says(model: LatentDiffusion) -> None:
    from PIL import Image

    picture = Image.new("RGB", (32, 32), (200, 30, 60))
    (plain,) = ldm.img2img(model, "a", picture, steps=3)
    turns = Offload("cpu")
    turns.join(model)
    assert model.device == torch.device("cpu") == turns.device
    (found,) = ldm.img2img(model, "a", picture, steps=3)
    assert found.image.tobytes() == plain.image.tobytes()


def test_a_model_beside_it_takes_turns_too(model: LatentDiffusion) -> None:
    other = build(load_config(TINY), "tiny", expected=LatentDiffusion).eval()
    turns = Offload("cpu")
    home = [p.data_ptr() for p in (*model.unet.parameters(), *other.unet.parameters())]
    turns.join(model)
    turns.join(other)
    turns.bring(model.unet)
    turns.bring(other.unet)
    inside = [p.data_ptr() for p in (*model.unet.parameters(), *other.unet.parameters())]
    count = len(list(model.unet.parameters()))
    assert inside[:count] == home[:count] and not set(inside[count:]) & set(home)
