"""Prompts -> tensors: CLIP's text towers, one or two of them.

open_clip comes through `clip.py`, and only when a tower is built or text is tokenized.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ldm.config import register
from ldm.models.chunks import Chunk, chunked, emphasized
from ldm.models.clip import END, START, encode, open_clip_file, published_tower
from ldm.models.encoders import TextEncoder, TextFeatures
from ldm.prompt import MAX_CHARACTERS
from ldm.prompt_tree import Passage


class ChunkedTextEncoder(TextEncoder):
    """CLIP's towers: they read a prompt of any length in chunks of a window, and words of any weight.

    A prompt's states are those of its chunks, one after another; its pooled vector is the first chunk's.
    """

    context_length: int

    @property
    def layers(self) -> int:
        """How many could be taken the states of: the one that the family takes, and those before it."""
        raise NotImplementedError

    def rows(self, chunks: Sequence[Sequence[int]]) -> Tensor:
        """Tokens of each chunk -> (N, …, context_length) int64: start, tokens, end, padding."""
        raise NotImplementedError

    def forward(self, tokens: Tensor, weights: Tensor | None = None, clip_skip: int = 1) -> TextFeatures:
        """As `TextEncoder.forward`. weights: (B, context_length), of the states.

        clip_skip: 1 takes the states that the family takes, 2 those one layer before, …
        """
        raise NotImplementedError

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Texts as they stand -> (B, …, context_length) int64, cut to one window: what a model is trained on."""
        assert not isinstance(texts, str)
        return self.rows([encode(text)[: self.context_length - 2] for text in texts])

    def unseen(self, text: str) -> str:
        return text[MAX_CHARACTERS:]

    def chunks(self, passage: Passage) -> list[Chunk]:
        """At least one, each of at most `context_length` - 2 tokens."""
        comma, *_ = encode(",")
        return chunked(passage, encode, self.context_length - 2, comma)

    def read(self, passages: Sequence[Passage], device: torch.device, clip_skip: int = 1) -> TextFeatures:
        """Passages of equally many chunks, n -> states (B, n * L, width) and pooled (B, projection_dim) or None."""
        of_each = [self.chunks(passage) for passage in passages]
        counts = sorted({len(chunks) for chunks in of_each}) or [1]
        if len(counts) > 1:
            raise ValueError(f"prompts of {counts} chunks of tokens have no states of one shape; read them apart")
        flat = [chunk for chunks in of_each for chunk in chunks]  # B * n
        tokens = self.rows([[token for token, _ in chunk] for chunk in flat])
        weights: Tensor | None = None
        if any(weight != 1 for chunk in flat for _, weight in chunk):
            weights = torch.ones(len(flat), self.context_length)  # (B * n, L)
            for row, chunk in zip(weights, flat, strict=True):
                row[1 : len(chunk) + 1] = torch.tensor([weight for _, weight in chunk])
            weights = weights.to(device)
        states, pooled = self(tokens.to(device), weights, clip_skip)
        assert states is not None
        n, length, width = counts[0], states.shape[1], states.shape[2]
        return TextFeatures(states.reshape(len(passages), n * length, width), None if pooled is None else pooled[::n])

    def check_skip(self, clip_skip: int | None) -> None:
        if not isinstance(clip_skip, int) or not 1 <= clip_skip <= self.layers:
            raise ValueError(
                f"clip_skip is {clip_skip}; for this text tower it can be 1 (nothing skipped) … {self.layers}"
            )


