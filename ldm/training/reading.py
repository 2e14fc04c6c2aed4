"""Teach a text tower to read before the UNet listens to it: from a caption, say what the scene holds.

No picture is needed: three slots ask the tower's states which things there are, what each is like and where it
stands. A slot may take any thing (the best of all pairings counts), since a caption may name them in any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.data.scenes import COLORS, MATERIALS, SHAPES, SIZES, SKIES, Scene
from ldm.models.text_encoder import TextEncoder
from ldm.modules.attention import BasicTransformerBlock

SLOTS = 3
ATTRIBUTES = {"shape": SHAPES, "color": COLORS, "size": SIZES, "material": MATERIALS}
SLOT_CHANNELS = 1 + 2 + sum(map(len, ATTRIBUTES.values()))  # presence; x, z; attributes


class Reader(nn.Module):
    """A text encoder and the slots that question it; only the encoder is kept."""

    def __init__(self, text_encoder: TextEncoder, width: int, depth: int = 2) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.queries = nn.Parameter(torch.randn(SLOTS, width))
        self.blocks = nn.ModuleList(BasicTransformerBlock(width, 4, width) for _ in range(depth))
        self.slots = nn.Linear(width, SLOT_CHANNELS)
        self.sky = nn.Linear(width, len(SKIES))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L) → slots (B, SLOTS, SLOT_CHANNELS), sky logits (B, 4)."""
        states = self.text_encoder(tokens).states  # (B, L, width)
        h = self.queries.expand(len(tokens), -1, -1)
        for block in self.blocks:
            h = block(h, states)
        return self.slots(h), self.sky(states.mean(dim=1))


def reading_loss(slots: Tensor, sky: Tensor, scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    """The loss, and for each caption whether all attributes and the sky were read right, (B,) bool."""
    present, places, attributes = _answers(scenes)
    costs, rights = [], []
    for order in permutations(range(SLOTS)):  # which slot takes thing 0, 1, 2
        cost, right = _pairing(slots[:, order], present, places, attributes)
        costs.append(cost)
        rights.append(right)
    cost, best = torch.stack(costs, dim=1).min(dim=1)  # (B,)
    right = torch.stack(rights, dim=1).gather(1, best[:, None]).squeeze(1)
    skies = torch.tensor([SKIES.index(scene.sky) for scene in scenes])
    loss = cost.mean() + F.cross_entropy(sky, skies)
    return loss, right & (sky.argmax(dim=1) == skies)


def _pairing(slots: Tensor, present: Tensor, places: Tensor, attributes: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Cost and rightness, (B,) each, of slot i standing for thing i."""
    cost = F.binary_cross_entropy_with_logits(slots[..., 0], present, reduction="none")  # (B, SLOTS)
    right = (slots[..., 0] > 0) == (present > 0)
    cost = cost + present * (slots[..., 1:3] - places).square().sum(dim=2)
    parts = slots[..., 3:].split([len(values) for values in ATTRIBUTES.values()], dim=2)
    for logits, wanted in zip(parts, attributes.values(), strict=True):
        cost = cost + present * F.cross_entropy(logits.transpose(1, 2), wanted, reduction="none")
        right = right & ((logits.argmax(dim=2) == wanted) | (present == 0))
    return cost.sum(dim=1), right.all(dim=1)


def _answers(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Presence (B, SLOTS), places (B, SLOTS, 2), attribute indices (B, SLOTS) by name."""
    present, places = torch.zeros(len(scenes), SLOTS), torch.zeros(len(scenes), SLOTS, 2)
    attributes = {name: torch.zeros(len(scenes), SLOTS, dtype=torch.int64) for name in ATTRIBUTES}
    for b, scene in enumerate(scenes):
        for i, thing in enumerate(scene.things):
            present[b, i] = 1
            places[b, i] = torch.tensor([thing.x, thing.z])
            for name, values in ATTRIBUTES.items():
                attributes[name][b, i] = values.index(getattr(thing, name))
    return present, places, attributes
