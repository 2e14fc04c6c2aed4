"""What a prompt says, step by step: a tree of nodes, as `ldm.prompt` parses it, → the passages that are read.

What stands between changing brackets is put together once; after that, a text that differs costs its changing brackets.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple, cast

MAX_WEIGHT = 100.0  # what all brackets around a word can make of it, up or down


class Span(NamedTuple):
    """Text of one weight."""

    text: str
    weight: float = 1.0


Passage = tuple[tuple[Span, ...], ...]
"""What a text tower reads, in parts: each begins a chunk of its own."""


class Clause(NamedTuple):
    """One of the texts that AND stands between."""

    weight: float
    passage: Passage


@dataclass(frozen=True)
class Emphasis:
    weight: float
    nodes: Nodes


@dataclass(frozen=True)
class Change:
    """`before` for the first steps, `after` for the others."""

    before: Nodes
    after: Nodes
    when: str  # a number: with a point a share of the steps, without one a number of steps

    def step(self, steps: int) -> int:
        """How many of the steps have `before`."""
        number = float(self.when)
        return int(min(max(number * steps if "." in self.when else number, 0), steps))


@dataclass(frozen=True)
class Alternation:
    options: tuple[Nodes, ...]


class Mark(str):
    """A piece of syntax. Where it has no part in any, it is a text like others."""


Node = str | Emphasis | Change | Alternation
Nodes = Sequence[Node]


@dataclass(frozen=True)
class Prompt:
    clauses: tuple[tuple[float, Nodes], ...]  # (weight, text)

    def at(self, i: int, steps: int) -> tuple[Clause, ...]:
        """What is to be drawn in step i (from 0) of so many."""
        return _read(self._settled(steps), i)

    def schedule(self, steps: int) -> list[tuple[int, tuple[Clause, ...]]]:
        """(first step, what is drawn from there on), in order; the first first step is 0."""
        clauses = self._settled(steps)
        found, sizes = _changes([piece for _, pieces in clauses for piece in pieces])
        changes = sorted({0} | found - {steps})
        read: dict[tuple[int, ...], tuple[Clause, ...]] = {}  # the text of a step is told by these numbers alone
        scenes: list[tuple[int, tuple[Clause, ...]]] = []
        for i in range(steps) if sizes else changes:
            key = (bisect_right(changes, i), *(i % size for size in sizes))
            if key not in read:
                read[key] = _read(clauses, i)
            if not scenes or scenes[-1][1] != read[key]:
                scenes.append((i, read[key]))
        return scenes or [(0, _read(clauses, 0))]

    def _settled(self, steps: int) -> list[tuple[float, Pieces]]:
        return [(weight, _settled(nodes, 1.0, steps)) for weight, nodes in self.clauses]


@dataclass(frozen=True)
class Turn:
    """A Change, whose second option is read from step `until` on, or an Alternation, which has no such step."""

    options: Sequence[Pieces]
    until: int | None = None

    def at(self, i: int) -> Pieces:
        return self.options[i % len(self.options) if self.until is None else int(i >= self.until)]


Pieces = Sequence[Passage | Turn]
_BREAK: Passage = ((), ())


def _settled(nodes: Nodes, weight: float, steps: int) -> Pieces:
    """The turns, and between two of them one passage: what is read there in every step."""
    pieces: list[Passage | Turn] = []
    for node in nodes:
        if isinstance(node, Emphasis):
            pieces += _settled(node.nodes, weight * node.weight, steps)
        elif isinstance(node, Change):
            options = [_settled(option, weight, steps) for option in (node.before, node.after)]
            pieces.append(Turn(options, node.step(steps)))
        elif isinstance(node, Alternation):
            pieces.append(Turn([_settled(option, weight, steps) for option in node.options]))
        else:
            pieces.append(_BREAK if is_mark(node, "BREAK") else ((Span(str(node), bounded(weight)),),))
    settled: list[Passage | Turn] = []
    for is_turn, group in groupby(pieces, lambda piece: isinstance(piece, Turn)):
        between = list(group)
        settled += between if is_turn else [_joined(cast(list[Passage], between))]
    return settled


def _read(clauses: Sequence[tuple[float, Pieces]], i: int) -> tuple[Clause, ...]:
    return tuple(Clause(weight, _joined(_chosen(pieces, i))) for weight, pieces in clauses)


def _chosen(pieces: Pieces, i: int) -> Iterator[Passage]:
    """What is read in step i, in order."""
    for piece in pieces:
        if isinstance(piece, Turn):
            yield from _chosen(piece.at(i), i)
        else:
            yield piece


def _joined(passages: Iterable[Passage]) -> Passage:
    """One after another, neighbours of one weight as one span."""
    parts: list[list[Span]] = [[]]
    for passage in passages:
        (spans, *further), own = passage, parts[-1]
        if own and spans and own[-1].weight == spans[0].weight:
            own[-1] = Span(own[-1].text + spans[0].text, own[-1].weight)
            spans = spans[1:]
        own += spans
        parts += map(list, further)
    return tuple(map(tuple, parts))


def _changes(pieces: Pieces) -> tuple[set[int], set[int]]:
    """Before which steps a text gives way to another, and how many take turns, wherever some do."""
    changes: set[int] = set()
    sizes: set[int] = set()
    for turn in pieces:
        if not isinstance(turn, Turn):
            continue
        if turn.until is None:
            sizes.add(len(turn.options))
        else:
            changes.add(turn.until)
        for own_changes, own_sizes in map(_changes, turn.options):
            changes |= own_changes
            sizes |= own_sizes
    return changes, sizes


def is_mark(node: Node, mark: str) -> bool:
    return isinstance(node, Mark) and node == mark


def bounded(weight: float) -> float:
    return max(-MAX_WEIGHT, min(weight, MAX_WEIGHT))
