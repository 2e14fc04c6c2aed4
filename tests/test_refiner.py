from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ldm
from ldm.config import build, load_config
from ldm.items import Item
from ldm.models.diffusion.denoiser import Conditioning
from ldm.models.framing import Framing
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.refiner import Refiner
from ldm.sampling import sample
from ldm.settings import resolve

Make = Callable[..., LatentDiffusion]
TOWER = {
    "target": "OpenCLIPTextEncoder",
    "params": {"width": 16, "heads": 2, "layers": 2, "layer": "penultimate", "final_norm": False},
}
POOLED = {**TOWER, "params": {**TOWER["params"], "projection_dim": 16}}
SIZES = ["original_height", "original_width", "crop_top", "crop_left"]
BASE = {
    "text_encoder": {"target": "TwoTowers", "params": {"first": TOWER, "second": POOLED}},
    "zero_unconditional": True,
}
BASE_NUMBERS, REFINER_NUMBERS = [*SIZES, "target_height", "target_width"], [*SIZES, "aesthetic_score"]


@pytest.fixture(scope="module")
def make() -> Make:
    """`make(numbers, context_dim, **params)`: a miniature that is told numbers about the picture, as SDXL is."""

    def build_one(numbers: list[str], context_dim: int, **params: Any) -> LatentDiffusion:
        torch.manual_seed(len(numbers))
        tree = load_config(Path(__file__).parent / "tiny.yaml")
        tree["params"] |= {"parameterization": "eps", **params}
        tree["params"]["unet"]["params"] |= {"context_dim": context_dim, "y_dim": 16 + 8 * len(numbers)}
        tree["params"]["framing_embedding"] = {"target": "FramingEmbedding", "params": {"numbers": numbers, "dim": 8}}
        model = build(tree, "tiny.yaml", expected=LatentDiffusion).eval()
        nn.init.normal_(model.unet.add_embedding.linear_1.weight, std=1.0)  # so that what is told matters
        for parameter in model.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.2)
        return model

    return build_one


@pytest.fixture(scope="module")
def base(make: Make) -> LatentDiffusion:
    return make(BASE_NUMBERS, 32, **BASE)


@pytest.fixture(scope="module")
def refiner(make: Make) -> LatentDiffusion:
    return make(REFINER_NUMBERS, 16, text_encoder=POOLED)


