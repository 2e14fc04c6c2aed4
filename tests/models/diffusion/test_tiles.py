"""Tiles cover everything, weigh 1 in sum, and change nothing where there is nothing to blend."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ldm.models.diffusion.denoiser import Conditioning
from ldm.models.diffusion.tiles import decoded, tile_starts, tile_weights, tiled

SIGMA = torch.tensor(2.0)


def pointwise(x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
    assert cond.concat is not None and cond.y is not None
    return x.tanh() / sigma + cond.concat.sum(dim=1, keepdim=True) * cond.y[:, None, None, None]


@pytest.mark.parametrize(("size", "overlap"), [(8, 3), (4, 0), (5, 4), (1, 0), (16, 8)])
@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (17, 9), (8, 8), (9, 33)])
def test_a_pointwise_denoiser_does_not_notice(shape: tuple[int, int], size: int, overlap: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, concat = torch.randn(2, 4, *shape, generator=generator), torch.randn(2, 3, *shape, generator=generator)
    cond = Conditioning(concat=concat, y=torch.tensor([1.0, -2.0]))
    torch.testing.assert_close(tiled(pointwise, size, overlap)(x, SIGMA, cond), pointwise(x, SIGMA, cond))


def test_what_fits_into_one_tile_is_one_call_bit_for_bit() -> None:
    calls: list[torch.Size] = []

    def mean_of_all(x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        calls.append(x.shape)
        return x - x.mean()

    x = torch.randn(1, 4, 16, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(tiled(mean_of_all, 16, 4)(x, SIGMA, Conditioning()), x - x.mean())
    assert calls == [x.shape]
    tiled(mean_of_all, 8, 4)(x, SIGMA, Conditioning())
    assert calls[1:] == [torch.Size([1, 4, 8, 8])] * (3 * 2)


def test_neighbours_are_blended_smoothly() -> None:
    """Two tiles that disagree: one's answer at its own end, the other's at the other, and no jump between."""

    def left_edge(x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        return x[..., :1].expand_as(x)

    x = torch.arange(24.0).expand(1, 1, 16, 24)
    answer = tiled(left_edge, 16, 8)(x, SIGMA, Conditioning())[0, 0, 5]
    assert answer[:8].tolist() == [0] * 8 and answer[16:].tolist() == [8] * 8
    assert (answer.diff() >= 0).all() and answer.diff().max() < 8 * 0.2


@pytest.mark.parametrize("length", range(1, 70))
def test_tiles_cover_and_weigh_one(length: int) -> None:
    for size, overlap in ((16, 0), (16, 4), (16, 15), (1, 0), (7, 3)):
        starts, side = tile_starts(length, size, overlap), min(size, length)
        weights = tile_weights(length, side, overlap, starts)
        total = torch.zeros(length, dtype=torch.float64)
        for start, weight in zip(starts, weights, strict=True):
            assert (weight > 0).all() and 0 <= start <= length - side
            total[start : start + side] += weight
        torch.testing.assert_close(total, torch.ones(length, dtype=torch.float64))
        assert all(b - a <= size - overlap for a, b in zip(starts, starts[1:], strict=False))
        assert length <= size or len(starts) == -(-(length - overlap) // (size - overlap))  # no more than needed


def test_decoding_in_tiles_puts_every_pixel_in_its_place() -> None:
    z = torch.randn(1, 3, 11, 23, generator=torch.Generator().manual_seed(0))

    def decode(z: Tensor) -> Tensor:
        return z.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)

    torch.testing.assert_close(decoded(decode, z, 6, 2, 4), decode(z))


@pytest.mark.parametrize(("size", "overlap"), [(8, 8), (8, -1), (0, 0)])
def test_impossible_tiles_are_refused(size: int, overlap: int) -> None:
    with pytest.raises(ValueError, match=f"tiles of {size} cannot overlap by {overlap}"):
        tiled(pointwise, size, overlap)
