"""Samplers for distilled models, which jump from any noise level to an estimate that needs little correction.

Both are defined on training timesteps, so they take the schedule; None is that of Stable Diffusion.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ldm.models.diffusion.schedule import NoiseSchedule
from ldm.models.diffusion.step import Denoise, Noise, Step, intervals, level, move, renoise


def lcm(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise, schedule: NoiseSchedule | None = None
) -> Iterator[Step]:
    """Latent consistency models: Luo et al. 2023, arXiv:2310.04378, algorithm 3. Jump to x0, and put all noise back.

    x0 is the consistency function, whose boundary condition makes it x at t = 0 (section 4.1, with the published
    models' sigma_data 1/2 and t counted tenfold).
    """
    schedule = NoiseSchedule() if schedule is None else schedule
    timesteps = _timesteps(schedule, sigmas)
    for i, (sigma, sigma_next) in enumerate(intervals(sigmas)):
        t = 10 * timesteps[i]
        c_skip, c_out = 0.25 / (t**2 + 0.25), t / math.sqrt(t**2 + 0.25)
        x0 = c_out * denoise(x, level(sigma)) + c_skip / math.sqrt(1 + sigma**2) * x
        x = renoise(x0, sigma, sigma_next, sigma_next, noise)
        yield Step(i, sigma_next, x, x0)


def tcd(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    eta: float = 0.3,
    schedule: NoiseSchedule | None = None,
) -> Iterator[Step]:
    """Trajectory consistency distillation: Zheng et al. 2024, arXiv:2402.19159, algorithm 4.

    Go down to timestep (1 - eta) * t_next, rounded down, and add noise up to t_next. eta is the paper's gamma: 0 is
    DDIM, and 1 goes down to the first training level each time.
    """
    schedule = NoiseSchedule() if schedule is None else schedule
    timesteps = _timesteps(schedule, sigmas)
    for i, (sigma, sigma_next) in enumerate(intervals(sigmas)):
        x0 = denoise(x, level(sigma))
        t = math.floor((1 - eta) * timesteps[i + 1] + 1e-6)  # whatever the last bits of a sigma say
        sigma_down = min(sigma_next, float(schedule.sigmas[t])) if eta > 0 else sigma_next
        sigma_up = math.sqrt(sigma_next**2 - sigma_down**2)
        x = renoise(move(x, x0, sigma, sigma_down), sigma, sigma_next, sigma_up, noise)
        yield Step(i, sigma_next, x, x0)


def _timesteps(schedule: NoiseSchedule, sigmas: Tensor) -> list[float]:
    """The fractional training timestep of each noise level; 0 for those below the first."""
    return schedule.sigma_to_t(sigmas.to("cpu", torch.float64)).tolist()
