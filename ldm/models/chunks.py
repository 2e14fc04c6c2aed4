"""Prompts of any length for towers of a fixed window, and words of any weight, as in AUTOMATIC1111's web UI."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ldm.prompt_tree import Passage

Chunk = list[tuple[int, float]]  # tokens and their weights

BACK_TO_COMMA = 20  # tokens at the end of a chunk that go over into the next, rather than cut what a comma ends


def chunked(passage: Passage, encode: Callable[[str], list[int]], window: int, comma: int) -> list[Chunk]:
    """Chunks of at most `window` tokens. Each part of the passage begins one, empty or not; only at the end of all
    nothing is nothing."""
    parts = [[(token, span.weight) for span in part for token in encode(span.text)] for part in passage]
    if len(parts) > 1 and not parts[-1]:
        parts.pop()
    return [chunk for part in parts for chunk in _cut(part, window, comma)]


def _cut(tokens: Chunk, window: int, comma: int) -> list[Chunk]:
    """A chunk ends behind its last comma, if that is near its end."""
    chunks, start = [], 0
    while len(tokens) - start > window:
        end = start + window
        if tokens[end][0] != comma:
            near = range(end - 1, max(start, end - BACK_TO_COMMA) - 1, -1)
            end = next((i + 1 for i in near if tokens[i][0] == comma), end)
        chunks.append(tokens[start:end])
        start = end
    return [*chunks, tokens[start:]]


def emphasized(states: Tensor, weights: Tensor) -> Tensor:
    """states (B, L, width) times weights (B, L), scaled so that the mean of each row's states stays what it was.

    A row whose weights are all 1, or whose mean would vanish, is not scaled.
    """
    scaled = states * weights[:, :, None].to(states.dtype)
    was, became = (x.mean(dim=(1, 2), keepdim=True, dtype=torch.float32) for x in (states, scaled))  # (B, 1, 1)
    ratio = was / became
    usable = ratio.isfinite() & (weights != 1).any(dim=1)[:, None, None]
    return scaled * torch.where(usable, ratio, 1).to(states.dtype)
