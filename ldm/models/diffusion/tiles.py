"""Pictures larger than a network was trained on: overlapping tiles, whose answers are blended by smooth weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ldm.models.diffusion.denoiser import Conditioning
from ldm.models.diffusion.guidance import ConditionalDenoise
from ldm.models.diffusion.schedule import sent


def tiled(denoiser: ConditionalDenoise, size: int, overlap: int) -> ConditionalDenoise:
    """MultiDiffusion, Bar-Tal et al. 2023, arXiv:2302.08113, eq. 5: the estimate at a place is the weighted mean of
    those of all tiles that hold it.

    size, overlap: in latent pixels; neighbours share `overlap` or more. A latent that fits into one tile is left whole.
    `concat` is cut as x is; context and y are every tile's.
    """
    _check(size, overlap)

    def denoise(x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        def answer(rows: slice, columns: slice) -> Tensor:
            concat = None if cond.concat is None else cond.concat[..., rows, columns]
            return denoiser(x[..., rows, columns], sigma, replace(cond, concat=concat))

        return blended(answer, x.shape[-2], x.shape[-1], size, overlap)

    return denoise


def usual_overlap(size: int, step: int = 1) -> int:
    """A quarter of a tile's side, in whole steps."""
    return size // step // 4 * step


def decoded(decode: Callable[[Tensor], Tensor], z: Tensor, size: int, overlap: int, factor: int) -> Tensor:
    """Pixels (B, 3, H, W) of a latent (B, C, h, w), tile by tile; `factor` is the autoencoder's."""
    _check(size, overlap)
    height, width = z.shape[-2:]
    return blended(lambda rows, columns: decode(z[..., rows, columns]), height, width, size, overlap, factor)


def blended(
    answer: Callable[[slice, slice], Tensor], height: int, width: int, size: int, overlap: int, factor: int = 1
) -> Tensor:
    """The weighted sum of the answers to all tiles of a height x width plane, each `factor` times as large as asked."""
    if height <= size and width <= size:
        return answer(slice(0, height), slice(0, width))
    total: Tensor | None = None
    for top, rows in _pieces(height, size, overlap, factor):
        for left, columns in _pieces(width, size, overlap, factor):
            down, across = slice(top, top + len(rows) // factor), slice(left, left + len(columns) // factor)
            part = answer(down, across)  # (B, C, rows, columns)
            if total is None:
                total = part.new_zeros((*part.shape[:2], height * factor, width * factor))
            y, x = top * factor, left * factor
            total[..., y : y + len(rows), x : x + len(columns)] += part * sent(
                torch.outer(rows, columns).to(part.dtype), part
            )
    assert total is not None
    return total


def _pieces(length: int, size: int, overlap: int, factor: int) -> Iterator[tuple[int, Tensor]]:
    """The tiles along one side: where each starts, and its weights, `factor` a cell."""
    starts = tile_starts(length, size, overlap)
    weights = tile_weights(length * factor, min(size, length) * factor, overlap * factor, [s * factor for s in starts])
    yield from zip(starts, weights, strict=True)


def tile_starts(length: int, size: int, overlap: int) -> list[int]:
    """Of as few tiles as cover `length` and share `overlap` or more, evenly spread."""
    if length <= size:
        return [0]
    steps = math.ceil((length - size) / (size - overlap))
    return [i * (length - size) // steps for i in range(steps + 1)]


def tile_weights(length: int, size: int, overlap: int, starts: list[int]) -> list[Tensor]:
    """Of each tile, (size,) float64: rising over `overlap` from its ends like sin^2, and 1 in sum at every place."""
    cells = torch.arange(size, dtype=torch.float64) + 0.5
    to_the_end = torch.minimum(cells, size - cells) / max(overlap, 1)
    window = torch.sin(math.pi / 2 * to_the_end.clamp(max=1)) ** 2
    total = torch.zeros(length, dtype=torch.float64)
    for start in starts:
        total[start : start + size] += window
    return [window / total[start : start + size] for start in starts]


def _check(size: int, overlap: int) -> None:
    if not 0 <= overlap < size:
        raise ValueError(f"tiles of {size} cannot overlap by {overlap}; give an overlap of 0 … {max(0, size - 1)}")