@register(
    "OpenCLIPTextEncoder",
    "ldm.modules.encoders.modules.FrozenCLIPEmbedder",
    "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder",
)
class OpenCLIPTextEncoder(ChunkedTextEncoder):
    """open_clip's `TextTransformer`, alone: no image tower is ever allocated.

    name: one of open_clip's towers, e.g. "ViT-L-14-quickgelu", of which `layers` may take fewer (diffusers stores
    SD 2's without the one that it never uses); otherwise give width, heads and layers.
    layer, final_norm: which states. SD 1: last, normed; SD 2: penultimate, normed; SDXL: penultimate, not normed.
    pad_id: fills up the window; 49407 (end of text) for SD 1, 0 for SD 2.
    projection_dim: if given, `forward` also gives the pooled vector: the last layer's state after the final norm, at
    the first end-of-text token, times `text_projection`.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        width: int | None = None,
        heads: int | None = None,
        layers: int | None = None,
        context_length: int = 77,
        vocab_size: int = 49408,
        activation: Literal["gelu", "quick_gelu"] = "gelu",
        layer: Literal["last", "penultimate"] = "last",
        final_norm: bool = True,
        pad_id: int = 0,
        projection_dim: int | None = None,
        causal: bool = True,
    ) -> None:
        super().__init__()
        if name is not None:
            if (width, heads) != (None, None):
                raise ValueError(f"give either name ({name!r}) or width, heads and layers, not both")
            width, heads, published, activation = published_tower(name)
            layers = published if layers is None else layers
        if width is None or heads is None or layers is None:
            raise ValueError("a text tower needs width, heads and layers, or the name of one of open_clip's")
        if vocab_size <= END:
            raise ValueError(f"vocab_size {vocab_size} is too small for CLIP's vocabulary: use {END + 1} or more")
        open_clip = open_clip_file("transformer")
        self.tower = open_clip.TextTransformer(
            context_length=context_length,
            vocab_size=vocab_size,
            width=width,
            heads=heads,
            layers=layers,
            output_dim=projection_dim,
            act_layer=open_clip.QuickGELU if activation == "quick_gelu" else nn.GELU,
            no_causal_mask=True,  # as a buffer it is in no file, and lost by a meta build: `forward` makes its own
        )
        self.width, self.context_length, self.pad_id = width, context_length, pad_id
        self.layer, self.final_norm, self.causal = layer, final_norm, causal

    @property
    def layers(self) -> int:
        return max(1, len(self.tower.transformer.resblocks) - (self.layer == "penultimate"))

    def rows(self, chunks: Sequence[Sequence[int]]) -> Tensor:
        rows = torch.full((len(chunks), self.context_length), self.pad_id)  # (N, L)
        for row, chunk in zip(rows, chunks, strict=True):
            ids = [START, *chunk, END]
            row[: len(ids)] = torch.tensor(ids)
        return rows

    def mask(self, length: int, like: Tensor) -> Tensor | None:
        """What is added to the attention scores, (L, L): minus infinity for what lies ahead."""
        if not self.causal:
            return None
        return torch.full((length, length), float("-inf"), dtype=like.dtype, device=like.device).triu_(1)

    def forward(self, tokens: Tensor, weights: Tensor | None = None, clip_skip: int = 1) -> TextFeatures:
        """(B, L) int64 -> states (B, L, width) and pooled (B, projection_dim) or None."""
        self.check_skip(clip_skip)
        tower, length = self.tower, tokens.shape[1]
        x = tower.token_embedding(tokens) + tower.positional_embedding[:length]  # (B, L, width)
        mask = self.mask(length, x)

        blocks, states = tower.transformer.resblocks, x
        taken = len(blocks) - (self.layer == "penultimate") - clip_skip + 1  # after how many blocks
        for i, block in enumerate(blocks[: taken if tower.text_projection is None else None]):
            x = block(x, attn_mask=mask)
            if i + 1 == taken:
                states = x

        states = tower.ln_final(states) if self.final_norm else states
        states = states if weights is None else emphasized(states, weights)
        if tower.text_projection is None:
            return TextFeatures(states, None)

        end = (
            (tokens == END).cumsum(dim=1).eq(0).sum(dim=1).clamp(max=length - 1)
        )  # (B,) the first: padding may be END too
        at_end = x[torch.arange(len(x), device=x.device), end]  # (B, width)
        return TextFeatures(states, tower.ln_final(at_end) @ tower.text_projection)


@register("TwoTowers")
class TwoTowers(ChunkedTextEncoder):
    """SDXL's: the states of both side by side, the pooled vector of the second. Each has its own padding."""

    def __init__(self, first: OpenCLIPTextEncoder, second: OpenCLIPTextEncoder) -> None:
        super().__init__()
        if first.context_length != second.context_length:
            lengths = f"{first.context_length} and {second.context_length}"
            raise ValueError(f"two towers need one context_length, not {lengths}: make them equal")
        self.first, self.second, self.context_length = first, second, first.context_length

    @property
    def layers(self) -> int:
        return min(self.first.layers, self.second.layers)

    def rows(self, chunks: Sequence[Sequence[int]]) -> Tensor:
        return torch.stack([self.first.rows(chunks), self.second.rows(chunks)], dim=1)  # (N, 2, L)

    def forward(self, tokens: Tensor, weights: Tensor | None = None, clip_skip: int = 1) -> TextFeatures:
        """(B, 2, L) int64 -> states (B, L, sum of widths) and the second's pooled vector, or None."""
        self.check_skip(clip_skip)
        first, second = (tower(tokens[:, i], weights, clip_skip) for i, tower in enumerate((self.first, self.second)))
        return TextFeatures(torch.cat([first.states, second.states], dim=2), second.pooled)
