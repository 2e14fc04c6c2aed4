"""What all samplers share: the types, and one step from sigma to sigma_next.

Coordinates are x = z + sigma * noise everywhere. The variance-preserving ones of the DDPM and DDIM papers are
x / sqrt(1 + sigma^2), and their alphas_cumprod is 1 / (1 + sigma^2).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x, sigma) → x0: x (B, C, h, w), sigma a scalar tensor; x0 like x."""

Noise = Callable[[Tensor, float, float], Tensor]
"""(x, sigma, sigma_next) → standard-normal noise like x, for that interval."""

PURE_NOISE = 2.0**14
"""A sigma above this one, such as the last of a zero-terminal-SNR schedule, stands for infinity: x holds no signal."""


class Step(NamedTuple):
    """The state after step i: x at noise level sigma, and the estimate x0 at the step's start that led there.

    i counts the given sigmas that are behind, and always grows; the last is n - 1, whatever a sampler skips.
    """

    i: int
    sigma: float
    x: Tensor
    x0: Tensor


def intervals(sigmas: Tensor) -> list[tuple[float, float]]:
    """(sigma, sigma_next) of each step as plain numbers: float64 arithmetic on any device, and no synchronisation."""
    pairs = list(pairwise(sigmas.tolist()))
    if not pairs or any(not math.inf > sigma > sigma_next >= 0 for sigma, sigma_next in pairs):
        raise ValueError(f"sigmas must fall strictly, from a number above 0 to 0 or above; got {sigmas.tolist()}")
    return pairs


def level(sigma: float) -> Tensor:
    """A noise level as a denoiser takes it."""
    return torch.tensor(sigma, dtype=torch.float64, device="cpu")


def move(x: Tensor, x0: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """Along the straight line through x and x0 to another noise level: Euler's step of the probability-flow ODE.

    Written as a blend, it ends exactly on x0 at sigma_next = 0, and loses no digits at a huge sigma.
    """
    return x0 + (sigma_next / sigma) * (x - x0)


def split(sigma: float, sigma_next: float, eta: float) -> tuple[float, float]:
    """(sigma_down, sigma_up): go down to sigma_down, then add noise of sigma_up; sigma_next^2 is the sum of squares.

    sigma_up is eta times the standard deviation of q(x_next | x, z), at most sigma_next: DDIM's sigma (Song et al.
    2020, arXiv:2010.02502, eq. 16) in our coordinates, and k-diffusion's ancestral step.
    """
    spread = sigma_next * (1 - (sigma_next / sigma) ** 2) ** 0.5
    sigma_up = min(eta * spread, sigma_next)
    return (sigma_next**2 - sigma_up**2) ** 0.5, sigma_up


def ancestral_step(
    x: Tensor, x0: Tensor, sigma: float, sigma_next: float, eta: float, noise: Noise, s_noise: float
) -> Tensor:
    """x at sigma_next, of which a part that grows with eta is fresh noise."""
    sigma_down, sigma_up = split(sigma, sigma_next, eta)
    return renoise(move(x, x0, sigma, sigma_down), sigma, sigma_next, s_noise * sigma_up, noise)


def renoise(x: Tensor, sigma: float, sigma_next: float, sigma_up: float, noise: Noise) -> Tensor:
    """x with the interval's noise on it; none is drawn where it would be multiplied by zero."""
    return x + sigma_up * noise(x, sigma, sigma_next) if sigma_up > 0 else x


def second_stage(
    denoise: Denoise, x: Tensor, x0: Tensor, sigma: float, sigma_mid: float, sigma_next: float, weight: float
) -> Tensor:
    """x at sigma_next by a Runge-Kutta method of two stages: the direction (x - x0) / sigma where Euler's step reaches
    sigma_mid counts `weight`, that at the start the rest.

    Both points are on one line, so the two directions differ by (x0 - x0_mid) / sigma_mid; nothing large cancels.
    Euler's step, with no second call, to 0 and from PURE_NOISE, where a small difference of the two estimates would be
    multiplied by sigma / sigma_mid and land far outside of the data.
    """
    if sigma_next == 0 or sigma > PURE_NOISE:
        return move(x, x0, sigma, sigma_next)
    x0_mid = denoise(move(x, x0, sigma, sigma_mid), level(sigma_mid))
    return move(x, x0, sigma, sigma_next) + weight * (sigma_next - sigma) / sigma_mid * (x0 - x0_mid)


def heun_step(denoise: Denoise, x: Tensor, x0: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """x at sigma_next by the mean of the directions at both ends; at 0, where there is none, Euler's step."""
    return second_stage(denoise, x, x0, sigma, sigma_next, sigma_next, 0.5)
