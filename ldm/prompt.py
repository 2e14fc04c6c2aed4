r"""What people write into a prompt besides words, with the meaning it has in AUTOMATIC1111's web UI.

    (word) [word] (word:1.3)    1.1 times as strong, 1/1.1 times, 1.3 times; brackets may be nested
    [from:to:0.4]               one text for this share of the steps, then another; either may be empty
    [to:0.4] [to:8]             nothing at first; a number without a point counts steps
    [a|b|c]                     each in turn, a step each
    a cat :1.2 AND a dog        led to both at once, by their weights (Liu et al. 2022, arXiv:2206.01714)
    BREAK                       what follows begins a new chunk of tokens
    \( \) \[ \] \: \| \\ \AND \BREAK   the characters and the words themselves

Everything is a text: a bracket without its partner, a number that is none, or a level beyond MAX_DEPTH is read as it
stands, and so is an AND inside of brackets. Parsing is linear in the length, which is bounded, and raises nothing; what
is read in which step costs the length once more for each text that differs.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

MAX_CHARACTERS = 10_000  # a hundred windows of text; what is beyond is not read
MAX_DEPTH = 32  # of brackets in brackets
MAX_WEIGHT = 100.0  # what all brackets around a word can make of it, up or down
STEP = 1.1  # a pair of brackets


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
        return tuple(Clause(weight, _passage(nodes, i, steps)) for weight, nodes in self.clauses)

    def schedule(self, steps: int) -> list[tuple[int, tuple[Clause, ...]]]:
        """(first step, what is drawn from there on), in order; the first first step is 0."""
        found, sizes = _changes([node for _, nodes in self.clauses for node in nodes], steps)
        changes = sorted({0} | found)
        turns = range(steps) if sizes else changes
        read: dict[tuple[int, ...], tuple[Clause, ...]] = {}  # the text of a step is told by these numbers alone
        scenes: list[tuple[int, tuple[Clause, ...]]] = []
        for i in turns:
            key = (bisect_right(changes, i), *(i % size for size in sizes))
            if key not in read:
                read[key] = self.at(i, steps)
            if not scenes or scenes[-1][1] != read[key]:
                scenes.append((i, read[key]))
        return scenes or [(0, self.at(0, steps))]


def parse(text: str, *, compose: bool = True) -> Prompt:
    """Any string. compose: whether AND is read, which a negative prompt has no use for."""
    tokens = list(_tokens(text[:MAX_CHARACTERS]))
    nodes = _nodes(tokens, _pairs(tokens), 0, len(tokens), 0)
    clauses = _split(nodes, "AND") if compose else [nodes]
    return Prompt(tuple(map(_weighed, clauses)) if len(clauses) > 1 else ((1.0, clauses[0]),))


# --- text → tree -------------------------------------------------------------------------------------------------

_SYNTAX = re.compile(r"(\\(?:[\\()\[\]:|]|AND\b|BREAK\b)|\b(?:AND|BREAK)\b|[()\[\]:|])")
_NUMBER = re.compile(r"\s*([-+]?(?:\d{1,9}(?:\.\d{0,20})?|\.\d{1,20}))\s*")
_OPENER = {")": "(", "]": "["}


def _tokens(text: str) -> Iterator[str]:
    """Texts, and marks between them."""
    for k, piece in enumerate(_SYNTAX.split(text)):
        if k % 2:
            yield piece[1:] if piece[0] == "\\" else Mark(piece)
        elif piece:
            yield piece


def _pairs(tokens: Sequence[str]) -> dict[int, int]:
    """Where each bracket that has a partner opens → where it closes. What a pair holds without a partner is a text."""
    pairs: dict[int, int] = {}
    waiting: list[int] = []
    counts: Counter[str] = Counter()
    for i, token in enumerate(tokens):
        if not isinstance(token, Mark):
            continue
        if token in _OPENER.values():
            waiting.append(i)
            counts[token] += 1
        elif token in _OPENER and counts[_OPENER[token]]:
            while True:
                start = waiting.pop()
                counts[tokens[start]] -= 1
                if tokens[start] == _OPENER[token]:
                    break
            pairs[start] = i
    return pairs


def _nodes(tokens: Sequence[str], pairs: dict[int, int], start: int, end: int, depth: int) -> list[Node]:
    nodes: list[Node] = []
    while start < end:
        close = pairs.get(start) if depth < MAX_DEPTH else None
        if close is None:
            nodes.append(tokens[start])
            start += 1
        else:
            inner = _nodes(tokens, pairs, start + 1, close, depth + 1)
            nodes.append(_round(inner) if tokens[start] == "(" else _square(inner))
            start = close + 1
    return nodes


def _round(inner: list[Node]) -> Node:
    number = _number_at_end(inner)
    return Emphasis(STEP, inner) if number is None else Emphasis(float(number), inner[:-2])


def _square(inner: list[Node]) -> Node:
    parts, when = _split(inner, ":"), _number_at_end(inner)
    if when is not None and len(parts) <= 3:
        return Change(parts[0] if len(parts) == 3 else [], parts[-2], when)
    options = _split(inner, "|")
    return Alternation(tuple(options)) if len(options) > 1 else Emphasis(1 / STEP, inner)


def _weighed(nodes: list[Node]) -> tuple[float, Nodes]:
    """A clause's weight, which is what stands at its end after a colon, and the rest."""
    number = _number_at_end(nodes)
    return (1.0, nodes) if number is None else (_bounded(float(number)), nodes[:-2])


