"""Adams-Bashforth methods: the direction (x - x0) / sigma is a polynomial through its last values, integrated exactly.

One call of denoise a step. They differ in the variable of that polynomial; the first steps are of lower order.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import islice

from torch import Tensor

from ldm.models.diffusion.step import Denoise, Noise, Step, heun_step, intervals, level, move

Weigh = Callable[[Sequence[float], float], list[float]]
"""(sigmas of the directions, the newest first; sigma_next) → the weight of each; their sum is sigma_next - sigma."""


def lms(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise, order: int = 4) -> Iterator[Step]:
    """A polynomial in sigma, through the last `order` directions, even in the step to 0: k-diffusion's lms."""
    return _adams(denoise, x, sigmas, order, _in_sigma)


def deis(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise, order: int = 2) -> Iterator[Step]:
    """A polynomial in log sigma: tAB-DEIS in log rho of Zhang & Chen 2022, arXiv:2204.13902. Euler's step to 0."""
    return _adams(denoise, x, sigmas, order, _in_log_sigma)


def ipndm(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise, order: int = 4) -> Iterator[Step]:
    """The classical weights, as if the sigmas were equidistant: iPNDM of Zhang & Chen 2022, arXiv:2204.13902.

    Euler's step to 0.
    """
    return _adams(denoise, x, sigmas, order, _equidistant)


def plms(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise, order: int = 4) -> Iterator[Step]:
    """PNDM without its Runge-Kutta steps: Liu et al. 2022, arXiv:2202.09778, eq. 12, as in Stable Diffusion.

    It is ipndm with Heun's method for the first step, so one call of denoise more, unless that step goes to 0.
    """
    return _adams(denoise, x, sigmas, order, _equidistant, warm_up=True)


def _adams(
    denoise: Denoise, x: Tensor, sigmas: Tensor, order: int, weigh: Weigh, warm_up: bool = False
) -> Iterator[Step]:
    slopes: deque[Tensor] = deque(maxlen=order)
    levels: deque[float] = deque(maxlen=order)
    for i, (sigma, sigma_next) in enumerate(intervals(sigmas)):
        x0 = denoise(x, level(sigma))
        slopes.appendleft((x - x0) / sigma)
        levels.appendleft(sigma)
        if warm_up and i == 0:
            x = heun_step(denoise, x, x0, sigma, sigma_next)
        else:
            weights = weigh(levels, sigma_next)  # that of the newest direction is what makes up the sum: Euler's step
            x = move(x, x0, sigma, sigma_next)
            for weight, slope in zip(weights[1:], islice(slopes, 1, len(weights)), strict=True):
                x = x + weight * (slope - slopes[0])
        yield Step(i, sigma_next, x, x0)


def _in_sigma(levels: Sequence[float], sigma_next: float) -> list[float]:
    span = sigma_next - levels[0]
    return [span * weight for weight in quadrature([(sigma - levels[0]) / span for sigma in levels])]


def _in_log_sigma(levels: Sequence[float], sigma_next: float) -> list[float]:
    if sigma_next == 0:
        return [-levels[0]]
    span = math.log(sigma_next / levels[0])  # d sigma is sigma e^(span s) span ds, for s from 0 to 1
    nodes = [math.log(sigma / levels[0]) / span for sigma in levels]
    return [levels[0] * span * weight for weight in quadrature(nodes, span)]


def _equidistant(levels: Sequence[float], sigma_next: float) -> list[float]:
    if sigma_next == 0:
        return [-levels[0]]
    return [(sigma_next - levels[0]) * weight for weight in _adams_bashforth(len(levels))]


@cache
def _adams_bashforth(order: int) -> list[float]:
    """The classical weights, the newest direction's first: (3/2, -1/2) at order 2."""
    return quadrature([-j for j in range(order)])


def quadrature(nodes: Sequence[float], rate: float = 0.0) -> list[float]:
    """The weights that integrate f(s) e^(rate s) over [0, 1], given f at the nodes, exactly where f is a polynomial of
    degree < len(nodes). rate <= 0.

    They solve sum_j w_j nodes_j^k = (moment k) for each k, by Bjorck & Pereyra 1970, "Solution of Vandermonde systems".
    """
    n = len(nodes)
    w = [_moment(k, rate) for k in range(n)]
    for k in range(n - 1):
        for j in range(n - 1, k, -1):
            w[j] -= nodes[k] * w[j - 1]
    for k in range(n - 2, -1, -1):
        for j in range(k + 1, n):
            w[j] /= nodes[j] - nodes[j - k - 1]
        for j in range(k, n - 1):
            w[j] -= w[j + 1]
    return w


def _moment(k: int, rate: float) -> float:
    """The integral of s^k e^(rate s) over [0, 1], rate <= 0, by a series of positive terms."""
    term = total = 1 / (k + 1)
    j = k + 1
    while term > 1e-17 * total:
        j += 1
        term *= -rate / j
        total += term
    return math.exp(rate) * total
