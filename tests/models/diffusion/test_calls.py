"""How often samplers call the denoiser, and where, for every number of steps."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ldm.models.diffusion import SAMPLERS, SPACINGS, NoiseSchedule, Step
from ldm.models.diffusion.dpm_solver import dpm_adaptive

SCHEDULE = NoiseSchedule()
OWN_LEVELS = {"dpm_fast", "dpm_adaptive"}  # samplers that do not stop at each of the given sigmas


def no_noise(x: Tensor, sigma: float, sigma_next: float) -> Tensor:
    raise AssertionError("noise was drawn where it would be multiplied by zero")


EVERY_N = [*range(1, 61), 100, 250, 333, 999, 1000]
ONCE = ("ddim", "plms", "ipndm", "euler", "lms", "dpm_fast", "dpmpp_2m", "unipc", "unipc_bh2", "deis", "res_multistep")
TWICE = ("heun", "dpm_2", "restart")


def calls_of(name: str, sigmas: Tensor) -> int:
    """How often a sampler calls the denoiser (dpm_adaptive cannot know)."""
    levels = sigmas.tolist()
    n, ends_in_zero = len(levels) - 1, levels[-1] == 0
    if name in ONCE:
        return n + (name == "plms" and not (n == 1 and ends_in_zero))
    walked = 2 * n - ends_in_zero
    if name == "restart":
        top, bottom = (min(range(n), key=lambda i: abs(math.log(levels[i] / end))) for end in (2.0, 0.1))
        walked += 2 * max(0, bottom - top)
    return walked


class Counting:
    """A denoiser of numbers, which make a million steps cheap, that knows how often it was called, and where."""

    def __init__(self, highest: float) -> None:
        self.calls, self.highest = 0, highest

    def __call__(self, x: float, level: float) -> float:
        self.calls += 1
        assert 0 < level <= self.highest
        return x * 0.25 / (0.25 + level**2)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_calls_of_every_sampler_for_every_number_of_steps(spacing, plain_levels):
    for n in EVERY_N:
        sigmas = SPACINGS[spacing](SCHEDULE, n)
        for name in (*ONCE, *TWICE):
            for levels in (sigmas, sigmas[:-1])[: 2 if 2 <= n <= 20 else 1]:  # the last may be above 0
                denoise = Counting(float(levels[0]))
                steps = list(SAMPLERS[name][0](denoise, 1.0, levels, noise=lambda *_: 0.0))
                assert denoise.calls == calls_of(name, levels), (name, n)
                if name not in OWN_LEVELS:
                    assert [step.i for step in steps] == list(range(len(levels) - 1))
                    assert [step.sigma for step in steps] == levels[1:].tolist()
                assert (steps[-1].i, steps[-1].sigma) == (len(levels) - 2, float(levels[-1]))
                assert math.isfinite(steps[-1].x) and abs(steps[-1].x) < 1


@pytest.mark.parametrize("spacing", SPACINGS)
def test_calls_of_dpm_adaptive_depend_on_the_ends_alone(spacing, plain_levels):
    def run(sigmas: Tensor) -> tuple[list[Step], int]:
        denoise = Counting(float(sigmas[0]))
        return list(dpm_adaptive(denoise, torch.ones(1, dtype=torch.float64), sigmas, noise=no_noise)), denoise.calls

    @cache
    def alone(start: float, end: float) -> tuple[list[Step], int]:
        return run(torch.tensor([start, end, 0.0], dtype=torch.float64))

    for n in EVERY_N[1:]:
        sigmas = SPACINGS[spacing](SCHEDULE, n)
        (steps, calls), (expected, expected_calls) = run(sigmas), alone(*sigmas[[0, -2]].tolist())
        assert (steps[-1].x.item(), calls) == (expected[-1].x.item(), expected_calls)
        assert (steps[-1].i, steps[-1].sigma, steps[-1].x0) == (n - 1, 0, steps[-1].x)
        assert all(before.i < step.i for before, step in pairwise(steps))
        for step in steps:
            assert sigmas[step.i + 1] >= step.sigma and (step.i == n - 1 or sigmas[step.i + 2] < step.sigma)


def test_dpm_adaptive_repeats_a_step_at_the_cost_of_two_calls(mixture, normal, last):
    sigmas, calls = torch.tensor([14.0, 0.03, 0.0], dtype=torch.float64), []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        calls.append(float(sigma))
        return mixture(x, sigma)

    last(dpm_adaptive(denoise, normal("x") * 14, sigmas, noise=no_noise, h_init=5.0))
    begun = [sigma for sigma in calls if sigma in (calls[0], calls[-1])]
    assert begun == [14.0, 0.03]  # where a step begins, x0 is asked for once
    assert calls[1] == pytest.approx(14 * math.exp(-5 / 3)) and calls[3] > calls[1]


def test_dpm_adaptive_ends_where_all_is_lost(normal):
    sigmas = torch.tensor([14.0, 0.03, 0.0], dtype=torch.float64)
    steps = list(dpm_adaptive(lambda x, sigma: x * math.nan, normal("x") * 14, sigmas, noise=no_noise))
    assert steps[-1].sigma == 0 and bool(steps[-1].x.isnan().all())
    for options in ({"order": 4}, {"rtol": 0.0}, {"rtol": math.nan}):
        with pytest.raises(ValueError, match="dpm_adaptive has order 2 or 3 and an rtol above 0"):
            next(dpm_adaptive(lambda x, sigma: x, normal("x"), sigmas, noise=no_noise, **options))
