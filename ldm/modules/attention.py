"""Attention over tokens (B, N, C) and over images (B, C, H, W). `attention` is the only place that attends."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

AttentionFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
MANY = 1024  # tokens attended to, from which on a CPU is faster where those of a head lie together


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √d) v, with q (B, heads, N, d) and k, v (B, heads, M, d) (Vaswani et al. 2017, equation 1)."""
    if k.device.type == "cpu" and k.shape[2] >= MANY:
        k, v = k.contiguous(), v.contiguous()
    return F.scaled_dot_product_attention(q, k, v)


def group_norm(groups: int, channels: int, eps: float) -> nn.GroupNorm:
    if channels % groups:
        raise ValueError(f"norm_num_groups {groups} does not divide {channels} channels: choose a divisor")
    return nn.GroupNorm(groups, channels, eps)


def to_tokens(image: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H*W, C); no copy where the image is channels_last."""
    return image.flatten(2).transpose(1, 2)


def to_image(tokens: Tensor, height: int, width: int) -> Tensor:
    """(B, H*W, C) -> (B, C, H, W), always without a copy: the result is channels_last."""
    return tokens.transpose(1, 2).unflatten(2, (height, width))


class Attention(nn.Module):
    """Multi-head attention of x (B, N, dim) to a context (B, M, context_dim), or to itself where there is none.

    head_channels: width of a head; None is dim / num_heads.
    The function that attends is the attribute `attention`: assign another to change or to watch this one layer.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        context_dim: int | None = None,
        qkv_bias: bool = False,
        head_channels: int | None = None,
    ) -> None:
        super().__init__()
        if head_channels is None and dim % num_heads:
            raise ValueError(f"num_heads {num_heads} does not divide {dim} channels: choose a divisor")
        context_dim = dim if context_dim is None else context_dim
        inner = dim if head_channels is None else num_heads * head_channels
        self.num_heads = num_heads
        self.attention: AttentionFunction = attention
        self.to_q = nn.Linear(dim, inner, bias=qkv_bias)
        self.to_k = nn.Linear(context_dim, inner, bias=qkv_bias)
        self.to_v = nn.Linear(context_dim, inner, bias=qkv_bias)
        self.to_out = nn.Sequential(nn.Linear(inner, dim))

    def split_heads(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, N, d)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        q = self.split_heads(self.to_q(x))  # (B, heads, N, d)
        k = self.split_heads(self.to_k(context))  # (B, heads, M, d)
        v = self.split_heads(self.to_v(context))  # (B, heads, M, d)
        h = self.attention(q, k, v)  # (B, heads, N, d)
        return self.to_out(h.transpose(1, 2).flatten(2))  # (B, N, dim)


class AttentionBlock(Attention):
    """Self-attention over the pixels of an image, with its own normalisation and residual; takes no context."""

    def __init__(self, channels: int, num_heads: int, groups: int, eps: float) -> None:
        super().__init__(channels, num_heads, qkv_bias=True)
        self.group_norm = group_norm(groups, channels, eps)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        h = super().forward(to_tokens(self.group_norm(x)))  # (B, H*W, C)
        return x + to_image(h, *x.shape[2:])  # (B, C, H, W)


class NoAttention(nn.Module):
    """Stands where a level does not attend."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return x


class GEGLU(nn.Module):
    """a · gelu(b) for (a, b) = W x (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.proj(x).chunk(2, dim=-1)
        return a * F.gelu(b)


class FeedForward(nn.Module):
    def __init__(self, dim: int, expansion: int = 4) -> None:
        super().__init__()
        hidden = expansion * dim
        unnamed = nn.Identity()  # the place of a dropout, which the published names count
        self.net = nn.Sequential(GEGLU(dim, hidden), unnamed, nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class BasicTransformerBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward. With `only_cross_attention` the first sees the context too."""

    def __init__(self, dim: int, num_heads: int, context_dim: int | None, only_cross_attention: bool = False) -> None:
        super().__init__()
        self.only_cross_attention = only_cross_attention
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, num_heads, context_dim if only_cross_attention else None)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = Attention(dim, num_heads, context_dim)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x = x + self.attn1(self.norm1(x), context if self.only_cross_attention else None)  # (B, N, dim)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class PointwiseConv(nn.Conv2d):
    """A linear layer over tokens whose weight is stored as that of a 1×1 convolution, (out, in, 1, 1)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, kernel_size=1)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.linear(tokens, self.weight.flatten(1), self.bias)


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of an image, attending to a context (Rombach et al. 2022, section 3.3)."""

    def __init__(
        self,
        channels: int,
        num_heads: int,
        depth: int,
        context_dim: int | None,
        use_linear_projection: bool,
        only_cross_attention: bool,
        groups: int,
        eps: float,
    ) -> None:
        super().__init__()
        projection = nn.Linear if use_linear_projection else PointwiseConv
        blocks = [BasicTransformerBlock(channels, num_heads, context_dim, only_cross_attention) for _ in range(depth)]
        self.norm = group_norm(groups, channels, eps)
        self.proj_in = projection(channels, channels)
        self.transformer_blocks = nn.ModuleList(blocks)
        self.proj_out = projection(channels, channels)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        h = self.proj_in(to_tokens(self.norm(x)))  # (B, H*W, C)
        for block in self.transformer_blocks:
            h = block(h, context)
        return x + to_image(self.proj_out(h), *x.shape[2:])  # (B, C, H, W)
