"""A convolutional network, tile by tile, with the answer that it gives on the whole plane.

What a convolution makes of a place depends on a few cells around it, so a tile with that margin gives the very values
of the whole. Only two things look further: attention, and a group norm, whose mean and variance are the whole plane's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn

from ldm.modules.attention import AttentionBlock
from ldm.modules.blocks import Downsample, MidBlock, ResnetBlock, Upsample
from ldm.modules.edits import instead
from ldm.modules.encoder import Decoder, Encoder


@dataclass(frozen=True)
class _Level:
    """Modules that follow one another: from one change of size to the next."""

    modules: Sequence[nn.Module]

    @property
    def is_whole(self) -> bool:
        """Whether something in it looks at all of the plane at once."""
        return any(isinstance(inner, AttentionBlock) for module in self.modules for inner in module.modules())

    @property
    def enlarges(self) -> int:
        return 2 if isinstance(self.modules[0], Upsample) else 1

    @property
    def shrinks(self) -> int:
        return 2 if isinstance(self.modules[-1], Downsample) else 1

    @property
    def margin(self) -> int:
        """How many cells beyond its edge a tile's answer depends on: one for each 3 x 3 convolution; made even."""
        known = {ResnetBlock: 2, MidBlock: 4, nn.Conv2d: 1, Upsample: 1, Downsample: 1}
        cells = sum(count for module in self.modules for kind, count in known.items() if isinstance(module, kind))
        return cells + cells % 2

    @property
    def norms(self) -> list[nn.GroupNorm]:
        """In the order in which they are called."""
        return [inner for module in self.modules for inner in module.modules() if isinstance(inner, nn.GroupNorm)]

    def __call__(self, x: Tensor) -> Tensor:
        for module in self.modules:
            x = module(x)
        return x


def _levels(network: Encoder | Decoder) -> list[_Level]:
    """The whole network, cut before each upsampling and after each downsampling, where tensors are smallest, and
    around what attends."""
    levels: list[list[nn.Module]] = [[]]
    for step in network.steps():
        attends = any(isinstance(module, AttentionBlock) for module in step.modules())
        if levels[-1] and (attends or isinstance(step, Upsample)):
            levels.append([])
        levels[-1].append(step)
        if attends or isinstance(step, Downsample):
            levels.append([])
    return [_Level(level) for level in levels if level]


class Levels:
    """A network's forward, level by level: tensors of a whole plane exist only between levels."""

    def __init__(self, network: Encoder | Decoder, size: int) -> None:
        self.levels, self.size = _levels(network), size

    def __call__(self, x: Tensor) -> Tensor:
        for level in self.levels:
            plane = max(x.shape[-2:]) * level.enlarges
            x = level(x) if level.is_whole or plane <= self.size else _in_tiles(level, x, self.size)
        return x


def _in_tiles(level: _Level, x: Tensor, size: int) -> Tensor:
    """The level's answer to x (B, C, h, w), in tiles of `size` cells a side of its largest plane."""
    scale, shrink = level.enlarges, level.shrinks
    height, width = x.shape[-2:]
    cells = size // scale - size // scale % 2  # of x, even so that every second one stays every second one
    margin = -(-level.margin // scale)
    margin += margin % 2
    corners = product(range(0, height, cells), range(0, width, cells))
    tiles = [_Tile(top, left, cells, margin, height, width) for top, left in corners]
    known: list[_Statistics] = []
    for _ in level.norms:
        statistics = _Statistics()
        for tile in tiles:
            with _normalising(level.norms, known, statistics, partial(tile.inner, scale=scale)):
                _until_enough(level, tile.cut(x))
        known.append(statistics)
    total: Tensor | None = None
    for tile in tiles:
        with _normalising(level.norms, known):
            part = tile.inner(level(tile.cut(x)), scale, shrink)  # (B, C', tile's height, tile's width)
        if total is None:
            total = part.new_empty(*part.shape[:2], height * scale // shrink, width * scale // shrink)
        top, left = tile.top * scale // shrink, tile.left * scale // shrink
        total[..., top : top + part.shape[-2], left : left + part.shape[-1]] = part
    assert total is not None
    return total


@dataclass(frozen=True)
class _Tile:
    """A square of a plane, with a margin where the plane goes on."""

    top: int
    left: int
    cells: int
    margin: int
    height: int  # of the plane
    width: int

    def cut(self, x: Tensor) -> Tensor:
        rows = slice(max(0, self.top - self.margin), self.top + self.cells + self.margin)
        columns = slice(max(0, self.left - self.margin), self.left + self.cells + self.margin)
        return x[..., rows, columns]

    def inner(self, x: Tensor, scale: int = 1, shrink: int = 1) -> Tensor:
        """Without the margin, of what was made of the cut: `scale` times its size, then a `shrink`-th of it."""
        top, left = min(self.top, self.margin), min(self.left, self.margin)
        rows, columns = min(self.cells, self.height - self.top), min(self.cells, self.width - self.left)
        top, left, rows, columns = (-(-side * scale // shrink) for side in (top, left, rows, columns))
        return x[..., top : top + rows, left : left + columns]


class _Statistics:
    """Mean and variance of each group of channels, (B, groups, 1), of parts that come one after the other.

    Chan, Golub & LeVeque 1979, eq. 2.1: no digits are lost where the mean is large.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0  # of what differs from the mean, summed

    def add(self, x: Tensor, groups: int) -> None:
        values = x.float().reshape(len(x), groups, -1)  # (B, groups, N)
        variance, mean = torch.var_mean(values, dim=2, correction=0, keepdim=True)
        n, both = values.shape[2], self.count + values.shape[2]
        away = mean - self.mean
        self.mean = self.mean + away * (n / both)
        self.squares = self.squares + variance * n + away.square() * (self.count * n / both)
        self.count = both

    def normalised(self, x: Tensor, norm: nn.GroupNorm) -> Tensor:
        """What the norm makes of x, with these statistics."""
        assert isinstance(self.mean, Tensor) and isinstance(self.squares, Tensor), "a group norm that was not called"
        each = x.shape[1] // norm.num_groups
        gain = (self.squares / self.count + norm.eps).rsqrt().repeat_interleave(each, dim=1)[..., None]  # (B, C, 1, 1)
        gain = gain * norm.weight[:, None, None]
        shift = norm.bias[:, None, None] - gain * self.mean.repeat_interleave(each, dim=1)[..., None]
        return torch.addcmul(shift.to(x), x, gain.to(x))


class _EnoughError(Exception):
    """The statistics that a run was for are there."""


def _until_enough(level: _Level, x: Tensor) -> None:
    try:
        level(x)
    except _EnoughError:
        return
    raise AssertionError("a group norm that was not called: exact tiles do not know this network")


@contextmanager
def _normalising(
    norms: Sequence[nn.GroupNorm],
    known: Sequence[_Statistics],
    wanted: _Statistics | None = None,
    inner: Callable[[Tensor], Tensor] = lambda x: x,
) -> Iterator[None]:
    """The first norms with what is known; the next one adds what it is given to `wanted`, and that is enough."""

    def collect(x: Tensor) -> Tensor:
        assert wanted is not None
        wanted.add(inner(x), norms[len(known)].num_groups)
        raise _EnoughError

    answers: dict[nn.Module, Callable[..., Tensor]] = {
        norm: partial(statistics.normalised, norm=norm)
        for norm, statistics in zip(norms[: len(known)], known, strict=True)
    }
    if wanted is not None:
        answers[norms[len(known)]] = collect
    with instead(answers):
        yield
