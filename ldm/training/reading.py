"""Teach a text tower to read before the UNet listens to it: each noun must tell all about the thing it names.

No picture is needed. From the tower's state at a noun alone, linearly, follow the thing's attributes and where it is to
be expected, so one look at one word tells a place in the picture what to draw there; and the sky from the mean state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.data.scenes import ATTRIBUTES, SKIES, Scene, Thing
from ldm.models.clip import END
from ldm.models.encoders import TextEncoder

WORD_CHANNELS = 2 + sum(map(len, ATTRIBUTES.values()))  # x, z; attributes


class Noun(NamedTuple):
    caption: int  # which of the batch
    token: int  # where in it
    thing: Thing


class Reader(nn.Module):
    """A text encoder and what it is asked; only the encoder is kept."""

    def __init__(self, text_encoder: TextEncoder, width: int) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.words, self.sky = nn.Linear(width, WORD_CHANNELS), nn.Linear(width, len(SKIES))

    def forward(self, tokens: Tensor, nouns: Sequence[Noun]) -> tuple[Tensor, Tensor]:
        """(B, L) → what the nouns tell (N, WORD_CHANNELS), sky logits (B, 4)."""
        states = self.text_encoder(tokens).states  # (B, L, width)
        at_nouns = states[[noun.caption for noun in nouns], [noun.token for noun in nouns]]  # (N, width)
        return self.words(at_nouns), self.sky(states.mean(dim=1))


def last_token(tokens: Tensor) -> int:
    """Of one text's tokens (L,), the place of the last that is text."""
    return tokens.tolist().index(END) - 1


def reading_loss(words: Tensor, sky: Tensor, nouns: Sequence[Noun], scenes: Sequence[Scene]) -> Tensor:
    things = [noun.thing for noun in nouns]
    places = torch.tensor([[thing.x, thing.z] for thing in things], device=words.device)
    cost = (words[:, :2] - places).square().sum(dim=1)  # (N,)
    for name, logits in attribute_logits(words).items():
        cost = cost + F.cross_entropy(logits, _indices(things, name).to(words.device), reduction="none")
    skies = torch.tensor([SKIES.index(scene.sky) for scene in scenes], device=sky.device)
    return cost.sum() / len(scenes) + F.cross_entropy(sky, skies)


def attribute_logits(words: Tensor) -> dict[str, Tensor]:
    parts = words[:, 2:].split([len(values) for values in ATTRIBUTES.values()], dim=1)
    return dict(zip(ATTRIBUTES, parts, strict=True))


def _indices(things: Sequence[Thing], name: str) -> Tensor:
    return torch.tensor([ATTRIBUTES[name].index(getattr(thing, name)) for thing in things])


def read_right(words: Tensor, sky: Tensor, nouns: Sequence[Noun], scenes: Sequence[Scene]) -> tuple[float, float]:
    """Shares of captions whose every attribute and sky, and of relations that, are read right."""
    right = (sky.argmax(dim=1).cpu() == torch.tensor([SKIES.index(scene.sky) for scene in scenes])).tolist()
    for name, logits in attribute_logits(words).items():
        same = logits.argmax(dim=1).cpu() == _indices([noun.thing for noun in nouns], name)
        for noun, agrees in zip(nouns, same.tolist(), strict=True):
            right[noun.caption] &= agrees
    place = {(n.caption, n.thing): (float(w[0]), float(w[1])) for n, w in zip(nouns, words, strict=True)}
    related = []
    for i, scene in enumerate(scenes):
        for relation in scene.relations:
            a, b = place[i, scene.things[relation.subject]], place[i, scene.things[relation.object]]
            axis = 0 if relation.name in ("left of", "right of") else 1  # x or z
            low_first = relation.name in ("left of", "in front of")
            related.append((a[axis] < b[axis]) == low_first)
    return sum(right) / len(right), sum(related) / len(related)
