"""DPM-Solver with steps of its own choice: Lu et al. 2022, arXiv:2206.00927; stochastic with eta, as in k-diffusion.

Of the given sigmas only the first and the last above 0 are used: between them the solvers place their own. If the last
is 0, the way there is one Euler step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from ldm.models.diffusion.step import Denoise, Noise, Step, intervals, level, move, renoise, second_stage, split

SAFETY = 0.81
"""A step is accepted if the next may be at least that much of it."""


def dpm_fast(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise, eta: float = 0.0, s_noise: float = 1.0
) -> Iterator[Step]:
    """DPM-Solver-fast, appendix D.3: steps of order 3 and equal length in log sigma, the last ones of lower order.

    n sigmas are n calls of denoise, not n steps: a `Step` comes after up to three calls, and its i counts them.
    """
    n, (start, end) = len(intervals(sigmas)), _ends(sigmas)
    i, orders = -1, _orders(n if sigmas[-1] > 0 else n - 1)  # one call is for the step to 0
    grid = [start * (end / start) ** (k / len(orders)) for k in range(len(orders))]
    for order, (sigma, sigma_next) in zip(orders, pairwise([*grid, end]), strict=True):
        x0 = denoise(x, level(sigma))
        sigma_down, sigma_up = _split(sigma, sigma_next, end, eta)
        x, _ = _solve(denoise, x, x0, sigma, sigma_down, order)
        x = renoise(x, sigma, sigma_next, s_noise * sigma_up, noise)
        i += order
        yield Step(i, sigma_next, x, x0)
    if i < n - 1:
        x0 = denoise(x, level(end))
        yield Step(n - 1, 0.0, move(x, x0, end, 0.0), x0)


def dpm_adaptive(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    order: int = 3,
    rtol: float = 0.05,
    atol: float = 0.0078,
    h_init: float = 0.05,
    eta: float = 0.0,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """DPM-Solver-12 or -23 (appendix C): as many steps, of `order` calls each, as the tolerance asks for.

    A step, at first h_init long in log sigma, is repeated with a shorter length if the solutions of two orders differ
    by more than about max(atol, rtol |x|) (root mean square over an image). The lengths are those that the worst image
    of a batch needs: in other company an image changes, within the tolerance. A `Step` comes when at least one more of
    the given sigmas is behind, so there are n or fewer.
    """
    if order not in (2, 3) or not rtol > 0:
        raise ValueError(f"order is {order}, rtol {rtol}; dpm_adaptive has order 2 or 3 and an rtol above 0")
    n, (sigma, end) = len(intervals(sigmas)), _ends(sigmas)
    h, i, previous, x0 = h_init, -1, x, None
    while sigma > end:
        sigma_next = sigma * math.exp(-h) if h < math.log(sigma / end) - 1e-5 else end  # where h is nan it ends, too
        sigma_down, sigma_up = _split(sigma, sigma_next, end, eta)
        x0 = denoise(x, level(sigma)) if x0 is None else x0  # known where a step is repeated
        high, low = _solve(denoise, x, x0, sigma, sigma_down, order)
        factor = (_error(high, low, previous, rtol, atol) + 1e-8) ** (-1 / (1.5 if eta else order))  # as in k-diffusion
        factor = 1 + math.atan(factor - 1)
        h *= factor
        if factor < SAFETY:
            continue
        x, previous = renoise(high, sigma, sigma_next, s_noise * sigma_up, noise), low
        sigma, before, i = sigma_next, i, int((sigmas >= sigma_next).sum()) - 2
        if i > before:
            yield Step(i, sigma, x, x0)
        x0 = None
    if sigmas[-1] == 0:
        x0 = denoise(x, level(end))
        yield Step(n - 1, 0.0, move(x, x0, end, 0.0), x0)


def _solve(
    denoise: Denoise, x: Tensor, x0: Tensor, sigma: float, sigma_next: float, order: int
) -> tuple[Tensor, Tensor]:
    """x at sigma_next by the solver of that order, and by one of an order less that needs no more calls.

    Order 3 is algorithm 2 of the paper with r1 = 1/3 and r2 = 2/3.
    """
    euler = move(x, x0, sigma, sigma_next)
    if order == 1:
        return euler, euler
    if order == 2:
        return second_stage(denoise, x, x0, sigma, math.sqrt(sigma * sigma_next), sigma_next, 1.0), euler

    def bend(s: float) -> float:  # s ((e^h - 1) / h - 1), h = log(sigma / s)
        return (sigma - s) / math.log(sigma / s) - s

    slope = (x - x0) / sigma
    first, second = (sigma * (sigma_next / sigma) ** (k / 3) for k in (1, 2))
    x_first = move(x, x0, sigma, first)
    turn = (x_first - denoise(x_first, level(first))) / first - slope
    x_second = move(x, x0, sigma, second) - 2 * bend(second) * turn
    further = (x_second - denoise(x_second, level(second))) / second - slope
    return euler - 1.5 * bend(sigma_next) * further, euler - 1.5 * (sigma - sigma_next) * turn


def _ends(sigmas: Tensor) -> tuple[float, float]:
    """The first, and the last above 0."""
    return float(sigmas[0]), float(sigmas[sigmas > 0][-1])


def _orders(calls: int) -> list[int]:
    """Of the steps of dpm_fast; they add up to the number of calls."""
    threes, rest = divmod(calls, 3)
    if rest > 0 or threes == 0:
        return [3] * threes + [rest] * (rest > 0)
    return [3] * (threes - 1) + [2, 1]


def _split(sigma: float, sigma_next: float, end: float, eta: float) -> tuple[float, float]:
    """As `split`, but never down below the end."""
    sigma_down = max(split(sigma, sigma_next, eta)[0], end)
    return sigma_down, math.sqrt(sigma_next**2 - sigma_down**2)


def _error(high: Tensor, low: Tensor, previous: Tensor, rtol: float, atol: float) -> float:
    """Of the worst image, in units of the tolerance."""
    tolerance = (rtol * torch.maximum(low.abs(), previous.abs())).clamp(min=atol)
    error = ((high - low) / tolerance).detach().reshape(len(high), -1)  # (B, C*h*w)
    return float(error.square().mean(1).sqrt().max())