def _number_at_end(nodes: list[Node]) -> str | None:
    """The number after a colon at the end."""
    if len(nodes) < 2 or not _is(nodes[-2], ":") or not isinstance(nodes[-1], str):
        return None
    match = _NUMBER.fullmatch(nodes[-1])
    return match[1] if match else None


def _split(nodes: list[Node], mark: str) -> list[list[Node]]:
    parts: list[list[Node]] = [[]]
    for node in nodes:
        if _is(node, mark):
            parts.append([])
        else:
            parts[-1].append(node)
    return parts


def _is(node: Node, mark: str) -> bool:
    return isinstance(node, Mark) and node == mark


# --- tree → what is read in a step -------------------------------------------------------------------------------


def _passage(nodes: Nodes, i: int, steps: int) -> Passage:
    chosen: list[tuple[str, float]] = []
    _choose(nodes, 1.0, i, steps, chosen)
    parts: list[list[tuple[list[str], float]]] = [[]]  # of each span the pieces of its text, joined once
    for text, weight in chosen:
        weight = _bounded(weight)
        if _is(text, "BREAK"):
            parts.append([])
        elif parts[-1] and parts[-1][-1][1] == weight:
            parts[-1][-1][0].append(text)
        else:
            parts[-1].append(([text], weight))
    return tuple(tuple(Span("".join(texts), weight) for texts, weight in part) for part in parts)


def _choose(nodes: Nodes, weight: float, i: int, steps: int, chosen: list[tuple[str, float]]) -> None:
    """Adds the texts that are read in step i, with their weights."""
    for node in nodes:
        if isinstance(node, Emphasis):
            _choose(node.nodes, weight * node.weight, i, steps, chosen)
        elif isinstance(node, Change):
            _choose(node.before if i < node.step(steps) else node.after, weight, i, steps, chosen)
        elif isinstance(node, Alternation):
            _choose(node.options[i % len(node.options)], weight, i, steps, chosen)
        else:
            chosen.append((node, weight))


def _changes(nodes: Nodes, steps: int) -> tuple[set[int], set[int]]:
    """Before which steps a text gives way to another, and how many take turns, wherever some do."""
    changes: set[int] = set()
    sizes: set[int] = set()
    for node in nodes:
        inner: Sequence[Nodes] = ()
        if isinstance(node, Emphasis):
            inner = (node.nodes,)
        elif isinstance(node, Change):
            inner = (node.before, node.after)
            changes |= {node.step(steps)} - {steps}
        elif isinstance(node, Alternation):
            inner = node.options
            sizes.add(len(inner))
        for own_changes, own_sizes in (_changes(part, steps) for part in inner):
            changes |= own_changes
            sizes |= own_sizes
    return changes, sizes


def _bounded(weight: float) -> float:
    return max(-MAX_WEIGHT, min(weight, MAX_WEIGHT))
