"""Restart sampling: Xu et al. 2023, arXiv:2306.14878."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from ldm.models.diffusion.step import Denoise, Noise, Step, heun_step, intervals, level, renoise


def restart(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    restarts: int = 1,
    restart_min: float = 0.1,
    restart_max: float = 2.0,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """Heun's method, with `restarts` repetitions of the interval from restart_max down to restart_min, each after noise
    has been added at restart_min to return to restart_max.

    Both ends are rounded to the nearest of the given sigmas (in log sigma), the last excluded, and the way down visits
    the given sigmas between them. All this happens inside one step, at two more calls of denoise for each interval
    walked again. The added noise contracts accumulated errors. Where no sigma lies between the ends, this is Heun's
    method.

    Restart k draws the noise of an interval of its own, the k-th above restart_min, so that no two draws are equal. It
    is named by the ends that were asked for, not the rounded ones, so that 20 and 40 steps draw one noise.
    """
    pairs = intervals(sigmas)
    top, bottom = (_nearest([sigma for sigma, _ in pairs], end) for end in (restart_max, restart_min))
    for i, (sigma, sigma_next) in enumerate(pairs):
        x0 = denoise(x, level(sigma))
        x = heun_step(denoise, x, x0, sigma, sigma_next)
        if i + 1 == bottom:
            sigma_up = s_noise * math.sqrt(pairs[top][0] ** 2 - pairs[bottom][0] ** 2) if top < bottom else 0.0
            for k in range(restarts if sigma_up > 0 else 0):
                offset = k * (restart_max - restart_min)
                x = renoise(x, restart_min + offset, restart_max + offset, sigma_up, noise)
                for above, below in pairs[top:bottom]:
                    x0 = denoise(x, level(above))
                    x = heun_step(denoise, x, x0, above, below)
        yield Step(i, sigma_next, x, x0)


def _nearest(levels: list[float], sigma: float) -> int:
    return min(range(len(levels)), key=lambda i: abs(math.log(levels[i] / sigma)))
