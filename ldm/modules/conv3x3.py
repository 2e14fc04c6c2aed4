"""For processors without AVX-512: 3 × 3 convolutions that choose how to be computed by the size of what comes in.

There oneDNN arranges a convolution's weights by the size of what comes in, so `packed` has no one form to keep (the
wrong one is taken to pieces in every call, which takes longer than the convolution). Unpacked, the weights of SD 1's
lowest levels are arranged anew in each call, for a hundred places. A product with the places' surroundings side by
side needs no arranging: 1.8 times as fast at 1280 channels and 8 × 8. Where places and channels are many, Winograd's
tiles are twice as fast as oneDNN's convolution, which multiplies as fast as the processor can. (docs/performance.md)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.winograd import winograd

MOST_PLACES = 512  # B H W of the output, up to which one product pays
LEAST_WEIGHTS = 1 << 22  # numbers, from which it does: smaller ones stay in the cache
LEAST_NUMBERS = 150_000  # C H W of a picture, from which Winograd's sums cost less than the products that they save
LEAST_PLACES = {4: 1024, 2: 256}  # H W of a picture, by side of a tile, from which the sums of weights do


class Conv3x3(nn.Conv2d):
    """With a border of 1. Its weight is channels_last, and the same parameter as ever."""

    def forward(self, x: Tensor) -> Tensor:
        if (side := self.tile_side(x)) is not None:
            return winograd(x, self.weight, self.bias, side)
        return self.product(x) if self.is_product(x) else super().forward(x)

    def tile_side(self, x: Tensor) -> int | None:
        """Of the largest tile that fits a picture without remainder and pays. The company of a picture has no say."""
        height, width = x.shape[2:]
        places, channels = height * width, min(self.in_channels, self.out_channels)
        plain = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or x.dtype != self.weight.dtype
        if plain or places * channels < LEAST_NUMBERS:
            return None
        fitting = [side for side, least in LEAST_PLACES.items() if places >= least]
        return next((side for side in fitting if height % side == width % side == 0), None)

    def is_product(self, x: Tensor) -> bool:
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


def choose_convolutions(network: nn.Module) -> None:
    """Lay a network out as channels_last, and let each of its 3 × 3 convolutions choose."""
    network.to(memory_format=torch.channels_last)
    for module in network.modules():
        if type(module) is nn.Conv2d and _is_plain(module):
            module.__class__ = Conv3x3


def _is_plain(conv: nn.Conv2d) -> bool:
    same_size = (conv.kernel_size, conv.padding, conv.stride, conv.dilation) == ((3, 3), (1, 1), (1, 1), (1, 1))
    return same_size and conv.groups == 1 and conv.padding_mode == "zeros"
