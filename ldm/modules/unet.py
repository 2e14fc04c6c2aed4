"""The UNet of latent diffusion: Stable Diffusion 1, 2 and XL, their kin, and the models of the 2022 paper."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from ldm.config import register
from ldm.modules.attention import AttentionBlock, SpatialTransformer, group_norm
from ldm.modules.blocks import DownBlock, Embedding, MidBlock, ResnetBlock, UpBlock, silu, timestep_embedding, zero
from ldm.modules.unet_plan import Plan, per_level


@register("UNet", "ldm.modules.diffusionmodules.openaimodel.UNetModel")
class UNet(nn.Module):
    """Predicts from a noisy latent, its timestep and what is to be drawn (Ronneberger 2015; Dhariwal & Nichol 2021).

    Levels are counted from the full resolution down; a sequence has one entry a level, a single value stands for all.

    attention_levels: which levels attend after each res-block; the mid-block always does.
    transformer_depth: blocks in each of their transformers; 0 is plain self-attention, without a context.
    mid_transformer_depth: the same in the mid-block; None is the depth of the last level.
    num_heads, head_channels: one of them; the other follows from the width of the level.
    context_dim: width of the context; None lets the transformers attend to the image alone.
    use_linear_projection: a shape of stored weights: (C, C) around a transformer instead of (C, C, 1, 1).
    only_cross_attention: which levels replace self-attention by a second cross-attention.
    num_classes, y_dim: `y` is a class label (B,), or a vector (B, y_dim).
    resample: a convolution of stride 2 ("conv"), a mean of 2×2 ("pool") or a whole res-block ("resnet") between levels.
    flip_sin_to_cos, freq_shift: see `timestep_embedding`.
    downsample_padding: see `Downsample`.
    new_attention_order: of an original file's stacked q, k, v: see `checkpoint.keys`. Here it changes nothing.
    """

    def __init__(
        self,
        in_channels: int = 4,
        out_channels: int = 4,
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        attention_levels: bool | Sequence[bool] = (True, True, True, False),
        transformer_depth: int | Sequence[int] = 1,
        mid_transformer_depth: int | None = None,
        num_heads: int | None = None,
        head_channels: int | None = None,
        context_dim: int | None = None,
        use_linear_projection: bool = False,
        only_cross_attention: bool | Sequence[bool] = False,
        mid_only_cross_attention: bool = False,
        num_classes: int | None = None,
        y_dim: int | None = None,
        resample: Literal["conv", "pool", "resnet"] = "conv",
        scale_shift_norm: bool = False,
        dropout: float = 0.0,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        transformer_norm_eps: float = 1e-6,
        flip_sin_to_cos: bool = True,
        freq_shift: int = 0,
        downsample_padding: int = 1,
        new_attention_order: bool = False,
    ) -> None:
        super().__init__()
        widths, n, last = tuple(block_out_channels), layers_per_block, len(block_out_channels) - 1
        depths = per_level("transformer_depth", transformer_depth, len(widths))
        plan = Plan(
            widths,
            per_level("attention_levels", attention_levels, len(widths)),
            depths,
            per_level("only_cross_attention", only_cross_attention, len(widths)),
            num_heads,
            head_channels,
            context_dim,
            use_linear_projection,
            resample,
            downsample_padding,
            scale_shift_norm,
            dropout,
            norm_num_groups,
            norm_eps,
            transformer_norm_eps,
        )
        self.in_channels, self.out_channels, self.context_dim = in_channels, out_channels, context_dim
        self.skips_per_level = n + 1
        self.least_side = plan.least_side
        self.num_classes, self.y_dim = num_classes, y_dim
        self.flip_sin_to_cos, self.freq_shift = flip_sin_to_cos, freq_shift
        self.new_attention_order = new_attention_order

        self.time_embedding = Embedding(widths[0], 4 * widths[0])
        self.class_embedding = None if num_classes is None else nn.Embedding(num_classes, 4 * widths[0])
        self.add_embedding = None if y_dim is None else Embedding(y_dim, 4 * widths[0])
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)

        levels = list(enumerate(pairwise((widths[0], *widths))))  # (level, (channels above, channels here))
        self.down_blocks = nn.ModuleList()
        for level, (c_in, c) in levels:
            resnets = [plan.resnet(a, c) for a in [c_in] + [c] * (n - 1)]
            downsamplers = [plan.downsampler(c)] if level < last else []
            self.down_blocks.append(DownBlock(resnets, plan.attentions(level, n), downsamplers))

        c = widths[-1]
        mid_depth = depths[-1] if mid_transformer_depth is None else mid_transformer_depth
        mid_attention = plan.attention(c, mid_depth, mid_only_cross_attention)
        self.mid_block = MidBlock([plan.resnet(c, c), plan.resnet(c, c)], [mid_attention])

        self.up_blocks = nn.ModuleList()
        c_below = c
        for level, (c_in, c) in reversed(levels):
            skips = [c] * n + [c_in]  # what this level made on the way down, last first, and what it was given
            resnets = [plan.resnet(a + skip, c) for a, skip in zip([c_below] + [c] * n, skips, strict=True)]
            upsamplers = [plan.upsampler(c)] if level > 0 else []
            self.up_blocks.append(UpBlock(resnets, plan.attentions(level, n + 1), upsamplers))
            c_below = c

        self.conv_norm_out = group_norm(norm_num_groups, widths[0], norm_eps)
        self.conv_out = nn.Conv2d(widths[0], out_channels, 3, padding=1)
        self.initialize()

    def initialize(self) -> None:
        """Zero what ends each residual branch, and the output: untrained, it predicts 0. The rest is torch's own."""
        for module in self.modules():
            if isinstance(module, ResnetBlock):
                zero(module.conv2)
            elif isinstance(module, AttentionBlock):
                zero(module.to_out)
            elif isinstance(module, SpatialTransformer):
                zero(module.proj_out)
        zero(self.conv_out)

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """x (B, in_channels, h, w), h and w of `least_side` or more; t (B,) in training timesteps, whole or not;
        context (B, M, context_dim), y as the class says -> (B, out_channels, h, w). ValueError if context or y is
        missing or not wanted, or a side too small."""
        self.check(context, y)
        if self.least_side > 1 and min(x.shape[2:]) < self.least_side:
            raise ValueError(f"{tuple(x.shape[2:])} is too small for this network: {self.least_side} is its least side")

        # what every res-block is told
        emb = self.embed(x, t, y)  # (B, 4 C)

        # down: keep every tensor made
        x = self.conv_in(x)  # (B, C, h, w)
        skips = [x]
        for block in self.down_blocks:
            outputs = block(x, emb, context)  # each (B, C_level, h / 2^level, w / 2^level), the last one halved
            x = outputs[-1]
            skips += outputs

        # middle
        x = self.mid_block(x, emb, context)

        # up: give back what was kept, last first
        for block in self.up_blocks:
            skips, own = skips[: -self.skips_per_level], skips[-self.skips_per_level :]
            size = skips[-1].shape[2:] if skips else None
            x = block(x, own, emb, context, size)  # (B, C_level, h / 2^level, w / 2^level), then doubled

        # out
        return self.conv_out(silu(self.conv_norm_out(x)))  # (B, out_channels, h, w)

    def embed(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        """The timestep's embedding, plus that of y, in the dtype of x."""
        width = self.conv_in.out_channels
        wave = timestep_embedding(t, width, flip_sin_to_cos=self.flip_sin_to_cos, freq_shift=self.freq_shift)
        emb = self.time_embedding(wave.to(x.dtype))  # (B, 4 C)
        if self.class_embedding is not None:
            emb = emb + self.class_embedding(y)
        if self.add_embedding is not None:
            emb = emb + self.add_embedding(y)
        return emb

    def check(self, context: Tensor | None, y: Tensor | None) -> None:
        if (context is None) != (self.context_dim is None):
            given = "no context" if context is None else f"a context {tuple(context.shape)}"
            raise ValueError(f"this UNet has context_dim {self.context_dim} and was given {given}")
        if (y is None) != (self.num_classes is None and self.y_dim is None):
            given = "no y" if y is None else f"a y {tuple(y.shape)}"
            raise ValueError(f"this UNet has num_classes {self.num_classes}, y_dim {self.y_dim} and was given {given}")
