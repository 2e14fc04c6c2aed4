"""For processors without AVX-512: 3 × 3 convolutions that choose how to be computed by the size of what comes in.

There oneDNN arranges a convolution's weights by the size of what comes in, so `packed` has no one form to keep (the
wrong one is taken to pieces in every call, which takes longer than the convolution). Unpacked, the weights of SD 1's
lowest levels are arranged anew in each call, for a hundred places. A product with the places' surroundings side by
side needs no arranging: 1.8 times as fast at 1280 channels and 8 × 8. Where places and channels are many, Winograd's
tiles are twice as fast as oneDNN's convolution, which multiplies as fast as the processor can. Trained, large ones have
tiles both ways, and the gradient of the weights is a product of surroundings too. (docs/performance.md)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input

from ldm.modules.winograd import fill_bordered, parts, winograd

MOST_PLACES = 512  # B H W of the output, up to which one product pays
LEAST_WEIGHTS = 1 << 22  # numbers, from which it does: smaller ones stay in the cache
LEAST_CHANNELS = 128  # on either side, from which tiles pay, and in training a product for the weights' gradient
LEAST_NUMBERS = 150_000  # C H W of a picture, from which Winograd's sums cost less than the products that they save
LEAST_PLACES = {4: 1024, 2: 256}  # H W of a picture, by side of a tile, from which the sums of weights do
DTYPES = (torch.float32, torch.float64)
BAND = 1 << 22  # numbers of surroundings that are kept at a time in training, and so 16 MB


class Conv3x3(nn.Conv2d):
    """With a border of 1. Its weight is channels_last, and the same parameter as ever."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.chooses(x):
            return super().forward(x)
        if torch.is_grad_enabled():
            return self.trained(x)
        if (side := self.tile_side(*x.shape[2:])) is not None:
            return winograd(x, self.weight, self.bias, side)
        return self.product(x) if self.is_product(x) else super().forward(x)

    def chooses(self, x: Tensor) -> bool:
        """In half precision none of it: tiles add and take away what is many times as large as what is left."""
        return not torch.is_autocast_enabled("cpu") and x.dtype == self.weight.dtype and x.dtype in DTYPES

    def trained(self, x: Tensor) -> Tensor:
        if self.channels < LEAST_CHANNELS:
            return super().forward(x)
        height, width = x.shape[2:]
        takes_tiles = height * width >= LEAST_PLACES[4] and height % 4 == width % 4 == 0
        out: Tensor = _Convolution.apply(x, self.weight, self.bias, 4 if takes_tiles else None)
        return out

    @property
    def channels(self) -> int:
        return min(self.in_channels, self.out_channels)

    def tile_side(self, height: int, width: int) -> int | None:
        """Of the largest tile that fits a picture without remainder and pays. The company of a picture has no say."""
        places = height * width
        if self.channels < LEAST_CHANNELS or places * self.channels < LEAST_NUMBERS:
            return None
        fitting = [side for side, least in LEAST_PLACES.items() if places >= least]
        return next((side for side in fitting if height % side == width % side == 0), None)

    def is_product(self, x: Tensor) -> bool:
        places = x.shape[0] * x.shape[2] * x.shape[3]
        return places <= MOST_PLACES and self.weight.numel() >= LEAST_WEIGHTS

    def product(self, x: Tensor) -> Tensor:
        """What the convolution of x (B, C, H, W) is, in channels_last."""
        b, c, h, w = x.shape
        weight = self.weight.permute(0, 2, 3, 1).reshape(self.out_channels, 9 * c)
        out = F.linear(surroundings(x.permute(0, 2, 3, 1), 0, h), weight, self.bias)
        return out.view(b, h, w, self.out_channels).permute(0, 3, 1, 2)


class _Convolution(torch.autograd.Function):
    """The convolution with its gradients: of the input by the same tiles, of the weights as one product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, side: int | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.side = side
        return F.conv2d(x, weight, bias, padding=1) if side is None else winograd(x, weight, bias, side)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias, _ = ctx.needs_input_grad
        return (
            input_gradient(x, weight, grad, ctx.side) if of_x else None,
            weight_gradient(x, grad) if of_weight else None,
            grad.sum((0, 2, 3)) if of_bias else None,
            None,
        )


def input_gradient(x: Tensor, weight: Tensor, grad: Tensor, side: int | None) -> Tensor:
    """Of x (B, C, H, W), whose convolution by weight (K, C, 3, 3) the loss changes with as grad (B, K, H, W) says."""
    if side is None:
        return conv2d_input(x.shape, weight, grad, padding=1)
    return winograd(grad, weight.flip(2, 3).transpose(0, 1), None, side)


def weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """Of x (B, C, H, W), and of the loss by the convolution (B, K, H, W) -> (K, C, 3, 3), channels_last."""
    x, grad = x.permute(0, 2, 3, 1), grad.permute(0, 2, 3, 1)
    (b, h, w, c), k = x.shape, grad.shape[3]
    total = x.new_zeros(k, 9 * c)
    for band in parts(h, BAND // (b * w * 9 * c)):
        total = total.addmm(grad[:, band].reshape(-1, k).t(), surroundings(x, band.start, band.stop))
    return total.view(k, 3, 3, c).permute(0, 3, 1, 2)


def surroundings(x: Tensor, start: int, stop: int) -> Tensor:
    """Of each place of rows of x (B, H, W, C), the 9 around it side by side: (B (stop - start) W, 9 C)."""
    b, h, w, c = x.shape
    padded = x.new_empty(b, stop - start + 2, w + 2, c)
    fill_bordered(padded, lambda first, last: x[:, first:last], h, start)
    image, row, place, _ = padded.stride()
    around = padded.as_strided((b, stop - start, w, 3, 3 * c), (image, row, place, row, 1))  # rows of 3 places
    return around.reshape(-1, 9 * c)


def has_avx512() -> bool:
    """Only there have oneDNN's packed weights one form for every size of picture."""
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def choose_convolutions(network: nn.Module) -> None:
    """Lay a network out as channels_last, and let each of its 3 × 3 convolutions choose."""
    network.to(memory_format=torch.channels_last)
    for module in network.modules():
        if type(module) is nn.Conv2d and _is_plain(module):
            module.__class__ = Conv3x3


def _is_plain(conv: nn.Conv2d) -> bool:
    same_size = (conv.kernel_size, conv.padding, conv.stride, conv.dilation) == ((3, 3), (1, 1), (1, 1), (1, 1))
    return same_size and conv.groups == 1 and conv.padding_mode == "zeros"
