"""DPM-Solver++ for the diffusion SDE: Lu et al. 2022, arXiv:2211.01095, and k-diffusion, whose 3M is its own.

All solve, with h = log(sigma / sigma_next), between noise levels

    x_next = exp(-H) x + (1 - exp(-H)) x0 + sigma_next sqrt(1 - exp(-2 eta h)) noise,    H = (1 + eta) h

exactly for a constant x0. They differ in the estimate they use for x0. eta 1 is the paper's SDE, 0 the
probability-flow ODE.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from torch import Tensor

from ldm.models.diffusion.step import Denoise, Noise, Step, ancestral_step, intervals, level, move, renoise


def dpmpp_sde(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise, eta: float = 1.0, s_noise: float = 1.0
) -> Iterator[Step]:
    """Single step: towards the estimate of the middle of log(sigma), to which an ancestral step leads.

    Two calls of denoise and two draws a step, of noise over half the interval and over all of it; to 0 one call.
    """
    for i, (sigma, sigma_next) in enumerate(intervals(sigmas)):
        x0 = towards = denoise(x, level(sigma))
        if sigma_next > 0:
            middle = math.sqrt(sigma * sigma_next)
            x_middle = ancestral_step(x, x0, sigma, middle, eta, noise, s_noise)
            towards = denoise(x_middle, level(middle))
        x = ancestral_step(x, towards, sigma, sigma_next, eta, noise, s_noise)
        yield Step(i, sigma_next, x, x0)


def dpmpp_2m_sde(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise, eta: float = 1.0, s_noise: float = 1.0
) -> Iterator[Step]:
    """Multistep, second order, by the midpoint's formula; with eta 0 it is dpmpp_2m. One call of denoise a step."""
    return _multistep(denoise, x, sigmas, noise, eta, s_noise, lambda last, h, total: _line(last, h, 0.5))


def dpmpp_2m_sde_heun(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise, eta: float = 1.0, s_noise: float = 1.0
) -> Iterator[Step]:
    """Multistep, second order, exact for an x0 that is linear in log(sigma). One call of denoise a step."""
    return _multistep(denoise, x, sigmas, noise, eta, s_noise, lambda last, h, total: _line(last, h, _first(total)))


def dpmpp_3m_sde(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise, eta: float = 1.0, s_noise: float = 1.0
) -> Iterator[Step]:
    """Multistep, a parabola in log(sigma) through the last three x0. One call of denoise a step.

    As in k-diffusion and diffusers, the quadratic term has half the weight that a third-order method needs. So this is
    second order, and its pictures are those of the other implementations.
    """
    return _multistep(denoise, x, sigmas, noise, eta, s_noise, _parabola)


Last = list[tuple[float, Tensor]]
"""(-log(sigma), x0) of the last calls of denoise, the newest first."""


def _multistep(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    eta: float,
    s_noise: float,
    mean: Callable[[Last, float, float], Tensor],
) -> Iterator[Step]:
    """Steps towards mean(last, h, H), the mean of an extrapolated x0 over the interval, weighted as the SDE does."""
    last: Last = []
    for i, (sigma, sigma_next) in enumerate(intervals(sigmas)):
        x0 = denoise(x, level(sigma))
        last = [(-math.log(sigma), x0), *last[:2]]
        if sigma_next == 0:
            x = x0
        else:
            h = math.log(sigma / sigma_next)
            sigma_down, sigma_up = sigma_next * math.exp(-eta * h), sigma_next * math.sqrt(-math.expm1(-2 * eta * h))
            x = move(x, mean(last, h, (1 + eta) * h), sigma, sigma_down)
            x = renoise(x, sigma, sigma_next, s_noise * sigma_up, noise)
        yield Step(i, sigma_next, x, x0)


def _line(last: Last, h: float, share: float) -> Tensor:
    """The value at that share of h ahead, of the line through the last two x0."""
    (here, x0), *before = last
    return x0 + share * h * _slope(last[0], before[0]) if before else x0


def _parabola(last: Last, h: float, total: float) -> Tensor:
    if len(last) < 3:
        return _line(last, h, _first(total))
    first, second = _slope(last[0], last[1]), _slope(last[1], last[2])
    bend = (first - second) / (last[0][0] - last[2][0])  # half the second derivative
    here = first + bend * (last[0][0] - last[1][0])  # the slope at the newest
    return last[0][1] + _first(total) * h * here + _second(total) / 2 * h**2 * bend  # a parabola's has no / 2


def _slope(end: tuple[float, Tensor], start: tuple[float, Tensor]) -> Tensor:
    return (end[1] - start[1]) / (end[0] - start[0])


def _first(total: float) -> float:
    """The mean of s over 0 … 1 under the weight exp(total * s): how far ahead a line is to be read."""
    return 1 / -math.expm1(-total) - 1 / total


def _second(total: float) -> float:
    """The mean of s^2, likewise."""
    return 1 / -math.expm1(-total) - 2 / total * _first(total)
