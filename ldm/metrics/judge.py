"""An independent judge of `scenes` pictures: a small detector trained on renders alone, never on generated pictures.

On a 16 × 16 grid it says where things are and what they are (one heat map, attributes per cell, as in CenterNet,
Zhou et al. 2019, arXiv:1904.07850), and for the whole picture which sky it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.config import register
from ldm.data.scenes import ATTRIBUTES, INVERSE, SKIES, Relation, Scene, Thing, center

GRID = 16
CELL_CHANNELS = 1 + 3 + sum(map(len, ATTRIBUTES.values()))  # heat; offset u, offset v, depth z; attributes


@dataclass(frozen=True)
class Seen:
    """One thing found in a picture; u is its place from left (0) to right (1), z its distance as in `scenes`."""

    shape: str
    color: str
    size: str
    material: str
    u: float
    z: float


@dataclass(frozen=True)
class Finding:
    things: tuple[Seen, ...]
    sky: str


class Residual(nn.Module):
    def __init__(self, channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(self.norm(x)))))


@register("Judge")
class Judge(nn.Module):
    """(B, 3, 128, 128) in [-1, 1] → cells (B, CELL_CHANNELS, 16, 16), sky logits (B, 4)."""

    def __init__(self, widths: Sequence[int] = (16, 32, 64)) -> None:
        super().__init__()
        a, b, c = widths
        self.features = nn.Sequential(
            nn.Conv2d(3, a, 5, stride=2, padding=2), Residual(a),  # (B, a, 64, 64)
            nn.Conv2d(a, b, 3, stride=2, padding=1), Residual(b),  # (B, b, 32, 32)
            nn.Conv2d(b, c, 3, stride=2, padding=1), Residual(c), Residual(c, 2), Residual(c, 4), Residual(c),
            nn.GroupNorm(8, c), nn.SiLU(),  # (B, c, 16, 16)
        )  # fmt: skip
        self.cells = nn.Conv2d(c, CELL_CHANNELS, 1)
        self.sky = nn.Linear(c, len(SKIES))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(image)
        return self.cells(features), self.sky(features.mean(dim=(2, 3)))

    @torch.no_grad()
    def embed(self, image: Tensor) -> Tensor:
        """What the Fréchet distance compares: mean and spread of the features over the picture, (B, 2c)."""
        features = self.features(image)
        return torch.cat([features.mean(dim=(2, 3)), features.std(dim=(2, 3))], dim=1)

    @torch.no_grad()
    def look(self, image: Tensor, threshold: float = 0.5) -> list[Finding]:
        """What is in each picture of (B, 3, 128, 128) in [-1, 1]."""
        cells, sky = (answer.float().cpu() for answer in self(image))
        heat = cells[:, 0].sigmoid()  # (B, 16, 16)
        peak = (heat == F.max_pool2d(heat[:, None], 3, stride=1, padding=1)[:, 0]) & (heat > threshold)
        findings = []
        for picture, places, best in zip(cells, peak, sky.argmax(1).tolist(), strict=True):
            things = tuple(_read(picture[:, row, column], column) for row, column in places.nonzero().tolist())
            findings.append(Finding(things, SKIES[best]))
        return findings


def _read(cell: Tensor, column: int) -> Seen:
    parts = cell[4:].split([len(values) for values in ATTRIBUTES.values()])
    named = {name: values[int(part.argmax())] for (name, values), part in zip(ATTRIBUTES.items(), parts, strict=True)}
    return Seen(**named, u=(column + float(cell[1].sigmoid())) / GRID, z=float(cell[3]))


def judge_loss(judge: Judge, image: Tensor, scenes: Sequence[Scene]) -> Tensor:
    cells, sky = judge(image)
    skies = torch.tensor([SKIES.index(scene.sky) for scene in scenes], device=sky.device)
    return cells_loss(cells, scenes) + F.cross_entropy(sky, skies)


def cells_loss(cells: Tensor, scenes: Sequence[Scene]) -> Tensor:
    """Focal loss of the heat map, squared error of the places, cross-entropy of the attributes."""
    cells = cells.float()  # in bfloat16 1 - 1e-4 is 1, and the logarithm below infinite
    heat, near, flat, wanted = _targets(scenes, cells.device)
    probability = cells[:, 0].sigmoid().clamp(1e-4, 1 - 1e-4)
    positive = -(heat * (1 - probability) ** 2 * probability.log()).sum()
    negative = -((1 - heat) * (1 - near) ** 4 * probability**2 * (1 - probability).log()).sum()
    at_things = cells.permute(0, 2, 3, 1).reshape(-1, CELL_CHANNELS)[flat]  # (number of things, CELL_CHANNELS)
    places = torch.cat([at_things[:, 1:3].sigmoid(), at_things[:, 3:4]], dim=1)
    number = max(len(flat), 1)
    loss = (positive + negative) / number + (places - wanted["place"]).square().sum() / number
    parts = at_things[:, 4:].split([len(values) for values in ATTRIBUTES.values()], dim=1)
    for logits, name in zip(parts, ATTRIBUTES, strict=True):
        loss = loss + F.cross_entropy(logits, wanted[name])
    return loss


def _targets(scenes: Sequence[Scene], device: torch.device) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Heat (1 where a thing's middle is), nearness to one, flat cell indices of the things, what to answer there."""
    heat, near = torch.zeros(len(scenes), GRID, GRID), torch.zeros(len(scenes), GRID, GRID)
    axis = torch.arange(GRID)
    flat: list[int] = []
    answers: dict[str, list] = {name: [] for name in ("place", *ATTRIBUTES)}
    for b, scene in enumerate(scenes):
        for thing in scene.things:
            u, v = (min(max(position, 0.0), 0.999) * GRID for position in center(thing))
            row, column = int(v), int(u)
            heat[b, row, column] = 1
            distance = (axis[:, None] - row) ** 2 + (axis[None, :] - column) ** 2
            near[b] = torch.maximum(near[b], torch.exp(-distance / 2.0))
            flat.append((b * GRID + row) * GRID + column)
            answers["place"].append([u - column, v - row, thing.z])
            for name, values in ATTRIBUTES.items():
                answers[name].append(values.index(getattr(thing, name)))
    wanted = {name: torch.tensor(values, device=device) for name, values in answers.items()}
    return heat.to(device), near.to(device), torch.tensor(flat, device=device), wanted


