"""What every sampler owes to the symmetries of the problem, whoever wrote it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count

import pytest
import torch
from torch import Tensor

from ldm.models.diffusion import SAMPLERS, SPACINGS, Conditioning, NoiseSchedule, Step, guided
from ldm.models.diffusion.step import Denoise

SCHEDULE = NoiseSchedule()
SIGMAS = SPACINGS["trailing"](SCHEDULE, 8)
ON_TIMESTEPS = [name for name in SAMPLERS if "schedule" in inspect.signature(SAMPLERS[name][0]).parameters]
LENGTHS: dict[str, dict[str, float]] = {  # options that are a noise level, or a size of x, with their defaults
    "restart": {"restart_min": 0.1, "restart_max": 2.0},
    "dpm_adaptive": {"atol": 0.0078},
}


@pytest.fixture
def draw(normal, last) -> Callable[..., Tensor]:
    """draw(name, denoise, x, sigmas, order=slice(None), **options): the result; call k for noise gets the same noise
    whatever it is for, with its images in that order."""

    def run(name: str, denoise: Denoise, x: Tensor, sigmas: Tensor, order: object = slice(None), **options) -> Tensor:
        calls, function = count(), SAMPLERS[name][0]
        if name in ON_TIMESTEPS:
            options["schedule"] = SCHEDULE
        steps: Iterator[Step] = partial(function, **options)(
            denoise, x, sigmas, noise=lambda *_: normal(f"noise.{next(calls)}")[order]
        )
        return last(steps)

    return run


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_order_of_a_batch(name, draw, mixture, normal, error):
    x = normal("x") * SIGMAS[0]
    plain = draw(name, mixture, x, SIGMAS)
    turned = draw(name, mixture, x.flip(0), SIGMAS, order=[1, 0])
    assert error(turned.flip(0), plain) < 1e-12
    assert error(turned, plain) > 0.1


NEAR_ZERO = ("dpm_adaptive", "lcm")  # the tolerance of one is relative to |x|; the other blends a little of x into x0


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in NEAR_ZERO])
def test_data_elsewhere_are_drawn_elsewhere(name, draw, mixture, normal, error):
    x, shift = normal("x") * SIGMAS[0], normal("shift", (1, 4, 8, 8))
    moved = draw(name, lambda x, sigma: mixture(x - shift, sigma) + shift, x + shift, SIGMAS)
    assert error(moved - shift, draw(name, mixture, x, SIGMAS)) < 1e-10


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in ON_TIMESTEPS])
def test_larger_data_are_drawn_larger(name, draw, mixture, normal, error):
    x, scale = normal("x") * SIGMAS[0], 3.0
    lengths = {option: value * scale for option, value in LENGTHS.get(name, {}).items()}
    scaled = draw(
        name, lambda x, sigma: mixture(x / scale, sigma / scale) * scale, x * scale, SIGMAS * scale, **lengths
    )
    assert error(scaled / scale, draw(name, mixture, x, SIGMAS)) < 1e-10


@pytest.mark.parametrize("name", SAMPLERS)
def test_guidance_of_scale_1_is_the_conditional_model(name, draw, mixture, normal, error):
    denoiser = lambda x, sigma, cond: mixture(x, sigma) + cond.context[:, :, None, None]  # noqa: E731
    cond, uncond = Conditioning(torch.full((2, 1), 0.5)), Conditioning(torch.full((2, 1), -1.0))
    x = normal("x") * SIGMAS[0]
    conditional = draw(name, lambda x, sigma: denoiser(x, sigma, cond), x, SIGMAS)
    assert torch.equal(draw(name, guided(denoiser, cond, uncond, 1.0), x, SIGMAS), conditional)
    assert error(draw(name, guided(denoiser, cond, uncond, 2.0), x, SIGMAS), conditional) > 0.1
