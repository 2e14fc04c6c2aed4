"""3 × 3 convolutions with fewer products (Winograd 1980; Lavin & Gray 2015, arXiv:1509.09308).

F(m × m, 3 × 3): a tile of m × m outputs depends on n × n inputs, n = m + 2. Sums of those, of the weights and of the
products stand for most of the multiplying: with Y = Aᵀ [(G w Gᵀ) ⊙ (Bᵀ d B)] A a pair of channels takes n² products a
tile instead of 9 m², 2.25 times fewer for m = 2 and 4 times for m = 4. Over all tiles they are n² products of matrices.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Matrix = tuple[tuple[float, ...], ...]
BAND = 1 << 24  # numbers of the input's sums, and of the weights', that are kept at a time, and so 64 MB of each


class Tile(NamedTuple):
    """The three transforms of one m, as in Lavin & Gray, section 4."""

    inputs: Matrix  # Bᵀ, (n, n)
    weights: Matrix  # G, (n, 3)
    outputs: Matrix  # Aᵀ, (m, n)

    @property
    def side(self) -> int:
        return len(self.outputs)


F2 = Tile(
    inputs=((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    weights=((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
    outputs=((1, 1, 1, 0), (0, 1, -1, -1)),
)
F4 = Tile(
    inputs=(
        (4, 0, -5, 0, 1, 0),
        (0, -4, -4, 1, 1, 0),
        (0, 4, -4, -1, 1, 0),
        (0, -2, -1, 2, 1, 0),
        (0, 2, -1, -2, 1, 0),
        (0, 4, 0, -5, 0, 1),
    ),
    weights=(
        (1 / 4, 0, 0),
        (-1 / 6, -1 / 6, -1 / 6),
        (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6),
        (1 / 24, -1 / 12, 1 / 6),
        (0, 0, 1),
    ),
    outputs=((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
)
TILES = {2: F2, 4: F4}


@torch.library.custom_op("ldm::winograd", mutates_args=())  # whole for torch.compile, which would take it to pieces
def winograd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    m: int,
    gain: Tensor | None = None,
    shift: Tensor | None = None,
    zoom: int = 1,
) -> Tensor:
    """The convolution of x (B, C, H, W) by weight (K, C, 3, 3) with a border of one zero: (B, K, H, W), channels_last.

    m: side of a tile, 2 or 4, which divides H and W. gain, shift: (B, 1, 1, C); what is convolved is then
    silu(gain x + shift). zoom: how often each place stands along either side, which then are zoom H and zoom W.
    Both are done band by band, so that no tensor of the picture's size is made for them. No gradients.
    """
    tile, n = TILES[m], m + 2
    x = x.permute(0, 2, 3, 1)
    b, h, w, c, k = x.shape[0], zoom * x.shape[1], zoom * x.shape[2], x.shape[3], weight.shape[0]
    out = x.new_empty(b, h, w, k)

    def rows(first: int, last: int) -> Tensor:
        """Of what is convolved, (B, last - first, W, C)."""
        some = x[:, first // zoom : -(-last // zoom)]
        if zoom > 1:
            some = some.repeat_interleave(zoom, dim=1).repeat_interleave(zoom, dim=2)
            some = some[:, first % zoom :][:, : last - first]
        return some if gain is None or shift is None else F.silu(torch.addcmul(shift, some, gain), inplace=True)

    tiles = out.view(b, h // m, m, w // m, m, k).permute(2, 4, 0, 1, 3, 5)  # (m, m, B, H / m, W / m, K)
    bands = list(parts(h // m, BAND // (n * n * c * b * (w // m))))  # rows of tiles
    places = b * (w // m) * longest(bands)  # of tiles
    before = b * c * (w + 2) * (longest(bands) * (m + n) + 2)  # padded and down
    a_channel = n * (n * c + (n + m) * places)  # summed, products and half, which stand where those did
    some_weights = list(parts(k, BAND // (n * n * c)))
    space = Space(x, n * n * c * places + max(before, a_channel * longest(some_weights)))
    for band in bands:
        size = (b, band.stop - band.start, w // m)  # of a band in tiles
        space.used = 0
        sums = space.take(n, n, *size, c)
        used = space.used
        padded = space.take(b, size[1] * m + 2, w + 2, c)
        fill_bordered(padded, rows, h, band.start * m)
        down = space.take(n, b, size[1], w + 2, c)
        _combine(tile.inputs, padded.unfold(1, n, m).unbind(-1), down)
        _combine(tile.inputs, down.unfold(3, n, m).unbind(-1), sums)
        for some in some_weights:
            number = some.stop - some.start
            space.used = used
            summed = _weight_sums(weight[some], tile, space.take(number, n * n, c))
            products = space.take(n, n, *size, number)
            torch.bmm(sums.view(n * n, -1, c), summed.permute(1, 2, 0), out=products.view(n * n, -1, number))
            if bias is not None:
                products[1, 1] += bias[some]  # which stands in every output once
            half = space.take(m, n, *size, number)
            _combine(tile.outputs, products.unbind(0), half)
            _combine(tile.outputs, half.unbind(1), tiles[:, :, :, band, :, some])
    return out.permute(0, 3, 1, 2)


@winograd.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    m: int,
    gain: Tensor | None = None,
    shift: Tensor | None = None,
    zoom: int = 1,
) -> Tensor:
    b, _, h, w = x.shape
    return x.new_empty(b, zoom * h, zoom * w, weight.shape[0]).permute(0, 3, 1, 2)


def parts(whole: int, most: int) -> Iterator[slice]:
    """As many of about the same size as it takes for none to be larger than `most`, or than 1."""
    number = -(-whole // max(1, most))
    ends = [whole * i // number for i in range(number + 1)]
    return (slice(start, stop) for start, stop in pairwise(ends))


def longest(slices: Sequence[slice]) -> int:
    return max(one.stop - one.start for one in slices)


def fill_bordered(padded: Tensor, rows: Callable[[int, int], Tensor], height: int, start: int) -> None:
    """Give padded (B, R + 2, W + 2, C) R rows of a picture from `start` on, with what is around them: zeros where the
    picture ends. rows: (first, last) -> (B, last - first, W, C)."""
    first, last = max(start - 1, 0), min(start + padded.shape[1] - 1, height)
    inside = slice(first - (start - 1), last - (start - 1))
    padded.zero_()
    padded[:, inside, 1:-1] = rows(first, last)


def _weight_sums(weight: Tensor, tile: Tile, out: Tensor) -> Tensor:
    """G w Gᵀ: (K, C, 3, 3) -> (K, n², C), across and down. As products of matrices, for that passes over them once."""
    k, c = weight.shape[:2]
    g = weight.new_tensor(tile.weights)
    both = torch.einsum("ax,dy->adyx", g, g).view(-1, 9)  # (n², 9)
    return torch.bmm(both.expand(k, -1, -1), weight.permute(0, 2, 3, 1).reshape(k, 9, c), out=out)


def _combine(matrix: Matrix, parts: Sequence[Tensor], out: Tensor) -> None:
    """The matrix times the parts, into (number of rows, *shape of a part)."""
    for row, total in zip(matrix, out, strict=True):
        terms = sorted(((part, by) for part, by in zip(parts, row, strict=True) if by), key=lambda term: term[1] != 1)
        (first, by), *others = terms
        if by == 1 and others:  # two terms in one going over
            second, alpha = others.pop(0)
            torch.add(first, second, alpha=alpha, out=total)
        else:
            torch.mul(first, by, out=total)
        for part, alpha in others:
            total.add_(part, alpha=alpha)


_kept = threading.local()


class Space:
    """Memory for what stands between a picture and its convolution, kept from call to call, one for each thread: where
    it came from the heap each time, that was soon full of holes too small for a picture."""

    def __init__(self, like: Tensor, numbers: int) -> None:
        kept: Tensor | None = getattr(_kept, str(like.dtype), None)
        if kept is None or len(kept) < numbers:
            setattr(_kept, str(like.dtype), None)  # so that there are never two
            del kept
            with torch.inference_mode(False):  # for calls within that mode and others
                kept = torch.empty(max(numbers, 3 * BAND), dtype=like.dtype)  # what is never used takes no memory
            setattr(_kept, str(like.dtype), kept)
        self.kept, self.used = kept, 0

    def take(self, *shape: int) -> Tensor:
        start, self.used = self.used, self.used + math.prod(shape)
        return self.kept[start : self.used].view(shape)