def compare(scene: Scene, finding: Finding) -> dict[str, list[bool]]:
    """What of the scene is right in the picture, each thing paired with what was found so that most agrees.

    Keys: count, sky, whole (one answer each), shape, color, size, material (one a thing), relation (one a relation).
    """
    found: list[Seen | None] = [*finding.things, *[None] * max(0, len(scene.things) - len(finding.things))]
    paired = max(permutations(found, len(scene.things)), key=lambda order: _agreement(scene, order))
    right = {name: [_same(t, f, name) for t, f in zip(scene.things, paired, strict=True)] for name in ATTRIBUTES}
    right["relation"] = [_related(relation, paired) for relation in scene.relations]
    right["count"] = [len(finding.things) == len(scene.things)]
    right["sky"] = [finding.sky == scene.sky]
    return right | {"whole": [all(all(answers) for answers in right.values())]}


def _agreement(scene: Scene, order: Sequence[Seen | None]) -> float:
    same = sum(_same(t, f, name) for t, f in zip(scene.things, order, strict=True) for name in ATTRIBUTES)
    return same + 0.5 * sum(_related(relation, order) for relation in scene.relations)


def _same(thing: Thing, found: Seen | None, name: str) -> bool:
    return found is not None and getattr(thing, name) == getattr(found, name)


def _related(relation: Relation, found: Sequence[Seen | None]) -> bool:
    a, b = found[relation.subject], found[relation.object]
    if a is None or b is None:
        return False
    if relation.name in ("right of", "behind"):
        a, b, name = b, a, INVERSE[relation.name]
    else:
        name = relation.name
    return a.u < b.u if name == "left of" else a.z < b.z


def accuracy(scenes: Sequence[Scene], findings: Sequence[Finding]) -> dict[str, float]:
    """Share of right answers by name; `whole` is a picture with nothing wrong, also by number of things asked for."""
    names = ("count", *ATTRIBUTES, "relation", "sky", "whole", "whole, 1 or 2 objects", "whole, 3 objects")
    answers: dict[str, list[bool]] = {name: [] for name in names}
    for scene, finding in zip(scenes, findings, strict=True):
        right = compare(scene, finding)
        few = "whole, 1 or 2 objects" if len(scene.things) < 3 else "whole, 3 objects"
        for name, values in (right | {few: right["whole"]}).items():
            answers[name] += values
    return {name: sum(values) / len(values) for name, values in answers.items() if values}


def shown(shares: dict[str, float]) -> str:
    return ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
