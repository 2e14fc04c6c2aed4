"""What a UNet's levels are made of: the kind of every part is decided here, the order of the parts in `unet`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from ldm.modules.attention import AttentionBlock, NoAttention, SpatialTransformer
from ldm.modules.blocks import (
    AveragePool,
    Downsample,
    Nearest,
    Resize,
    ResnetBlock,
    Upsample,
    doubled,
    halved,
    same,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """The kind of every part, once; sequences have one entry a level, from the full resolution down."""

    widths: Sequence[int]
    attends: Sequence[bool]
    depths: Sequence[int]
    only_cross: Sequence[bool]
    num_heads: int | None
    head_channels: int | None
    context_dim: int | None
    use_linear_projection: bool
    resample: str
    downsample_padding: int
    scale_shift_norm: bool
    dropout: float
    groups: int
    eps: float
    transformer_eps: float

    def __post_init__(self) -> None:
        if (self.num_heads is None) == (self.head_channels is None):
            given = f"num_heads {self.num_heads} and head_channels {self.head_channels}"
            raise ValueError(f"{given}: give exactly one of the two")
        if self.resample not in ("conv", "pool", "resnet"):
            raise ValueError(f"resample {self.resample!r} is unknown: choose conv, pool or resnet")

    @property
    def least_side(self) -> int:
        """Of what the network takes: only a convolution with a border makes one place of one."""
        keeps_one = self.resample == "conv" and self.downsample_padding == 1
        return 1 if keeps_one else 2 ** (len(self.widths) - 1)

    def resnet(self, c_in: int, c_out: int, resize: Resize = same) -> nn.Module:
        return ResnetBlock(
            c_in,
            c_out,
            4 * self.widths[0],
            groups=self.groups,
            eps=self.eps,
            scale_shift_norm=self.scale_shift_norm,
            dropout=self.dropout,
            resize=resize,
        )

    def heads(self, channels: int) -> int:
        if self.num_heads is not None:
            return self.num_heads
        assert self.head_channels is not None
        if channels % self.head_channels:
            raise ValueError(f"head_channels {self.head_channels} does not divide width {channels}: choose a divisor")
        return channels // self.head_channels

    def attention(self, channels: int, depth: int, only_cross: bool) -> nn.Module:
        if depth == 0:
            return AttentionBlock(channels, self.heads(channels), self.groups, self.eps)
        return SpatialTransformer(
            channels,
            self.heads(channels),
            depth,
            self.context_dim,
            self.use_linear_projection,
            only_cross,
            self.groups,
            self.transformer_eps,
        )

    def attentions(self, level: int, layers: int) -> list[nn.Module]:
        if not self.attends[level]:
            return [NoAttention() for _ in range(layers)]
        return [self.attention(self.widths[level], self.depths[level], self.only_cross[level]) for _ in range(layers)]

    def downsampler(self, channels: int) -> nn.Module:
        if self.resample == "conv":
            return Downsample(channels, self.downsample_padding)
        return AveragePool() if self.resample == "pool" else self.resnet(channels, channels, halved)

    def upsampler(self, channels: int) -> nn.Module:
        if self.resample == "conv":
            return Upsample(channels)
        return Nearest() if self.resample == "pool" else self.resnet(channels, channels, doubled)


def per_level(name: str, value: T | Sequence[T], levels: int) -> list[T]:
    values = list(value) if isinstance(value, Sequence) else [value] * levels
    if len(values) != levels:
        raise ValueError(f"{name} has {len(values)} entries for {levels} block_out_channels: give one a level")
    return values
