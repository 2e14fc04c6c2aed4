"""Ancestral samplers of k-diffusion (Karras et al. 2022, arXiv:2206.00364, is where their name is from): each step
solves the probability-flow ODE down to sigma_down, below sigma_next, and adds noise back up to it (`step.split`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from torch import Tensor

from ldm.models.diffusion.ddim import ddim
from ldm.models.diffusion.step import PURE_NOISE, Denoise, Noise, Step, ancestral_step, intervals, level, move, split


def euler_ancestral(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise, eta: float = 1.0, s_noise: float = 1.0
) -> Iterator[Step]:
    """Euler's method: DDIM with its noise, under the name and with the default that k-diffusion gave it."""
    return ddim(denoise, x, sigmas, noise=noise, eta=eta, s_noise=s_noise)


def dpm_2_ancestral(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise, eta: float = 1.0, s_noise: float = 1.0
) -> Iterator[Step]:
    """DPM-Solver-2 (Lu et al. 2022, arXiv:2206.00927, algorithm 1): along the slope (x - x0) / sigma of the middle.

    Second order at eta 0; two calls of denoise a step, one in a step to 0 or from PURE_NOISE.
    """
    return _midpoint(denoise, x, sigmas, noise, eta, s_noise, weight=lambda sigma, middle: sigma / middle)


def dpmpp_2s_ancestral(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise, eta: float = 1.0, s_noise: float = 1.0
) -> Iterator[Step]:
    """DPM-Solver++(2S) (Lu et al. 2022, arXiv:2211.01095, algorithm 1): towards the estimate of the middle.

    Second order at eta 0; two calls of denoise a step, one in a step to 0 or from PURE_NOISE.
    """
    return _midpoint(denoise, x, sigmas, noise, eta, s_noise, weight=lambda sigma, middle: 1.0)


def _midpoint(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    eta: float,
    s_noise: float,
    weight: Callable[[float, float], float],
) -> Iterator[Step]:
    """Euler steps towards x0 + weight * (x0 of the middle - x0), the middle being that of log(sigma).

    With the weight sigma / middle this is the step along the slope of the middle, for
    x - sigma * (x_middle - x0_middle) / middle = x0 + sigma / middle * (x0_middle - x0), where no large numbers cancel.
    """
    for i, (sigma, sigma_next) in enumerate(intervals(sigmas)):
        x0 = towards = denoise(x, level(sigma))
        sigma_down, _ = split(sigma, sigma_next, eta)
        if sigma_down > 0 and sigma <= PURE_NOISE:
            middle = math.sqrt(sigma * sigma_down)
            x0_middle = denoise(move(x, x0, sigma, middle), level(middle))
            towards = x0 + weight(sigma, middle) * (x0_middle - x0)
        x = ancestral_step(x, towards, sigma, sigma_next, eta, noise, s_noise)
        yield Step(i, sigma_next, x, x0)
