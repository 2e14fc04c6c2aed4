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
    """Heun's method, which at restart_min goes back: `restarts` times noise up to restart_max and the way down again.

    The ends are those of the given sigmas, but for the last, that are nearest to these (in log sigma), and the way down
    is over the given sigmas between them: all this happens inside one step, which has two calls of denoise more for
    each, `restarts` times. The noise contracts what errors have gathered. With too few sigmas to have any between, it
    is Heun's method.

    Climb k asks for the noise of an interval of its own, the k-th above restart_min, so that no two climbs are alike.
    """
    pairs = intervals(sigmas)
    top, bottom = (_nearest([sigma for sigma, _ in pairs], end) for end in (restart_max, restart_min))
    for i, (sigma, sigma_next) in enumerate(pairs):
        x0 = denoise(x, level(sigma))
        x = heun_step(denoise, x, x0, sigma, sigma_next)
        if i + 1 == bottom:
            low, high = pairs[bottom][0], pairs[top][0]
            for k in range(restarts if s_noise > 0 and top < bottom else 0):
                offset = k * (high - low)
                x = renoise(x, low + offset, high + offset, s_noise * math.sqrt(high**2 - low**2), noise)
                for above, below in pairs[top:bottom]:
                    x0 = denoise(x, level(above))
                    x = heun_step(denoise, x, x0, above, below)
        yield Step(i, sigma_next, x, x0)


def _nearest(levels: list[float], sigma: float) -> int:
    return min(range(len(levels)), key=lambda i: abs(math.log(levels[i] / sigma)))
