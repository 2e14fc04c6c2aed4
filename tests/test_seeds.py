"""What a seed means to a picture: alone or in a batch, in 20 steps or 40, and varied towards another seed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from PIL import Image

import ldm
from ldm.hints import Hints
from ldm.items import Item, make_items
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.noise import BrownianNoise, starting_noise
from ldm.sampling import sample
from ldm.settings import resolve

STOCHASTIC = ("euler_ancestral", "dpmpp_sde", "dpmpp_3m_sde", "lcm")


@pytest.fixture(scope="module")
def tiny(awake: Callable[[], LatentDiffusion]) -> LatentDiffusion:
    return awake()


def latents(model: Any, *items: Item, z: torch.Tensor | None = None, **options: Any) -> torch.Tensor:
    with torch.inference_mode():
        return list(sample(model, items, resolve(model, **options), Hints(z=z)))[-1].x


def correlation(a: torch.Tensor, b: torch.Tensor) -> list[float]:
    """Of each pair of images."""
    pairs = zip(a.flatten(1), b.flatten(1), strict=True)
    return [float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in pairs]


@pytest.fixture(scope="module")
def scenes() -> LatentDiffusion:
    return ldm.load("scenes")


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m"])
def test_a_picture_of_scenes_is_the_same_alone_and_in_a_batch_of_8(scenes: Any, sampler: str) -> None:
    """In float32 and with the weights that ship, whatever is beside it."""
    prompts = ["a red cube", "a large yellow ball left of a small blue cylinder at night", "", "two green cones"]
    items = [Item(prompt, None, seed) for seed, prompt in enumerate(2 * prompts)]
    draw = partial(latents, scenes, sampler=sampler, steps=3, height=64, width=64)
    together = draw(*items)
    assert together.dtype == torch.float32
    for i in (1, 4):
        alone = draw(items[i])[0]
        assert (together[i] - alone).norm() <= 1e-5 * alone.norm()


@pytest.mark.long
def test_20_and_40_steps_of_scenes_draw_one_picture(scenes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the same starting noise; with other noise in the steps, it is another picture."""
    items = [
        Item("a small green cone behind a large red cube at night", seed=3),
        Item("a large yellow ball left of a small blue cylinder", seed=4),
    ]
    draw = partial(latents, scenes, *items, sampler="euler_ancestral", spacing="linspace", guidance_scale=1.0)
    coarse, fine = draw(steps=20), draw(steps=40)
    monkeypatch.setattr("ldm.sampling.BrownianNoise", partial(BrownianNoise, purpose="another"))
    other = draw(steps=20)
    assert min(correlation(coarse, fine)) > 0.97
    assert max(correlation(other, fine)) < 0.92


@pytest.mark.parametrize("sampler", STOCHASTIC)
def test_the_noise_of_the_steps_is_the_seeds(tiny: Any, sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only the noise to begin with: from one picture, other seeds end elsewhere, each where it ends alone."""
    monkeypatch.setattr(
        "ldm.sampling.starting_noise", lambda seeds, shape: starting_noise([0], shape).repeat(3, 1, 1, 1)[: len(seeds)]
    )
    draw = partial(latents, copy.deepcopy(tiny).double(), sampler=sampler, steps=4)
    together = draw(Item("a", seed=1), Item("a", seed=2), Item("a", seed=1))
    assert torch.allclose(together[0], together[2], atol=1e-9)
    assert (together[0] - together[1]).abs().max() > 0.1
    assert torch.allclose(draw(Item("a", seed=2))[0], together[1], atol=1e-9)


# Variations ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["ddim", *STOCHASTIC])
@pytest.mark.parametrize("from_picture", [False, True])
def test_strength_0_is_the_picture_of_seed_and_1_that_of_the_other(tiny: Any, sampler: str, from_picture: bool) -> None:
    options: dict[str, Any] = {"sampler": sampler, "steps": 4}
    if from_picture:
        options |= {"z": torch.ones(1, *tiny.latent_shape(32, 32)), "strength": 0.5}
    draw = partial(latents, tiny, **options)
    one, other = draw(Item("a", seed=5)), draw(Item("a", seed=9))
    assert torch.equal(draw(Item("a", None, 5, 9, 0.0)), one)
    assert torch.equal(draw(Item("a", None, 5, 9, 1.0)), other)
    near, far = draw(Item("a", None, 5, 9, 0.02)), draw(Item("a", None, 5, 9, 0.5))
    assert 0 < (near - one).norm() < (far - one).norm()


def test_pictures_vary_one(tiny: Any) -> None:
    options: dict[str, Any] = {"seed": 5, "variation_seed": 70, "steps": 2, "sampler": "euler_ancestral"}
    varied = list(ldm.txt2img(tiny, "a", num_images=3, batch_size=2, variation_strength=0.4, **options))
    assert [(r.seed, r.item.variation_seed, r.item.variation_strength) for r in varied] == [
        (5, 70, 0.4),
        (5, 71, 0.4),
        (5, 72, 0.4),
    ]
    pictures: list[Image.Image] = [result.image for result in varied]
    assert len({picture.tobytes() for picture in pictures}) == 3
    options["variation_seed"] = 71
    alone = next(ldm.txt2img(tiny, "a", variation_strength=0.4, **options)).image
    assert max(abs(p - q) for p, q in zip(alone.tobytes(), pictures[1].tobytes(), strict=True)) <= 1
    (plain,) = ldm.txt2img(tiny, "a", variation_strength=0.0, **options)
    assert (
        plain.image.tobytes()
        == next(ldm.txt2img(tiny, "a", seed=5, steps=2, sampler="euler_ancestral")).image.tobytes()
    )


def test_seeds_count_where_nothing_varies() -> None:
    assert (
        make_items("a", None, 5, 2, 70, 0.0) == make_items("a", None, 5, 2) == [Item("a", None, 5), Item("a", None, 6)]
    )
    last = make_items("a", None, 2**32 - 1, 2, 0, 0.5)  # only what counts up needs room
    assert [(item.seed, item.variation_seed) for item in last] == [(2**32 - 1, 0), (2**32 - 1, 1)]


@pytest.mark.parametrize(
    ("variation", "message"),
    [
        ((7, None), "variation_seed is 7, and nothing says how far; give variation_strength"),
        ((None, 0.5), "variation_strength is 0.5, and nothing says where to; give variation_seed"),
        ((7, 1.5), "variation_strength is 1.5; it can be 0"),
        ((7, float("nan")), "variation_strength is nan; it can be 0"),
        ((-1, 0.5), "variation_seed -1 with 2 images leaves 0 … 4294967295"),
        ((2**32 - 1, 0.5), "variation_seed 4294967295 with 2 images leaves"),
    ],
)
def test_mistakes(variation: tuple[int | None, float | None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_items("a", None, 0, 2, *variation)
