"""3 × 3 convolutions with fewer products (Winograd 1980; Lavin & Gray 2015, arXiv:1509.09308).

F(m × m, 3 × 3): a tile of m × m outputs depends on n × n inputs, n = m + 2. Sums of those, of the weights and of the
products stand for most of the multiplying: with Y = Aᵀ [(G w Gᵀ) ⊙ (Bᵀ d B)] A a pair of channels takes n² products a
tile instead of 9 m², 2.25 times fewer for m = 2 and 4 times for m = 4. Over all tiles they are n² products of matrices.
"""

from __future__ import annotations

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
    tile = TILES[m]
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
    sums_a_place = (m + 2) ** 2 * c
    for band in parts(h // m, BAND // (sums_a_place * b * (w // m))):  # rows of tiles
        sums = _input_sums(bordered(rows, h, band.start * m, band.stop * m), tile)  # (n, n, B, rows, W / m, C)
        for some in parts(k, BAND // sums_a_place):
            products = _products(sums, _weight_sums(weight[some], tile))  # (n, n, B, rows, W / m, some)
            if bias is not None:
                products[1, 1] += bias[some]  # which stands in every output once
            half = _combined(tile.outputs, products.unbind(0))
            _combined(tile.outputs, half.unbind(1), tiles[:, :, :, band, :, some])
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


def bordered(rows: Callable[[int, int], Tensor], height: int, start: int, stop: int) -> Tensor:
    """The rows of a picture from `start` to `stop` with one more on each side, of zeros where it ends: (B, stop - start
    + 2, W + 2, C). rows: (first, last) -> (B, last - first, W, C)."""
    first, last = max(start - 1, 0), min(stop + 1, height)
    return F.pad(rows(first, last), (0, 0, 1, 1, first - (start - 1), stop + 1 - last))


def _input_sums(padded: Tensor, tile: Tile) -> Tensor:
    """Bᵀ d B of every tile: (B, rows m + 2, W + 2, C) -> (n, n, B, rows, W / m, C), across and down."""
    m = tile.side
    down = _combined(tile.inputs, padded.unfold(1, m + 2, m).unbind(-1))  # (n, B, rows, W + 2, C)
    return _combined(tile.inputs, down.unfold(3, m + 2, m).unbind(-1))


def _weight_sums(weight: Tensor, tile: Tile) -> Tensor:
    """G w Gᵀ: (K, C, 3, 3) -> (K, n², C), across and down. As products of matrices, for that passes over them once."""
    k, c = weight.shape[:2]
    g = weight.new_tensor(tile.weights)
    both = torch.einsum("ax,dy->adyx", g, g).view(-1, 9)  # (n², 9)
    return both @ weight.permute(0, 2, 3, 1).reshape(k, 9, c)


def _products(sums: Tensor, weight: Tensor) -> Tensor:
    """(n, n, …, C) by (K, n², C) -> (n, n, …, K)."""
    k, n_squared, c = weight.shape
    products = torch.bmm(sums.view(n_squared, -1, c), weight.permute(1, 2, 0))
    return products.view(*sums.shape[:-1], k)


def _combined(matrix: Matrix, parts: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
    """The matrix times the parts, (number of rows, *shape of a part)."""
    if out is None:
        out = parts[0].new_empty(len(matrix), *parts[0].shape)
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
    return out
