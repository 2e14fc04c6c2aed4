"""Prompts that change on the way, that are several at once, or that differ in length within a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ldm.models.diffusion.denoiser import Conditioning
from ldm.models.diffusion.guidance import ROUNDING, ConditionalDenoise
from ldm.models.diffusion.schedule import sent

MOST_JOINED = 16  # conditions of calls that are kept

Parts = Sequence[tuple[float, Conditioning]]
"""(weight, one row) of each."""


class Scene(NamedTuple):
    """What a picture is led to at noise levels above `sigma`: the weighted sum of its parts' estimates."""

    sigma: float
    parts: Parts


Script = Sequence[Scene]
"""The scenes of one picture, sigma falling; the last one lasts to the end, whatever its sigma."""


def prompted(denoiser: ConditionalDenoise, scripts: Sequence[Script]) -> ConditionalDenoise:
    """A denoiser whose condition is, for each row, the number of a script in `y`: guidance and all else fit around it.

    The level where it is asked chooses the scene, so every sampler keeps to the script, whenever it asks. Rows whose
    conditions have one shape share a call, of at most as many rows as were asked for; unlike padding, that makes no
    picture depend on its company. Conditions are joined once for all steps that ask for the same ones.
    """
    joined: dict[tuple[int, ...], Conditioning] = {}

    def join(parts: Sequence[Conditioning]) -> Conditioning:
        key = tuple(id(part) for part in parts)  # the scripts keep them, so no other will ever be in a part's place
        if key not in joined:
            while len(joined) >= MOST_JOINED:
                del joined[next(iter(joined))]
            joined[key] = Conditioning.cat(parts)
        return joined[key]

    def denoise(x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        assert cond.y is not None
        levels = sigma.expand(len(x)).tolist()
        sums: dict[int, Tensor] = {}
        for asked in _calls(scripts, cond.y.tolist(), levels):
            rows = [row for row, _, _ in asked]
            whole = rows == list(range(len(x)))
            level = sigma if whole or not sigma.ndim else sigma[rows]
            answers = denoiser(
                x if whole else x[sent(torch.tensor(rows), x)], level, join([part for _, _, part in asked])
            )
            for (row, weight, _), answer in zip(asked, answers, strict=True):
                share = answer if weight == 1 else weight * answer
                sums[row] = sums[row] + share if row in sums else share
        return torch.stack([sums[row] for row in range(len(x))])  # (B, C, h, w)

    return denoise


Asked = list[tuple[int, float, Conditioning]]  # rows of x, weights, and what each is led to


def _calls(scripts: Sequence[Script], numbers: Sequence[int], levels: Sequence[float]) -> list[Asked]:
    """What is to be asked, in calls of equal shapes and of at most as many rows as there are numbers."""
    groups: dict[object, Asked] = {}
    for row, (number, level) in enumerate(zip(numbers, levels, strict=True)):
        for weight, part in scene_at(scripts[number], level).parts:
            shape = tuple(None if v is None else v.shape for v in (part.context, part.concat, part.y))
            groups.setdefault(shape, []).append((row, weight, part))
    most = len(numbers)
    return [asked[k : k + most] for asked in groups.values() for k in range(0, len(asked), most)]


def scene_at(script: Script, level: float) -> Scene:
    """A scene's own last level belongs to the next one."""
    return next((scene for scene in script if level > scene.sigma * (1 + ROUNDING)), script[-1])


def composed(parts: Parts, uncond: Conditioning | None) -> Parts:
    """x0_uncond + sum of weight_i * (x0_i - x0_uncond), as parts of a scene: guided, each weight is one of the scale.

    Liu et al. 2022, arXiv:2206.01714, eq. 11. One part of weight 1 is itself, and needs no uncond.
    """
    rest = 1 - sum(weight for weight, _ in parts)
    if abs(rest) < 1e-9:
        return tuple(parts)
    if uncond is None:
        raise ValueError("prompts that are composed (AND) need an unconditional conditioning")
    return *parts, (rest, uncond)
