"""For processors without AVX-512: convolutions with large weights and few places, as one product of matrices.

There oneDNN arranges a convolution's weights by the size of what comes in, so `packed` has no one form to keep (the
wrong one is taken to pieces in every call, which takes longer than the convolution). Unpacked, the weights of SD 1's
lowest levels are arranged anew in each call, for a hundred places. A product with the places' surroundings side by
side needs no arranging: 1.8 times as fast at 1280 channels and 8 × 8 (docs/performance.md).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOST_PLACES = 512  # B H W of the output, up to which it pays
LEAST_WEIGHTS = 1 << 22  # numbers, from which it does: smaller ones stay in the cache


class UnrolledConv2d(nn.Conv2d):
    """3 × 3, with a border of 1. Its weight is channels_last, and the same parameter as ever."""

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x) if self.takes(x) else super().forward(x)

    def takes(self, x: Tensor) -> bool:
        places = x.shape[0] * x.shape[2] * x.shape[3]
        return places <= MOST_PLACES and self.weight.numel() >= LEAST_WEIGHTS

    def product(self, x: Tensor) -> Tensor:
        """What the convolution of x (B, C, H, W) is, in channels_last."""
        b, c, h, w = x.shape
        padded = F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1).contiguous()  # (B, H + 2, W + 2, C)
        image, row, place, _ = padded.stride()
        around = padded.as_strided((b, h, w, 3, 3 * c), (image, row, place, row, 1))  # rows of 3 places
        weight = self.weight.permute(0, 2, 3, 1).reshape(self.out_channels, 9 * c)
        out = F.linear(around.reshape(b * h * w, 9 * c), weight, self.bias)
        return out.view(b, h, w, self.out_channels).permute(0, 3, 1, 2)


def unroll(network: nn.Module) -> None:
    """Lay a network out as channels_last, and give its 3 × 3 convolutions that product to choose."""
    network.to(memory_format=torch.channels_last)
    for module in network.modules():
        if type(module) is nn.Conv2d and _is_plain(module):
            module.__class__ = UnrolledConv2d


def _is_plain(conv: nn.Conv2d) -> bool:
    same_size = (conv.kernel_size, conv.padding, conv.stride, conv.dilation) == ((3, 3), (1, 1), (1, 1), (1, 1))
    return same_size and conv.groups == 1 and conv.padding_mode == "zeros"
