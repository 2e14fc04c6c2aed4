"""From what was asked for to the noise levels of a sampler: a spacing by name, or a list of one's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ldm.models.diffusion.schedule import NoiseSchedule
from ldm.models.diffusion.spacing import ROUNDING, SPACINGS, ending_in_zero, visiting


def spaced(schedule: NoiseSchedule, n: int, spacing: str, **given: float | None) -> Tensor:
    """The n + 1 levels of the spacing of that name, with those of sigma_min, sigma_max and rho that are not None.

    ValueError for one that it does not have.
    """
    options = {name: value for name, value in given.items() if value is not None}
    for name, value in options.items():
        having = [key for key, function in SPACINGS.items() if name in inspect.signature(function).parameters]
        if spacing not in having:
            raise ValueError(f"{name} is {value:g}, but spacing {spacing} has none; {', '.join(having)} have it")
    return SPACINGS[spacing](schedule, n, **options)


def of_sigmas(schedule: NoiseSchedule, sigmas: Sequence[float]) -> Tensor:
    """Those of a list, with or without the final 0; ValueError where no model of this schedule can walk it."""
    last = float(schedule.sigmas[-1])
    levels = sigmas[:-1] if len(sigmas) > 1 and sigmas[-1] == 0 else sigmas
    return ending_in_zero(_falling("sigmas", levels, f"above 0, up to {last:g}", lambda s: 0 < s <= last * ROUNDING))


def of_timesteps(schedule: NoiseSchedule, timesteps: Sequence[float]) -> Tensor:
    """Those of a list of timesteps, whole or not, after which comes noise level 0."""
    last = schedule.num_timesteps - 1
    return visiting(schedule, _falling("timesteps", timesteps, f"from 0 to {last}", lambda t: 0 <= t <= last))


def _falling(name: str, values: Sequence[float], span: str, fits: Callable[[float], bool]) -> Tensor:
    """(n,), checked: numbers that fit, each below the one before it."""
    if len(values) == 0:
        raise ValueError(f"{name} is an empty list; give numbers {span}")
    for value in values:
        if not isinstance(value, int | float) or not fits(value):  # NaN fits nothing
            shown = f"{value:g}" if isinstance(value, int | float) else repr(value)
            raise ValueError(f"{name} has {shown} in it; this model takes numbers {span}")
    for value, after in pairwise(values):
        if after >= value:
            raise ValueError(f"{name} has {after:g} after {value:g}; each number must be below the one before it")
    return torch.tensor(list(values), dtype=torch.float64, device="cpu")
