"""What the UNet and the autoencoder are built of: res-blocks, changes of size, the embedding of the timestep."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.attention import group_norm
from ldm.modules.banded import in_bands, in_bands_doubled

Size = Sequence[int]  # (height, width)
Resize = Callable[[Tensor, Size | None], Tensor]
Modules = Sequence[nn.Module]


def timestep_embedding(
    t: Tensor, dim: int, *, max_period: float = 10_000.0, flip_sin_to_cos: bool = True, freq_shift: int = 0
) -> Tensor:
    """Sinusoids of t (B,), any number type -> (B, dim) float32; cosines first unless `flip_sin_to_cos` is off.

    Frequencies are max_period^(-i / (dim/2 - freq_shift)): 0 as in Stable Diffusion, 1 as in DDPM (Ho et al. 2020).
    """
    half = dim // 2
    steps = torch.arange(half, dtype=torch.float32, device=t.device)
    frequencies = torch.exp(-math.log(max_period) * steps / (half - freq_shift))  # (dim/2,)
    angles = t.float()[:, None] * frequencies  # (B, dim/2)
    waves = (angles.cos(), angles.sin()) if flip_sin_to_cos else (angles.sin(), angles.cos())
    return F.pad(torch.cat(waves, dim=1), (0, dim % 2))  # (B, dim), the last of an odd number 0


def silu(x: Tensor) -> Tensor:
    """SiLU of a tensor that nobody else holds: in place where no gradient is asked for."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


class Silu(nn.Module):
    """`silu` where a module is wanted."""

    def forward(self, x: Tensor) -> Tensor:
        return silu(x)


def add(h: Tensor, x: Tensor) -> Tensor:
    """h + x for an h that nobody else holds: into it where no gradient is asked for, so that there is no third."""
    return h + x if torch.is_grad_enabled() or h.dtype != x.dtype else h.add_(x)


def convolved(conv: nn.Module, norm: nn.Module, x: Tensor, dropout: nn.Module | None = None) -> Tensor:
    """conv(dropout(silu(norm(x))))"""
    if (h := in_bands(conv, norm, x)) is not None:
        return h
    h = silu(norm(x))
    return conv(h if dropout is None else dropout(h))


