"""Euler's method and two of second order, each with churn: Karras et al. 2022, arXiv:2206.00364, algorithm 2.

Churn adds fresh noise before a step, from sigma up to sigma_hat, and takes the step from there. Its strength s_churn
is spread over the n steps, of which those with s_tmin <= sigma <= s_tmax get a share; s_noise scales the noise itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from torch import Tensor

from ldm.models.diffusion.step import Denoise, Noise, Step, heun_step, intervals, level, move, renoise, second_stage

OneStep = Callable[[Tensor, Tensor, float, float], Tensor]
"""(x, x0, sigma, sigma_next) → x at sigma_next."""

Churn = tuple[float, float, float, float]
"""s_churn, s_tmin, s_tmax, s_noise."""


def euler(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """First order, one call of denoise a step. Without churn it is DDIM."""
    return _walk(denoise, x, sigmas, noise, (s_churn, s_tmin, s_tmax, s_noise), move)


def heun(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """Second order, the mean of the directions at both ends.

    Two calls of denoise a step, one in a step to 0 or from `step.PURE_NOISE`.
    """

    def one_step(x: Tensor, x0: Tensor, sigma: float, sigma_next: float) -> Tensor:
        return heun_step(denoise, x, x0, sigma, sigma_next)

    return _walk(denoise, x, sigmas, noise, (s_churn, s_tmin, s_tmax, s_noise), one_step)


def dpm_2(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """Second order, the direction half-way in log sigma: DPM-Solver-2 (Lu et al. 2022, arXiv:2206.00927, algorithm 1).

    Two calls of denoise a step, one in a step to 0 or from `step.PURE_NOISE`.
    """

    def one_step(x: Tensor, x0: Tensor, sigma: float, sigma_next: float) -> Tensor:
        return second_stage(denoise, x, x0, sigma, math.sqrt(sigma * sigma_next), sigma_next, 1.0)

    return _walk(denoise, x, sigmas, noise, (s_churn, s_tmin, s_tmax, s_noise), one_step)


def _walk(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, churn: Churn, one_step: OneStep) -> Iterator[Step]:
    pairs = intervals(sigmas)
    s_churn, s_tmin, s_tmax, s_noise = churn
    gamma = min(s_churn / len(pairs), math.sqrt(2) - 1)
    for i, (sigma, sigma_next) in enumerate(pairs):
        sigma_hat = sigma * (1 + gamma) if s_tmin <= sigma <= s_tmax else sigma
        x = renoise(x, sigma, sigma_next, s_noise * math.sqrt(sigma_hat**2 - sigma**2), noise)
        x0 = denoise(x, level(sigma_hat))
        x = one_step(x, x0, sigma_hat, sigma_next)
        yield Step(i, sigma_next, x, x0)
