"""Teach a text tower to read before the UNet listens to it: from a caption, say what the scene holds.

No picture is needed: three slots ask the tower's states what the first, second and third thing named is like and
where it stands. (Slots free to take any thing, as in set prediction, never learned which word belongs to which thing.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.data.scenes import ATTRIBUTES, SKIES, Scene
from ldm.models.text_encoder import TextEncoder
from ldm.modules.attention import BasicTransformerBlock

SLOTS = 3
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


def reading_loss(
    slots: Tensor, sky: Tensor, scenes: Sequence[Scene], orders: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """The loss, and for each caption whether all attributes and the sky were read right, (B,) bool.

    orders: for each scene its things as the caption names them.
    """
    present, places, attributes = _answers(scenes, orders, slots.device)
    cost = F.binary_cross_entropy_with_logits(slots[..., 0], present, reduction="none")  # (B, SLOTS)
    cost = cost + present * (slots[..., 1:3] - places).square().sum(dim=2)
    right = (slots[..., 0] > 0) == (present > 0)
    parts = slots[..., 3:].split([len(values) for values in ATTRIBUTES.values()], dim=2)
    for logits, wanted in zip(parts, attributes.values(), strict=True):
        cost = cost + present * F.cross_entropy(logits.transpose(1, 2), wanted, reduction="none")
        right = right & ((logits.argmax(dim=2) == wanted) | (present == 0))
    skies = torch.tensor([SKIES.index(scene.sky) for scene in scenes], device=sky.device)
    loss = cost.sum(dim=1).mean() + F.cross_entropy(sky, skies)
    return loss, right.all(dim=1) & (sky.argmax(dim=1) == skies)


def _answers(
    scenes: Sequence[Scene], orders: Sequence[Sequence[int]], device: torch.device
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Presence (B, SLOTS), places (B, SLOTS, 2), attribute indices (B, SLOTS) by name."""
    present, places = torch.zeros(len(scenes), SLOTS), torch.zeros(len(scenes), SLOTS, 2)
    attributes = {name: torch.zeros(len(scenes), SLOTS, dtype=torch.int64) for name in ATTRIBUTES}
    for b, (scene, order) in enumerate(zip(scenes, orders, strict=True)):
        for i, thing in enumerate(scene.things[number] for number in order):
            present[b, i] = 1
            places[b, i] = torch.tensor([thing.x, thing.z])
            for name, values in ATTRIBUTES.items():
                attributes[name][b, i] = values.index(getattr(thing, name))
    return present.to(device), places.to(device), {name: values.to(device) for name, values in attributes.items()}
