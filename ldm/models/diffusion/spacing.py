"""Which noise levels a sampler visits: n + 1 sigmas, float64 on the CPU, strictly decreasing, the last one 0.

Names as in Lin et al. 2023, arXiv:2305.08891, table 2, for timesteps 0 … T - 1. All give exactly n steps, n = 1 … T.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ldm.models.diffusion.schedule import NoiseSchedule


def uniform(schedule: NoiseSchedule, n: int) -> Tensor:
    """`leading`, the DDIM of Stable Diffusion: t = 1, 1 + T/n, 1 + 2T/n … (rounded down), so pure noise is not visited.

    The 1 is the offset of the original code, which leaves the table at n = T; there, t = 0 … T - 1.
    """
    total = _checked(schedule, n)
    offset = 1 if n < total else 0
    t = torch.tensor([i * total // n + offset for i in reversed(range(n))], dtype=torch.float64, device="cpu")
    return _ending_in_zero(schedule.t_to_sigma(t))


def trailing(schedule: NoiseSchedule, n: int) -> Tensor:
    """t = T - 1, T - 1 - T/n … (rounded): starts at the last training level. The one to use with few steps."""
    total = _checked(schedule, n)
    t = (torch.arange(n, 0, -1, dtype=torch.float64, device="cpu") * total / n).round() - 1
    return _ending_in_zero(schedule.t_to_sigma(t))


def linspace(schedule: NoiseSchedule, n: int) -> Tensor:
    """t = T - 1 … 0 in equal parts, not rounded: k-diffusion's (and others') `normal`."""
    total = _checked(schedule, n)
    return _ending_in_zero(schedule.t_to_sigma(torch.linspace(total - 1, 0, n, dtype=torch.float64, device="cpu")))


SPACINGS: dict[str, Callable[[NoiseSchedule, int], Tensor]] = {
    "uniform": uniform,
    "trailing": trailing,
    "linspace": linspace,
}


def _checked(schedule: NoiseSchedule, n: int) -> int:
    """The number of training timesteps, T, after a look at n."""
    if not 1 <= n <= schedule.num_timesteps:
        raise ValueError(f"steps is {n}; this model takes 1 to {schedule.num_timesteps}")
    return schedule.num_timesteps


def _ending_in_zero(sigmas: Tensor) -> Tensor:
    return torch.cat([sigmas, sigmas.new_zeros(1)])  # (n + 1,)
