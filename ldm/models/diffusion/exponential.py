"""Exponential multistep methods: x0 is a polynomial in log sigma through its last values; the rest is solved exactly.

From sigma to sigma_next, with h = log(sigma / sigma_next), the probability-flow ODE has the solution

    x_next = (sigma_next / sigma) x + integral over s in [0, 1] of x0(s) h e^(-h (1 - s)),

s being the share of the step in log sigma. One call of denoise a step; the step to 0 is Euler's, which ends on x0.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence

from torch import Tensor

from ldm.models.diffusion.multistep import quadrature
from ldm.models.diffusion.step import Denoise, Noise, Step, intervals, level, move

Estimate = tuple[float, Tensor]
"""sigma, and x0 there."""


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise) -> Iterator[Step]:
    """DPM-Solver++(2M): Lu et al. 2022, arXiv:2211.01095, algorithm 2."""
    return _predict(denoise, x, sigmas, "bh2")


def res_multistep(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise) -> Iterator[Step]:
    """The refined exponential solver with two estimates: Zhang et al. 2023, arXiv:2308.02157, its multistep form."""
    return _predict(denoise, x, sigmas, "exact")


def unipc(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise, order: int = 2) -> Iterator[Step]:
    """UniPC-`order` with B1(h): Zhao et al. 2023, arXiv:2302.04867, algorithms 5 to 8 (x0-prediction).

    Once x0 is known at the end of a step, the step is taken again with it, one order higher; this costs no call. The
    last steps are of lower order, as many as there are steps left, and the last is not corrected.
    """
    return _predict_and_correct(denoise, x, sigmas, order, "bh1")


def unipc_bh2(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise, order: int = 2) -> Iterator[Step]:
    """`unipc` with B2(h), which it has in common with DPM-Solver++."""
    return _predict_and_correct(denoise, x, sigmas, order, "bh2")


def _predict(denoise: Denoise, x: Tensor, sigmas: Tensor, kind: str) -> Iterator[Step]:
    estimates: deque[Estimate] = deque(maxlen=2)
    for i, (sigma, sigma_next) in enumerate(intervals(sigmas)):
        x0 = denoise(x, level(sigma))
        estimates.appendleft((sigma, x0))
        x = _exponential_step(x, list(estimates), sigma_next, kind)
        yield Step(i, sigma_next, x, x0)


def _predict_and_correct(denoise: Denoise, x: Tensor, sigmas: Tensor, order: int, kind: str) -> Iterator[Step]:
    pairs = intervals(sigmas)
    estimates: list[Estimate] = []  # of the last step, where it began first
    start = x
    for i, (sigma, sigma_next) in enumerate(pairs):
        x0 = denoise(x, level(sigma))
        if estimates:
            x = _exponential_step(start, [*estimates, (sigma, x0)], sigma, kind)
        start, estimates = x, [(sigma, x0), *estimates][: min(order, len(pairs) - i)]
        x = _exponential_step(start, estimates, sigma_next, kind)
        yield Step(i, sigma_next, x, x0)


def _exponential_step(x: Tensor, estimates: Sequence[Estimate], sigma_next: float, kind: str) -> Tensor:
    """x, at the sigma of the first estimate, moved to sigma_next. The others lie before it, or one at sigma_next.

    Two estimates determine a weight up to terms that vanish with the step: besides the exact one, h / 2 (bh1) and
    (1 - e^-h) / 2 (bh2) are in use.
    """
    (sigma, x0), *others = estimates
    moved = move(x, x0, sigma, sigma_next)
    if sigma_next == 0 or not others:
        return moved
    h = math.log(sigma / sigma_next)
    nodes = [math.log(sigma / other) / h for other, _ in others]
    if len(others) == 1 and kind != "exact":
        weights = [(h if kind == "bh1" else -math.expm1(-h)) / (2 * nodes[0])]
    else:
        weights = [h * weight for weight in quadrature([1.0, *(1 - node for node in nodes)], -h)[1:]]
    for weight, (_, other) in zip(weights, others, strict=True):
        moved = moved + weight * (other - x0)
    return moved
