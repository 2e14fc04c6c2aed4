"""Which noise levels a sampler visits: n + 1 sigmas, float64 on the CPU, strictly decreasing, the last one 0.

All give exactly n steps, n = 1 … T, for any schedule. Those over timesteps t = 0 … T - 1 first; then those over sigma,
which have a sigma_max to begin at and a sigma_min for the last step (by default the model's last and first level).
`uniform`, `trailing` and `linspace` are compared by Lin et al. 2023, arXiv:2305.08891, table 2.

Where a published rule gives a timestep twice, as some do with many steps, `_distinct` separates the two.

The last level of a zero-terminal-SNR schedule stands for infinity. Spacings over sigma spend most of their steps near
it unless they are given a sigma_max; `trailing` is made for such schedules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from ldm.models.diffusion.schedule import NoiseSchedule

Spacing = Callable[..., Tensor]
"""spacing(schedule, n, *, sigma_min=…, sigma_max=…, rho=…) → (n + 1,); it takes those of the three that it has."""


def uniform(schedule: NoiseSchedule, n: int) -> Tensor:
    """`leading`, the DDIM of Stable Diffusion: t = 1, 1 + T/n, 1 + 2T/n … (rounded down), so pure noise is not visited.

    The 1 is the offset of the original code, which leaves the table at n = T; there, t = 0 … T - 1.
    """
    total = _checked(schedule, n)
    offset = 1 if n < total else 0
    return visiting(schedule, [i * total // n + offset for i in reversed(range(n))])


def legacy(schedule: NoiseSchedule, n: int) -> Tensor:
    """t = 1, 1 + c, 1 + 2c … with a whole stride c = T // n: the original DDIM, and diffusers' `leading`.

    Equal to `uniform` where n divides T. Elsewhere the original takes another number of steps, or fails; these are
    the n lowest, as in diffusers. So 7 steps begin at t = 853 of 1000, and 501 at t = 501: for comparisons only.
    """
    total = _checked(schedule, n)
    offset = 1 if n < total else 0
    return visiting(schedule, [i * (total // n) + offset for i in reversed(range(n))])


def trailing(schedule: NoiseSchedule, n: int) -> Tensor:
    """t = T - 1, T - 1 - T/n … (rounded): starts at the last training level. The one to use with few steps."""
    total = _checked(schedule, n)
    return visiting(schedule, (torch.arange(n, 0, -1, dtype=torch.float64, device="cpu") * total / n).round() - 1)


def linspace(schedule: NoiseSchedule, n: int) -> Tensor:
    """t = T - 1 … 0 in equal parts, not rounded: k-diffusion's (and others') `normal`."""
    total = _checked(schedule, n)
    return visiting(schedule, _grid(total - 1, 0, n))


def sgm_uniform(schedule: NoiseSchedule, n: int) -> Tensor:
    """`linspace` of n + 1 without its last, t = 0: that of the SDXL code base and of DPM-Solver. Nearly `trailing`."""
    total = _checked(schedule, n)
    return visiting(schedule, _grid(total - 1, 0, n + 1)[:-1])


def simple(schedule: NoiseSchedule, n: int) -> Tensor:
    """Every T/n-th training level from the last one down: t = T - 1 - iT/n (the iT/n rounded down), as in ComfyUI."""
    total = _checked(schedule, n)
    return visiting(schedule, [total - 1 - i * total // n for i in range(n)])


def quad(schedule: NoiseSchedule, n: int) -> Tensor:
    """t = 1 + 0.8 T (i / (n - 1))^2 (rounded down): the original DDIM's `quad`, dense where there is little noise.

    2 … 802 steps (of 1000) begin at t = 801; with more there are not that many timesteps, and it begins higher. One
    step begins at t = 1, as that of `uniform` does: far too low to draw from noise, and what the original does.
    """
    total = _checked(schedule, n)
    last = max(n - 1, 1)
    t = [min(1 + 4 * total * i * i // (5 * last * last), total - 1) for i in reversed(range(n))]
    return visiting(schedule, _distinct(torch.tensor(t, dtype=torch.float64, device="cpu")))


def beta(schedule: NoiseSchedule, n: int) -> Tensor:
    """t at equal quantiles of a Beta(0.6, 0.6) distribution, so denser at both ends: Lee et al. 2024, arXiv:2407.12173.

    As in ComfyUI, which drops the timesteps that rounding makes equal, and so takes fewer steps than asked.
    """
    total = _checked(schedule, n)
    quantiles = _beta_quantile(_grid(1, 0, n + 1)[:-1])
    return visiting(schedule, _distinct((quantiles * (total - 1)).round()))


def align_your_steps(schedule: NoiseSchedule, n: int) -> Tensor:
    """The ten steps that Sabour et al. 2024, arXiv:2404.14507, found best for Stable Diffusion 1; for other n the same
    curve, log sigma being linear between its points."""
    return _along(schedule, n, (999, 850, 736, 645, 545, 455, 343, 233, 124, 24, 0))


def align_your_steps_xl(schedule: NoiseSchedule, n: int) -> Tensor:
    """As `align_your_steps`, for SDXL."""
    return _along(schedule, n, (999, 845, 730, 587, 443, 310, 193, 116, 53, 13, 0))


def karras(
    schedule: NoiseSchedule,
    n: int,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7.0,
) -> Tensor:
    """sigma^(1/rho) in equal parts: Karras et al. 2022, arXiv:2206.00364, eq. 5."""
    low, high = _ends(schedule, n, sigma_min, sigma_max)
    power = 1 / _checked_rho(rho)
    return ending_in_zero(_grid(high**power, low**power, n) ** rho)


def exponential(
    schedule: NoiseSchedule, n: int, *, sigma_min: float | None = None, sigma_max: float | None = None
) -> Tensor:
    """log sigma in equal parts."""
    return polyexponential(schedule, n, sigma_min=sigma_min, sigma_max=sigma_max)


def polyexponential(
    schedule: NoiseSchedule,
    n: int,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 1.0,
) -> Tensor:
    """log sigma falling as (1 - i / (n - 1))^rho, as in k-diffusion; rho above 1 visits more of the low levels."""
    low, high = _ends(schedule, n, sigma_min, sigma_max)
    share = _grid(1, 0, n) ** _checked_rho(rho)
    return ending_in_zero(low * (high / low) ** share)


def kl_optimal(
    schedule: NoiseSchedule, n: int, *, sigma_min: float | None = None, sigma_max: float | None = None
) -> Tensor:
    """arctan(sigma) in equal parts: best for Gaussian data of variance 1, Sabour et al. 2024, arXiv:2404.14507."""
    low, high = _ends(schedule, n, sigma_min, sigma_max)
    return ending_in_zero(_grid(math.atan(high), math.atan(low), n).tan())


SPACINGS: dict[str, Spacing] = {
    "uniform": uniform,
    "legacy": legacy,
    "trailing": trailing,
    "linspace": linspace,
    "sgm_uniform": sgm_uniform,
    "simple": simple,
    "quad": quad,
    "beta": beta,
    "align_your_steps": align_your_steps,
    "align_your_steps_xl": align_your_steps_xl,
    "karras": karras,
    "exponential": exponential,
    "polyexponential": polyexponential,
    "kl_optimal": kl_optimal,
}


ROUNDING = 1.001
"""How far above the last level a sigma may be: published lists say 14.615 where the schedule says 14.6146."""


def _checked(schedule: NoiseSchedule, n: int) -> int:
    """The number of training timesteps, T, after a look at n."""
    if not 1 <= n <= schedule.num_timesteps:
        raise ValueError(f"steps is {n}; this model takes 1 to {schedule.num_timesteps}")
    return schedule.num_timesteps


def _ends(schedule: NoiseSchedule, n: int, sigma_min: float | None, sigma_max: float | None) -> tuple[float, float]:
    """(sigma_min, sigma_max) with the schedule's own where None is given."""
    _checked(schedule, n)
    first, last = float(schedule.sigmas[0]), float(schedule.sigmas[-1])
    low, high = first if sigma_min is None else sigma_min, last if sigma_max is None else sigma_max
    if not 0 < low < high <= last * ROUNDING:
        raise ValueError(
            f"sigma_min is {low:g} and sigma_max {high:g}; this model takes 0 < sigma_min < sigma_max <= {last:g}"
        )
    return low, high


