"""Encoder (image -> latent moments) and decoder (latent -> image) of the autoencoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

from torch import Tensor, nn

from ldm.modules.attention import AttentionBlock, NoAttention, group_norm
from ldm.modules.blocks import Downsample, MidBlock, Modules, ResnetBlock, Silu, Upsample


@dataclass(frozen=True)
class Plan:
    """What encoder and decoder have in common; levels are counted from the image's resolution down."""

    widths: Sequence[int]
    layers: int
    attention_levels: Sequence[bool]
    mid_attention: bool
    groups: int
    eps: float
    dropout: float

    def resnets(self, c_in: int, c_out: int, layers: int) -> list[nn.Module]:
        widths = pairwise([c_in] + [c_out] * layers)
        return [ResnetBlock(a, b, groups=self.groups, eps=self.eps, dropout=self.dropout) for a, b in widths]

    def attention(self, channels: int, attend: bool) -> nn.Module:
        return AttentionBlock(channels, 1, self.groups, self.eps) if attend else NoAttention()

    def attentions(self, level: int, layers: int) -> list[nn.Module]:
        return [self.attention(self.widths[level], self.attention_levels[level]) for _ in range(layers)]

    def mid_block(self) -> MidBlock:
        c = self.widths[-1]
        return MidBlock(self.resnets(c, c, 2), [self.attention(c, self.mid_attention)])

    def norm(self, channels: int) -> nn.GroupNorm:
        return group_norm(self.groups, channels, self.eps)


class Block(nn.Module):
    """One resolution: (res-block, attention) pairs, then what changes the size unless it is the last."""

    def __init__(self, resnets: Modules, attentions: Modules) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)

    def pairs(self) -> list[nn.Module]:
        return [module for pair in zip(self.resnets, self.attentions, strict=True) for module in pair]


class DownBlock(Block):
    def __init__(self, resnets: Modules, attentions: Modules, downsamplers: Modules) -> None:
        super().__init__(resnets, attentions)
        self.downsamplers = nn.ModuleList(downsamplers)

    def steps(self) -> list[nn.Module]:
        return [*self.pairs(), *self.downsamplers]


class UpBlock(Block):
    def __init__(self, resnets: Modules, attentions: Modules, upsamplers: Modules) -> None:
        super().__init__(resnets, attentions)
        self.upsamplers = nn.ModuleList(upsamplers)

    def steps(self) -> list[nn.Module]:
        return [*self.pairs(), *self.upsamplers]


def one_after_the_other(steps: Sequence[nn.Module], x: Tensor) -> Tensor:
    """All in one loop: a block that ran its own would have its input, as large as any, kept by who called it."""
    for step in steps:
        x = step(x)
    return x


class Encoder(nn.Module):
    """Image (B, in_channels, H, W) -> (B, out_channels, h, w), half the size after every level but the last."""

    def __init__(self, in_channels: int, out_channels: int, plan: Plan) -> None:
        super().__init__()
        w, n, last = plan.widths, plan.layers, len(plan.widths) - 1
        self.conv_in = nn.Conv2d(in_channels, w[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for level, (c_in, c_out) in enumerate(pairwise((w[0], *w))):
            downsamplers: list[nn.Module] = [Downsample(c_out, padding=0)] if level < last else []
            block = DownBlock(plan.resnets(c_in, c_out, n), plan.attentions(level, n), downsamplers)
            self.down_blocks.append(block)
        self.mid_block = plan.mid_block()
        self.conv_norm_out = plan.norm(w[-1])
        self.conv_out = nn.Conv2d(w[-1], out_channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return one_after_the_other(self.steps(), image)  # (B, out_channels, h, w)

    def steps(self) -> list[nn.Module]:
        return [
            self.conv_in,  # (B, widths[0], H, W)
            *(step for block in self.down_blocks for step in cast(DownBlock, block).steps()),  # halved but by the last
            self.mid_block,  # (B, widths[-1], h, w)
            self.conv_norm_out,
            Silu(),
            self.conv_out,  # (B, out_channels, h, w)
        ]


class Decoder(nn.Module):
    """Latent (B, in_channels, h, w) -> (B, out_channels, H, W), with one res-block a level more than the encoder."""

    def __init__(self, in_channels: int, out_channels: int, plan: Plan) -> None:
        super().__init__()
        w, n, last = plan.widths, plan.layers + 1, len(plan.widths) - 1
        self.conv_in = nn.Conv2d(in_channels, w[-1], 3, padding=1)
        self.mid_block = plan.mid_block()
        self.up_blocks = nn.ModuleList()
        for level, (c_in, c_out) in zip(range(last, -1, -1), pairwise((w[-1], *reversed(w))), strict=True):
            upsamplers: list[nn.Module] = [Upsample(c_out)] if level > 0 else []
            block = UpBlock(plan.resnets(c_in, c_out, n), plan.attentions(level, n), upsamplers)
            self.up_blocks.append(block)
        self.conv_norm_out = plan.norm(w[0])
        self.conv_out = nn.Conv2d(w[0], out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        return one_after_the_other(self.steps(), z)  # (B, out_channels, H, W)

    def steps(self) -> list[nn.Module]:
        return [
            self.conv_in,  # (B, widths[-1], h, w)
            self.mid_block,
            *(step for block in self.up_blocks for step in cast(UpBlock, block).steps()),  # doubled but by the last
            self.conv_norm_out,  # (B, widths[0], H, W)
            Silu(),
            self.conv_out,  # (B, out_channels, H, W)
        ]
