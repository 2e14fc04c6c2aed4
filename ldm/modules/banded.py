"""A 3 × 3 convolution together with what stands before it, band by band where it is computed by Winograd's tiles.

A res-block's norm and SiLU, and an upsampler's doubling, would else each make a tensor as large as the picture, which
is what decoding a large one takes most of its memory for. What is computed stays the same, but for rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor, nn

from ldm.modules.conv3x3 import Conv3x3
from ldm.modules.winograd import parts, winograd

LEAST = 1 << 27  # numbers of what would stand between, 512 MB: smaller ones are made, for one after the other is faster
BAND = 1 << 20  # numbers that are looked at in one go: 4 MB, which stay in the cache


def in_bands(conv: nn.Module, norm: nn.Module, x: Tensor) -> Tensor | None:
    """conv(silu(norm(x))) for x (B, C, H, W), in bands; None where it has to be computed one after the other."""
    if not (isinstance(norm, nn.GroupNorm) and is_untouched(norm) and x.numel() >= LEAST and _is_free(conv, x)):
        return None
    side = conv.tile_side(*x.shape[2:])
    return None if side is None else winograd(x, conv.weight, conv.bias, side, *affine(norm, x))


def in_bands_doubled(conv: nn.Module, x: Tensor, size: Sequence[int] | None = None) -> Tensor | None:
    """conv of x (B, C, H, W) with each place four times, in bands; None where it has to be doubled first, as where
    `size` (height, width) is not twice that of x."""
    twice = tuple(2 * side for side in x.shape[2:])
    if (size is not None and tuple(size) != twice) or 4 * x.numel() < LEAST or not _is_free(conv, x):
        return None
    side = conv.tile_side(*twice)
    return None if side is None else winograd(x, conv.weight, conv.bias, side, zoom=2)


def _is_free(conv: nn.Module, x: Tensor) -> TypeGuard[Conv3x3]:
    """Whether the convolution may choose its way for drawing x."""
    if not isinstance(conv, Conv3x3) or conv.training or torch.is_grad_enabled():
        return False
    return is_untouched(conv) and conv.chooses(x)


def is_untouched(module: nn.Module) -> bool:
    """Whether nobody watches the module's calls, or has put another function in the place of its own."""
    return not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def affine(norm: nn.GroupNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """What the norm does to x (B, C, H, W), as gain and shift: gain x + shift, (B, 1, 1, C) each."""
    x = x.permute(0, 2, 3, 1)  # (B, H, W, C)
    (b, h, w, c), groups = x.shape, norm.num_groups

    def of_groups(sums: Tensor) -> Tensor:
        """Sums (B, C) of each channel -> the mean of each one's group, (B, 1, 1, C)."""
        means = sums.view(b, groups, -1).sum(2) / (h * w * (c // groups))
        return means.repeat_interleave(c // groups, dim=1)[:, None, None]

    bands = [x[:, band] for band in parts(h, BAND // (b * w * c))]
    mean = of_groups(sum(_summed(band) for band in bands))  # type: ignore[arg-type]
    variance = of_groups(sum(_summed((band - mean).square_()) for band in bands))  # type: ignore[arg-type]
    gain = (variance + norm.eps).rsqrt() * norm.weight
    return gain, norm.bias - mean * gain


def _summed(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, C), as a product, which reads x as fast as it can be read."""
    flat = x.flatten(1, 2)  # (B, H W, C)
    return torch.matmul(flat.new_ones(1, flat.shape[1]), flat)[:, 0]