class Spy:
    """A denoiser that remembers what it is asked."""

    def __init__(self, model: LatentDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
        self.denoiser = model.denoiser
        self.sigmas: list[float] = []
        self.conds: list[Conditioning] = []
        monkeypatch.setattr(model, "denoiser", self)

    def __call__(self, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        self.sigmas.append(float(sigma))
        self.conds.append(cond)
        return self.denoiser(x, sigma, cond)


def draw(model: LatentDiffusion, item: Item, refiner: Refiner | None = None, **settings: Any) -> Tensor:
    with torch.inference_mode():
        return list(sample(model, [item], resolve(model, **settings), refiner=refiner))[-1].x


def test_not_given_is_zeros_and_empty_is_not(base: LatentDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(base, monkeypatch)
    none, empty = (draw(base, Item("a red cube", n), steps=2, guidance_scale=3.0) for n in (None, ""))
    not_given, given = spy.conds[0], spy.conds[2]  # each of two pictures' worth: the prompt, then the negative one
    assert not not_given.context[1].any() and not not_given.y[1, :16].any()
    assert torch.equal(not_given.y[0, 16:], not_given.y[1, 16:]) and not_given.y[1, 16:].any()
    assert given.context[1].any() and given.y[1, :16].any()
    assert torch.equal(given.context[0], not_given.context[0])
    assert (none - empty).abs().max() > 1e-3
    (result,) = ldm.txt2img(base, "a red cube", steps=1)
    assert result.item.negative_prompt is None


def test_the_sizes_told_reach_the_network(base: LatentDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(base, monkeypatch)
    told = {"original_size": (512, 640), "crop": (16, 8)}
    plain = draw(base, Item("a"), steps=1, spacing="trailing", guidance_scale=1.0)
    other = draw(base, Item("a"), steps=1, spacing="trailing", guidance_scale=1.0, **told)
    assert (plain - other).abs().max() > 1e-4
    pooled = spy.conds[0].y[:, :16]
    embed = base.framing_embedding
    assert embed is not None
    assert torch.equal(spy.conds[0].y, embed(pooled, Framing(32, 32, 32, 32)))
    assert torch.equal(spy.conds[1].y, embed(pooled, Framing(512, 640, 32, 32, 16, 8)))
    assert torch.equal(
        draw(base, Item("a"), steps=1, spacing="trailing", guidance_scale=1.0, original_size=(32, 32), crop=(0, 0)),
        plain,
    )


@pytest.mark.parametrize("told", [{"original_size": (0, 5)}, {"crop": (-1, 0)}, {"crop": (1, 2, 3)}])
def test_sizes_that_no_picture_has_are_refused(base: LatentDiffusion, told: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="two whole numbers of pixels"):
        ldm.txt2img(base, "a", **told)


def test_a_model_that_is_not_told_sizes_says_so() -> None:
    tree = load_config(Path(__file__).parent / "tiny.yaml")
    model = build(tree, "tiny.yaml", expected=LatentDiffusion)
    with pytest.raises(ValueError, match=r"original_size is \(8, 8\), but this model is not told of it"):
        ldm.txt2img(model, "a", original_size=(8, 8))


@pytest.mark.parametrize(("spacing", "steps"), [("uniform", 10), ("trailing", 10), ("linspace", 7), ("uniform", 1000)])
def test_who_draws_which_step(
    base: LatentDiffusion, refiner: LatentDiffusion, monkeypatch: pytest.MonkeyPatch, spacing: str, steps: int
) -> None:
    spies = [Spy(model, monkeypatch) for model in (base, refiner)]
    for spy in spies:  # a thousand steps need no network
        monkeypatch.setattr(spy, "denoiser", lambda x, sigma, cond: x / (1 + sigma**2))
    draw(base, Item("a"), Refiner(refiner, at=0.8), steps=steps, spacing=spacing, guidance_scale=1.0)
    asked = [base.schedule.sigma_to_t(torch.tensor(spy.sigmas, dtype=torch.float64)) for spy in spies]
    assert sum(map(len, asked)) == steps
    assert asked[0].min() >= 200 - 1e-6 and asked[1].max() < 200 - 1e-6
    if spacing != "linspace":
        assert len(asked[1]) == steps // 5


def test_each_has_its_own_condition(
    base: LatentDiffusion, refiner: LatentDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy, finish = Spy(base, monkeypatch), Spy(refiner, monkeypatch)
    draw(base, Item("a red cube"), Refiner(refiner), steps=5, guidance_scale=3.0)
    assert len(spy.sigmas) == 4 and len(finish.sigmas) == 1
    (cond,) = finish.conds
    assert cond.context.shape == (2, 77, 16) and cond.context[1].any()  # a refiner reads "" where nothing is given
    assert refiner.framing_embedding is not None
    scores = [refiner.condition(["a"], negative=negative).y[0, -8:] for negative in (False, True)]
    assert torch.equal(cond.y[:, -8:], torch.stack(scores)) and not torch.equal(*scores)


def test_it_changes_the_picture_and_the_ends_are_one_model_alone(
    base: LatentDiffusion, refiner: LatentDiffusion
) -> None:
    both = draw(base, Item("a"), Refiner(refiner, at=0.5), steps=4)
    alone = draw(base, Item("a"), steps=4)
    assert (both - alone).abs().max() > 1e-3
    assert torch.equal(draw(base, Item("a"), Refiner(refiner, at=1.0), steps=4), alone)
    assert torch.equal(draw(base, Item("a"), Refiner(refiner, at=0.0), steps=4), draw(refiner, Item("a"), steps=4))
    (result,) = ldm.txt2img(base, "a", steps=4, refiner=ldm.Refiner(refiner, at=0.5))
    (plain,) = ldm.txt2img(base, "a", steps=4)
    assert result.image.tobytes() != plain.image.tobytes()


def test_a_refiner_of_other_latents_is_refused(base: LatentDiffusion, make: Make) -> None:
    other = make(REFINER_NUMBERS, 16, text_encoder=POOLED)
    other.autoencoder.scaling_factor = 0.5
    with pytest.raises(ValueError, match=r"different latents \(scaling_factor 1.0 and 0.5\)"):
        ldm.txt2img(base, "a", refiner=Refiner(other))
    with pytest.raises(ValueError, match="to begin at 1.5"):
        Refiner(other, at=1.5)
