"""From the prompts of a batch to what its pictures are led to, step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ldm.items import Item
from ldm.models.diffusion.denoiser import Conditioning
from ldm.models.diffusion.guidance import ConditionalDenoise
from ldm.models.diffusion.prompted import Parts, Scene, Script, composed, prompted
from ldm.models.encoders import TextEncoder
from ldm.models.framing import Framing
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.models.text_encoder import ChunkedTextEncoder
from ldm.noise import slerp
from ldm.prompt import parse
from ldm.prompt_tree import Passage

Said = str | Passage | None  # a text that is read as it stands, what a prompt says in a step, or nothing given
Shown = Callable[[Conditioning, Sequence[Item], bool], Conditioning]
"""Adds what a network is shown besides words: rows, the items they are of, and whether guidance leads away."""


Read = Callable[[Said, bool], Conditioning]
"""What a model makes of a text: one row. And whether guidance leads away from it."""
MOST_TEXTS = 256  # that a reader remembers: 30 MB of SD 1's states in half precision, 80 of SDXL's


class Told(NamedTuple):
    """What guidance leads to and away from. With `scripts`, both are numbers of scripts: see `prompted`."""

    cond: Conditioning
    uncond: Conditioning | None
    scripts: Sequence[Script] | None = None

    @property
    def is_led_from_itself(self) -> bool:
        """Whether guidance would lead away from what it leads to. Of scripts this is not asked; no for meta tensors."""
        if self.uncond is None or self.scripts is not None:
            return False
        pairs = [(getattr(self.cond, field.name), getattr(self.uncond, field.name)) for field in fields(Conditioning)]
        return all(a is b or _are_equal(a, b) for a, b in pairs)

    def heard_by(self, denoiser: ConditionalDenoise) -> ConditionalDenoise:
        """A denoiser that understands them."""
        return denoiser if self.scripts is None else prompted(denoiser, self.scripts)


def _are_equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and not a.is_meta and torch.equal(a, b)


def reader(model: LatentDiffusion, framing: Framing | None = None, clip_skip: int = 1) -> Read:
    """Reads each text once, and alone: so what it makes of one does not depend on its company, to the last bit."""

    @lru_cache(maxsize=MOST_TEXTS)
    def read(text: Said, negative: bool) -> Conditioning:
        return model.condition([text], framing, negative=negative, clip_skip=clip_skip)

    return read


def tell(
    model: LatentDiffusion,
    batch: Sequence[Item],
    sigmas: Tensor,
    *,
    read: Read | None = None,
    guided: bool = True,
    shown: Shown = lambda cond, items, negative: cond,
) -> Told:
    """sigmas: the levels visited, on whose steps prompts may change. read: that of the job, which knows the texts of
    its earlier batches. guided: whether an `uncond` is needed."""
    read = reader(model) if read is None else read
    encoder = model.text_encoder
    plans = [_plan(item, len(sigmas) - 1, encoder) for item in batch]
    if _is_one_text_each([plan.to for plan in plans], encoder) and _is_one_text_each(
        [plan.away for plan in plans], encoder
    ):

        def rows_of(negative: bool) -> Conditioning:
            rows = [read(text, negative) for plan in plans for text in plan.texts(negative)]
            return shown(Conditioning.cat(rows), batch, negative)

        return Told(rows_of(False), rows_of(True) if guided else None)

    needed = (False, True) if guided or any(plan.is_composed for plan in plans) else (False,)
    rows = {(text, negative): read(text, negative) for negative in needed for p in plans for text in p.texts(negative)}
    scripts: tuple[list[Script], list[Script]] = [], []
    for item, plan in zip(batch, plans, strict=True):
        keys = [(text, negative) for negative in (False, True) for text in plan.texts(negative)]
        own = {key: shown(rows[key], [item], key[1]) for key in dict.fromkeys(keys) if key in rows}
        scripts[0].append(_script(plan.led_to(own), sigmas))
        if guided:
            scripts[1].append(_script(plan.led_from(own), sigmas))
    numbers = torch.arange(2 * len(batch)).chunk(2)
    return Told(Conditioning(y=numbers[0]), Conditioning(y=numbers[1]) if guided else None, scripts[0] + scripts[1])


Rows = dict[tuple[Said, bool], Conditioning]  # of each text, and whether guidance leads away from it
Turns = list[tuple[int, tuple[tuple[float, Said], ...]]]  # (first step, (weight, text) of each that is composed)


class Plan(NamedTuple):
    """What is said of one picture, from which step on."""

    to: Turns
    away: Turns

    @property
    def is_composed(self) -> bool:
        return any(len(parts) > 1 for _, parts in self.to)

    def texts(self, negative: bool) -> list[Said]:
        return [text for _, parts in (self.away if negative else self.to) for _, text in parts]

    def led_to(self, rows: Rows) -> list[tuple[int, Parts]]:
        """(first step, parts); where several texts are composed, what is led away from is among them."""
        firsts = {first for first, _ in self.to} | ({first for first, _ in self.away} if self.is_composed else set())
        scenes = []
        for i in sorted(firsts):
            parts = [(weight, rows[text, False]) for weight, text in _at(self.to, i)]
            ((_, away),) = _at(self.away, i)
            scenes.append((i, composed(parts, rows.get((away, True)))))
        return scenes

    def led_from(self, rows: Rows) -> list[tuple[int, Parts]]:
        return [(first, [(weight, rows[text, True]) for weight, text in parts]) for first, parts in self.away]


def _at(turns: Turns, i: int) -> tuple[tuple[float, Said], ...]:
    return [parts for first, parts in turns if first <= i][-1]


def _plan(item: Item, steps: int, encoder: TextEncoder) -> Plan:
    not_given: Turns = [(0, ((1.0, None),))]
    away = item.negative_prompt
    away_turns = not_given if away is None else _turns(away, steps, encoder, compose=False)
    return Plan(_turns(item.prompt, steps, encoder), away_turns)


def _turns(text: str, steps: int, encoder: TextEncoder, compose: bool = True) -> Turns:
    if not isinstance(encoder, ChunkedTextEncoder):
        return [(0, ((1.0, text),))]
    schedule = parse(text, compose=compose).schedule(steps)
    return [(i, tuple((clause.weight, clause.passage) for clause in clauses)) for i, clauses in schedule]


def _is_one_text_each(plans: Sequence[Turns], encoder: TextEncoder) -> bool:
    """From beginning to end, and all of one length."""
    if any(len(turns) > 1 or len(turns[0][1]) > 1 for turns in plans):
        return False
    return len(_by_length(encoder, [text for ((_, ((_, text),)),) in plans])) == 1


def _by_length(encoder: TextEncoder, texts: Sequence[Said]) -> list[list[Said]]:
    """Each text once, with those of equally many chunks."""
    groups: dict[int, list[Said]] = {}
    for text in dict.fromkeys(texts):
        count = 1
        if isinstance(encoder, ChunkedTextEncoder) and text is not None:
            assert not isinstance(text, str)
            count = len(encoder.chunks(text))
        groups.setdefault(count, []).append(text)
    return list(groups.values())


def _script(scenes: Sequence[tuple[int, Parts]], sigmas: Tensor) -> Script:
    """A scene that ends before step i is for the levels above sigmas[i]."""
    firsts, parts = zip(*scenes, strict=True)
    ends = [*firsts[1:], len(sigmas) - 1]
    return [Scene(float(sigmas[end]), part) for end, part in zip(ends, parts, strict=True)]


def interpolate(a: Conditioning, b: Conditioning, t: float, way: Literal["lerp", "slerp"] = "lerp") -> Conditioning:
    """From a (t = 0) to b (t = 1): on a straight line, or each vector turned at an even pace (`slerp`).

    ValueError unless both have one shape.
    """
    mixed: list[Tensor | None] = []
    for field in fields(Conditioning):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if (x is None) != (y is None) or (x is not None and x.shape != y.shape):
            shapes = [None if v is None else tuple(v.shape) for v in (x, y)]
            raise ValueError(f"there is nothing between conditionings whose {field.name} is {shapes}; give equal ones")
        mixed.append(None if x is None else torch.lerp(x, y, t) if way == "lerp" else slerp(x, y, t, dim=-1))
    return Conditioning(*mixed)
