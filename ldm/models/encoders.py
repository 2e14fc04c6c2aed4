"""What all encoders of prompts are, and the two that read no words: a class embedder, and no condition at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ldm.config import register


class TextFeatures(NamedTuple):
    """What an encoder makes of tokens: states for cross-attention (or none), and one vector per prompt (or none)."""

    states: Tensor | None  # (B, L, width)
    pooled: Tensor | None  # (B, projection_dim)


class TextEncoder(nn.Module):
    """The surface all encoders share: `tokenize`, then `forward`."""

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (B, L) int64 on the CPU."""
        raise NotImplementedError

    def unseen(self, text: str) -> str:
        """The end of a text that does not fit into the window, "" if it fits."""
        return ""

    def forward(self, tokens: Tensor) -> TextFeatures:
        raise NotImplementedError


@register("ClassEmbedder", "ldm.modules.encoders.modules.ClassEmbedder")
class ClassEmbedder(TextEncoder):
    """One learned vector per class, as a context of length 1.

    The prompt is the number of the class; "" is the last class, which is trained as "no class".
    """

    def __init__(self, num_classes: int, embed_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_classes, embed_dim)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        last = self.embedding.num_embeddings - 1
        ids = [last if not text.strip() else int(text) if text.strip().isdecimal() else -1 for text in texts]
        for text, i in zip(texts, ids, strict=True):
            if not 0 <= i <= last:
                raise ValueError(
                    f"the prompt of a class-conditional model is a class number from 0 to {last}, not {text!r}"
                )
        return torch.tensor(ids).view(-1, 1)  # (B, 1)

    def forward(self, tokens: Tensor) -> TextFeatures:
        return TextFeatures(self.embedding(tokens), None)  # (B, 1, embed_dim)


@register("NoText")
class NoText(TextEncoder):
    """For unconditional models: every prompt is no condition."""

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        return torch.zeros(len(texts), 0, dtype=torch.int64)

    def forward(self, tokens: Tensor) -> TextFeatures:
        return TextFeatures(None, None)
