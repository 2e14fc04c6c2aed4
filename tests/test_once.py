"""What a job does once: texts, conditions, and no second branch where guidance leads nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ldm
from ldm.config import build, load_config
from ldm.generate import generate
from ldm.guidance import Guidance
from ldm.items import Item
from ldm.models.diffusion.denoiser import Conditioning
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.prompting import reader, tell
from ldm.sampling import sample
from ldm.settings import resolve

SIGMAS = torch.tensor([2.0, 1.0, 0.0])


@pytest.fixture
def tiny(filled: Any) -> LatentDiffusion:
    torch.manual_seed(0)
    model = build(load_config(Path(__file__).parent / "tiny.yaml"), "tiny.yaml", expected=LatentDiffusion).eval()
    filled(model.unet)
    return model


def draw(model: LatentDiffusion, *items: Item, **wishes: Any) -> Tensor:
    with torch.inference_mode():
        return list(sample(model, items, resolve(model, **{"steps": 3, **wishes})))[-1].x


@pytest.fixture
def asked(tiny: LatentDiffusion, monkeypatch: pytest.MonkeyPatch) -> list[Conditioning]:
    """The condition of each call of the network."""
    calls: list[Conditioning] = []
    denoiser = tiny.denoiser
    monkeypatch.setattr(tiny, "denoiser", lambda x, s, cond: (calls.append(cond), denoiser(x, s, cond))[1])
    return calls


def test_each_text_is_read_once_in_a_job_of_many_batches(
    tiny: LatentDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    forward = tiny.text_encoder.forward
    monkeypatch.setattr(
        tiny.text_encoder, "forward", lambda tokens, *a: (read.append(len(tokens)), forward(tokens, *a))[1]
    )
    items = [Item(prompt, "fog", i) for i, prompt in enumerate(["a cube", "a cone", "a cube", "a [cone:cube:0.5]"] * 3)]
    assert len(list(generate(tiny, items, resolve(tiny, steps=2), batch_size=3))) == 12
    assert read == [1] * 3  # a cube, a cone, also in the schedule, and fog
    list(generate(tiny, items[:1], resolve(tiny, steps=2)))
    assert read == [1] * 5  # another job


def test_what_is_read_does_not_depend_on_company(tiny: LatentDiffusion) -> None:
    texts = ["a red cube", "two cones", ""]
    with torch.inference_mode():
        together = tell(tiny, [Item(text, "fog") for text in texts], SIGMAS)
        for i, text in enumerate(texts):
            alone = tell(tiny, [Item(text, "fog")], SIGMAS, read=reader(tiny))
            assert together.cond.context is not None and alone.cond.context is not None
            assert torch.equal(together.cond.context[i], alone.cond.context[0])


@pytest.mark.parametrize("prompt", ["a red cube", "a [red|blue] cube"])
def test_steps_are_asked_with_the_very_same_tensors(
    tiny: LatentDiffusion, asked: list[Conditioning], prompt: str
) -> None:
    draw(tiny, Item(prompt, "fog", 1), steps=6)
    assert len(asked) == 6 and len({id(cond.context) for cond in asked}) == (1 if prompt == "a red cube" else 2)


def test_a_negative_prompt_that_is_the_prompt_costs_nothing(tiny: LatentDiffusion, asked: list[Conditioning]) -> None:
    same, other = Item("a red cube", "a red cube", 3), Item("a red cube", "fog", 3)

    def rows(*items: Item, **wishes: Any) -> list[int]:
        asked.clear()
        draw(tiny, *items, **wishes)
        return [len(cond.context) for cond in asked if cond.context is not None]

    assert rows(same) == rows(same, guidance_scale=1.0) == [1, 1, 1] and rows(other) == [2, 2, 2]
    assert rows(same, same) == [2, 2, 2] and rows(same, other) == [4, 4, 4]
    assert rows(same, guidance=Guidance(pag=2.0)) == [2, 2, 2]
    assert rows(same, guidance=Guidance(cfg_pp=True), guidance_scale=0.6) == [2, 2, 2]  # it needs the other estimate
    assert torch.equal(draw(tiny, same, guidance_scale=9.0), draw(tiny, other, guidance_scale=1.0))


def test_two_jobs_on_one_model_at_once(tiny: LatentDiffusion) -> None:
    alone = [[r.image.tobytes() for r in ldm.txt2img(tiny, p, num_images=2, batch_size=1, steps=2)] for p in ("a", "b")]
    first, second = (ldm.txt2img(tiny, p, num_images=2, batch_size=1, steps=2) for p in ("a", "b"))
    mixed = [(a.image.tobytes(), b.image.tobytes()) for a, b in zip(first, second, strict=True)]
    assert [list(pictures) for pictures in zip(*mixed, strict=True)] == alone
    assert not any("forward" in vars(module) for module in tiny.unet.modules())
