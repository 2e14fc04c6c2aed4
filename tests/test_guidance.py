"""Guidance as a setting of a job: what it asks of the network, and what it does to a picture's latent."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ldm
from ldm.config import build, load_config
from ldm.guidance import CFG_PP_SAMPLERS, CFG_PP_SCALE, Guidance
from ldm.items import Item, make_items, with_scales
from ldm.models.diffusion import SAMPLERS
from ldm.models.diffusion.denoiser import Conditioning
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.sampling import sample
from ldm.settings import resolve

EVERYTHING = Guidance(
    rescale=0.7, threshold=0.9, interval=(0.1, 10.0), cfg_pp=True, pag=2.0, freeu=(1.1, 1.2, 0.9, 0.5), autoguide=1.5
)


def make_tiny(seed: int = 0) -> LatentDiffusion:
    torch.manual_seed(seed)
    model = build(load_config(Path(__file__).parent / "tiny.yaml"), "tiny.yaml", expected=LatentDiffusion).eval()
    for parameter in model.unet.parameters():  # some are zero at first, and a network that answers 0 tests nothing
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return model.double()  # so that what differs is not rounding


@pytest.fixture(scope="module")
def tiny() -> LatentDiffusion:
    return make_tiny()


@pytest.fixture(scope="module")
def worse() -> LatentDiffusion:
    return make_tiny(1)


def draw(model: LatentDiffusion, *items: Item, autoguide: LatentDiffusion | None = None, **settings: Any) -> Tensor:
    with torch.inference_mode():
        asked = resolve(model, **{"steps": 4, **settings})
        return list(sample(model, items or [Item("a red cube", "fog", 3)], asked, autoguide=autoguide))[-1].x


class Counter:
    """A network's denoiser that counts the rows of each call."""

    def __init__(self, model: LatentDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
        self.denoiser, self.calls = model.denoiser, list[tuple[float, int]]()
        monkeypatch.setattr(model, "denoiser", self)

    def __call__(self, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        self.calls.append((float(sigma), len(x)))
        return self.denoiser(x, sigma, cond)


def test_no_guidance_is_the_default(tiny: LatentDiffusion) -> None:
    settings = resolve(tiny)
    assert settings.guidance == Guidance() and settings.guidance_scale == tiny.guidance_scale
    ones = Guidance(rescale=0, pag=0, pag_layers=("up_blocks",), freeu=(1, 1, 1, 1), interval=(0, 1000), autoguide=1)
    assert torch.equal(draw(tiny, guidance=ones, autoguide=tiny), draw(tiny))


@pytest.mark.parametrize(
    "guidance",
    [
        Guidance(rescale=0.7),
        Guidance(threshold=0.5),
        Guidance(interval=(0.5, 5.0)),
        Guidance(cfg_pp=True),
        Guidance(pag=2.0),
        Guidance(pag=2.0, pag_layers=("down_blocks.0", "up_blocks")),
        Guidance(freeu=(1.2, 1.4, 0.9, 0.2)),
        EVERYTHING,
    ],
)
def test_each_changes_the_picture_and_leaves_no_trace(tiny: LatentDiffusion, guidance: Guidance) -> None:
    scale = {"guidance_scale": 0.6 if guidance.cfg_pp else 6.0}
    plain, other = draw(tiny, **scale), draw(tiny, guidance=guidance, **scale)
    assert (plain - other).abs().max() > 1e-3
    assert torch.equal(draw(tiny, guidance=guidance, **scale), other) and torch.equal(draw(tiny, **scale), plain)


def test_with_everything_an_image_is_the_same_alone_and_in_a_batch(
    tiny: LatentDiffusion, worse: LatentDiffusion
) -> None:
    items = [
        Item("a red cube", "fog", 3),
        Item("a cone", "", 4, guidance_scale=0.2),
        Item("", None, 5, guidance_scale=1.0),
    ]
    how: dict[str, Any] = {"guidance": EVERYTHING, "autoguide": worse, "eta": 0.5}
    together = draw(tiny, *items, **how)
    for i, item in enumerate(items):
        torch.testing.assert_close(together[i : i + 1], draw(tiny, item, **how))


def test_calls_and_their_rows(tiny: LatentDiffusion, worse: LatentDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = Counter(tiny, monkeypatch), Counter(worse, monkeypatch)
    for settings, rows, worse_rows in (
        ({}, [2, 2, 2, 2], []),
        ({"guidance_scale": 1.0}, [1, 1, 1, 1], []),
        ({"guidance": Guidance(pag=3.0)}, [3, 3, 3, 3], []),
        ({"guidance": Guidance(pag=3.0), "guidance_scale": 1.0}, [2, 2, 2, 2], []),
        ({"guidance": Guidance(interval=(0.5, 3.0), pag=3.0)}, [1, 3, 3, 1], []),
        ({"guidance": Guidance(rescale=0.7, threshold=0.99)}, [2, 2, 2, 2], []),
        ({"guidance": Guidance(cfg_pp=True), "guidance_scale": 1.0}, [2, 2, 2, 2], []),
        ({"guidance": Guidance(interval=(0.5, 3.0)), "autoguide": worse}, [1, 2, 2, 1], [1, 1]),
        ({"guidance_scale": 1.0, "autoguide": worse}, [1, 1, 1, 1], [1, 1, 1, 1]),
    ):
        ours.calls.clear()
        theirs.calls.clear()
        draw(tiny, **settings)
        assert [n for _, n in ours.calls] == rows, settings
        assert [n for _, n in theirs.calls] == worse_rows, settings
    assert [0.5 <= sigma <= 3.0 for sigma, _ in ours.calls] == [False, True, True, False]


def test_autoguidance_by_oneself_is_none_and_by_another_is_the_papers(
    tiny: LatentDiffusion, worse: LatentDiffusion
) -> None:
    plain = draw(tiny, guidance_scale=1.0)
    torch.testing.assert_close(draw(tiny, autoguide=tiny, guidance_scale=1.0), plain)
    one: dict[str, Any] = {"guidance_scale": 1.0, "steps": 1}  # whose only estimate is what is drawn
    good, bad = draw(tiny, **one), draw(worse, **one)
    led = draw(tiny, autoguide=worse, guidance=Guidance(autoguide=1.7), **one)
    torch.testing.assert_close(led, 1.7 * good - 0.7 * bad)


def test_rescaled_pictures_have_the_spread_of_the_unguided(tiny: LatentDiffusion) -> None:
    one: dict[str, Any] = {"steps": 1}
    plain, guided = draw(tiny, guidance_scale=1.0, **one), draw(tiny, guidance_scale=90.0, **one)
    rescaled = draw(tiny, guidance_scale=90.0, guidance=Guidance(rescale=1.0), **one)
    assert guided.std() > 1.1 * plain.std()
    torch.testing.assert_close(rescaled.std(), plain.std())


def test_cfg_pp_has_scales_of_its_own(tiny: LatentDiffusion) -> None:
    settings = resolve(tiny, guidance=Guidance(cfg_pp=True))
    assert settings.guidance_scale == CFG_PP_SCALE != tiny.guidance_scale
    with pytest.raises(ValueError, match=r"guidance_scale is 7.5; with CFG\+\+ it is 0 … 1"):
        resolve(tiny, guidance=Guidance(cfg_pp=True), guidance_scale=7.5)
    with pytest.raises(ValueError, match=r"CFG\+\+ is another step for ddim, .*, and none for heun"):
        resolve(tiny, guidance=Guidance(cfg_pp=True), sampler="heun")
    with pytest.raises(ValueError, match="CFG.. and churn both say where a step begins"):
        resolve(tiny, guidance=Guidance(cfg_pp=True), sampler="euler", s_churn=1.0)
    assert set(CFG_PP_SAMPLERS) <= set(SAMPLERS)
    unconditional = draw(tiny, Item("fog", None, 3), guidance_scale=1.0)  # scale 0 draws the negative prompt
    torch.testing.assert_close(draw(tiny, guidance=Guidance(cfg_pp=True), guidance_scale=0.0), unconditional)


def test_scales_take_turns(tiny: LatentDiffusion) -> None:
    results = list(ldm.txt2img(tiny.float(), "a", guidance_scale=[1, 3.0, 7.5], num_images=5, steps=2, batch_size=5))
    tiny.double()
    assert [result.item.guidance_scale for result in results] == [1.0, 3.0, 7.5, 1.0, 3.0]
    items = with_scales(make_items("a", None, 0, 3), [1, 3.0, 7.5])
    together = draw(tiny, *items)
    for i, scale in enumerate([1.0, 3.0, 7.5]):
        torch.testing.assert_close(together[i : i + 1], draw(tiny, Item("a", None, i), guidance_scale=scale))
    with pytest.raises(ValueError, match="3 guidance scales for 2 pictures"):
        ldm.txt2img(tiny, "a", guidance_scale=[1, 2, 3], num_images=2)
    with pytest.raises(ValueError, match="0 guidance scales"):
        ldm.txt2img(tiny, "a", guidance_scale=[])
    with pytest.raises(ValueError, match="guidance_scale is nan"):
        ldm.txt2img(tiny, "a", guidance_scale=[1.0, math.nan], num_images=2)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"rescale": 1.5}, r"rescale is 1.5; it can be 0 … 1"),
        ({"rescale": math.nan}, "rescale is nan"),
        ({"threshold": 99.5}, "threshold is 99.5; it can be 0 … 1"),
        ({"interval": (5.0, 0.3)}, r"interval is \(5.0, 0.3\); give the lowest sigma and then the highest"),
        ({"interval": (1.0,)}, "give the lowest sigma and then the highest"),
        ({"interval": (0.0, math.inf)}, "interval is inf; it can be a finite number"),
        ({"freeu": (1.0, 1.0)}, "give b1, b2, s1 and s2"),
        ({"pag": math.inf}, "pag is inf"),
        ({"autoguide": math.nan}, "autoguide is nan"),
    ],
)
def test_numbers_that_make_no_sense(numbers: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Guidance(**numbers)


def test_what_a_model_has_not_is_said_before_anything_is_drawn(tiny: LatentDiffusion, worse: LatentDiffusion) -> None:
    with pytest.raises(ValueError, match=r"no self-attention in 'middle'.*mid_block.attentions.0"):
        ldm.txt2img(tiny, "a", guidance=ldm.Guidance(pag=3.0, pag_layers=("middle",)))
    other = make_tiny()
    other.autoencoder.scaling_factor = 0.5
    with pytest.raises(ValueError, match=r"its autoguide have different latents \(scaling_factor 1.0 and 0.5"):
        ldm.txt2img(tiny, "a", autoguide=other)
    other.unet = torch.nn.Conv2d(4, 4, 1)
    with pytest.raises(ValueError, match="FreeU changes the way up of a UNet, and this is a Conv2d"):
        ldm.txt2img(other, "a", guidance=Guidance(freeu=(1.1, 1.1, 1, 1)))