def _checked_rho(rho: float) -> float:
    if not 0.1 <= rho <= 100:
        raise ValueError(f"rho is {rho:g}; it can be 0.1 … 100, such as 7 for karras")
    return rho


def _grid(start: float, end: float, n: int) -> Tensor:
    return torch.linspace(start, end, n, dtype=torch.float64, device="cpu")


def visiting(schedule: NoiseSchedule, t: Tensor | Sequence[float]) -> Tensor:
    """t: (n,) falling timesteps, whole or not."""
    return ending_in_zero(schedule.t_to_sigma(torch.as_tensor(t, dtype=torch.float64, device="cpu")))


def _distinct(t: Tensor) -> Tensor:
    """Whole timesteps that only fall, made to fall strictly: one that is not below the one before it goes down to it,
    and where that would end below 0, up from 0. Nothing moves where nothing is equal. (n,), n <= T."""
    i = torch.arange(len(t), dtype=t.dtype, device=t.device)
    return (t + i).cummin(0).values.clamp(min=len(t) - 1) - i  # t + i does not rise exactly where t falls strictly


def _along(schedule: NoiseSchedule, n: int, timesteps: Sequence[int]) -> Tensor:
    """n + 1 levels on a curve through the `timesteps` (of 1000), of which the last gives way to 0."""
    t = torch.tensor(timesteps, dtype=torch.float64, device="cpu") * (_checked(schedule, n) - 1) / 999
    log_sigmas = schedule.t_to_sigma(t).log()
    return ending_in_zero(_interpolated(_grid(0, 1, n + 1)[:-1], _grid(0, 1, len(t)), log_sigmas).exp())