class Embedding(nn.Module):
    """Two linear layers that turn a vector (B, in_dim) into the res-blocks' embedding (B, dim)."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_dim, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(silu(self.linear_1(x)))


def same(x: Tensor, size: Size | None) -> Tensor:
    return x


def halved(x: Tensor, size: Size | None) -> Tensor:
    """Means over 2×2 pixels; an odd last row or column is dropped."""
    return F.avg_pool2d(x, 2)


def doubled(x: Tensor, size: Size | None) -> Tensor:
    """Each pixel four times, or to exactly `size` where a level above had an odd number of rows or columns."""
    if size is None:
        return F.interpolate(x, scale_factor=2.0, mode="nearest")
    return F.interpolate(x, size=tuple(size), mode="nearest")


class ResnetBlock(nn.Module):
    """Two 3×3 convolutions and a residual, moved by an embedding (B, emb_channels) if there is one.

    The embedding is added after the first convolution; with `scale_shift_norm` it scales and shifts the second
    normalisation instead (Dhariwal & Nichol 2021, equation 6). `resize` acts before the first convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int | None = None,
        *,
        groups: int = 32,
        eps: float,
        scale_shift_norm: bool = False,
        dropout: float = 0.0,
        resize: Resize = same,
    ) -> None:
        super().__init__()
        self.scale_shift_norm = scale_shift_norm
        self.resize = resize
        self.norm1 = group_norm(groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        if emb_channels is not None:
            self.time_emb_proj = nn.Linear(emb_channels, out_channels * (2 if scale_shift_norm else 1))
        self.norm2 = group_norm(groups, out_channels, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor | None = None, size: Size | None = None) -> Tensor:
        if self.resize is same:
            h = convolved(self.conv1, self.norm1, x)  # (B, out_channels, H, W)
        else:
            h, x = self.resize(silu(self.norm1(x)), size), self.resize(x, size)  # (B, in_channels, H, W), its new size
            h = self.conv1(h)
        h = self.second(h, None if emb is None else self.time_emb_proj(F.silu(emb))[:, :, None, None])
        return add(h, self.conv_shortcut(x))

    def second(self, h: Tensor, emb: Tensor | None) -> Tensor:
        """Norm, SiLU and convolution of an h (B, out_channels, H, W) that nobody else holds."""
        if emb is not None and self.scale_shift_norm:
            return self.conv2(self.dropout(silu(self.scaled_and_shifted(h, emb))))
        return convolved(self.conv2, self.norm2, h if emb is None else add(h, emb), self.dropout)

    def scaled_and_shifted(self, h: Tensor, emb: Tensor) -> Tensor:
        scale, shift = emb.chunk(2, dim=1)  # (B, out_channels, 1, 1) each
        return torch.addcmul(shift, self.norm2(h), 1 + scale)


class Downsample(nn.Module):
    """A 3×3 convolution of stride 2, padded by 1 all round, or with `padding=0` by 1 on the right and at the bottom."""

    def __init__(self, channels: int, padding: int = 1) -> None:
        super().__init__()
        self.padding = padding
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        return self.conv(x if self.padding else F.pad(x, (0, 1, 0, 1)))  # (B, C, H/2, W/2)


class Upsample(nn.Module):
    """Nearest-neighbour doubling (or to `size`), then a 3×3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, emb: Tensor | None = None, size: Size | None = None) -> Tensor:
        if (h := in_bands_doubled(self.conv, x, size)) is not None:
            return h
        return self.conv(doubled(x, size))  # (B, C, 2H, 2W)


class AveragePool(nn.Module):
    """Downsampling with nothing to learn."""

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        return halved(x, None)  # (B, C, H/2, W/2)


class Nearest(nn.Module):
    """Upsampling with nothing to learn."""

    def forward(self, x: Tensor, emb: Tensor | None = None, size: Size | None = None) -> Tensor:
        return doubled(x, size)  # (B, C, 2H, 2W)


class DownBlock(nn.Module):
    """One level on the way down: (res-block, attention) pairs, then a downsampler unless it is the last level."""

    def __init__(self, resnets: Modules, attentions: Modules, downsamplers: Modules) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)
        self.downsamplers = nn.ModuleList(downsamplers)

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None) -> list[Tensor]:
        """The output of every pair and of the downsampler: the way up wants them all."""
        outputs: list[Tensor] = []
        for resnet, attend in zip(self.resnets, self.attentions, strict=True):
            x = attend(resnet(x, emb), context)
            outputs.append(x)
        return outputs + [downsample(x, emb) for downsample in self.downsamplers]


class UpBlock(nn.Module):
    """One level on the way up: each res-block also gets a tensor of the way down; an upsampler unless at the top."""

    def __init__(self, resnets: Modules, attentions: Modules, upsamplers: Modules) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)
        self.upsamplers = nn.ModuleList(upsamplers)

    def forward(self, x: Tensor, skips: list[Tensor], emb: Tensor, context: Tensor | None, size: Size | None) -> Tensor:
        """`skips` in the order in which they were made; `size` (height, width) is what the level above expects."""
        for resnet, attend, skip in zip(self.resnets, self.attentions, reversed(skips), strict=True):
            x = attend(resnet(torch.cat([x, skip], dim=1), emb), context)
        for upsample in self.upsamplers:
            x = upsample(x, emb, size)
        return x


class MidBlock(nn.Module):
    """Res-block, attention, res-block at the lowest resolution."""

    def __init__(self, resnets: Modules, attentions: Modules) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)

    def forward(self, x: Tensor, emb: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        first, last = self.resnets
        (attend,) = self.attentions
        return last(attend(first(x, emb), context), emb)


def zero(module: nn.Module) -> None:
    """Set every parameter to 0, so that a residual branch that ends in the module starts as nothing."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