def _beta_quantile(p: Tensor) -> Tensor:
    """The x below which a Beta(a, a) variable stays with probability p; a = 0.6."""
    x = _interpolated(torch.minimum(p, 1 - p), *_beta_table(0.6)) ** (1 / 0.6)
    return torch.where(p < 0.5, x, 1 - x)


@cache
def _beta_table(a: float) -> tuple[Tensor, Tensor]:
    """(probability that x^a is below u, u) for Beta(a, a) and x = 0 … 1/2; the other half is its mirror image.

    Over u the density (1 - x)^(a - 1) has no pole, so that 2^15 trapezoids leave an error of 1e-10.
    """
    u = _grid(0, 0.5**a, 2**15)
    area = torch.cumulative_trapezoid((1 - u ** (1 / a)) ** (a - 1), u)
    return torch.cat([area.new_zeros(1), area / area[-1] / 2]), u


def _interpolated(at: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The piecewise linear function through (x, y), x rising from 0, `at` within it."""
    low = (torch.searchsorted(x, at) - 1).clamp(min=0)
    return torch.lerp(y[low], y[low + 1], (at - x[low]) / (x[low + 1] - x[low]))


def ending_in_zero(sigmas: Tensor) -> Tensor:
    """(n,) → (n + 1,), after a look at them."""
    if not (sigmas.diff() < 0).all() or not 0 < sigmas[-1] <= sigmas[0] < math.inf:
        raise ValueError(
            f"{len(sigmas)} noise levels from {sigmas[0]:g} to {sigmas[-1]:g} come out equal; "
            "choose a rho nearer to 1, or sigma_min and sigma_max farther apart"
        )
    return torch.cat([sigmas, sigmas.new_zeros(1)])
