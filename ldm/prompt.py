r"""What people write into a prompt besides words, with the meaning it has in AUTOMATIC1111's web UI.

    (word) [word] (word:1.3)    1.1 times as strong, 1/1.1 times, 1.3 times; brackets may be nested
    [from:to:0.4]               one text for this share of the steps, then another; either may be empty
    [to:0.4] [to:8]             nothing at first; a number without a point counts steps
    [a|b|c]                     each in turn, a step each
    a cat :1.2 AND a dog        led to both at once, by their weights (Liu et al. 2022, arXiv:2206.01714)
    BREAK                       what follows begins a new chunk of tokens
    \( \) \[ \] \: \| \\ \AND \BREAK   the characters and the words themselves

Everything is a text: a bracket without its partner, a number that is none, or a level beyond MAX_DEPTH is read as it
stands, and so is an AND inside of brackets. Parsing is linear in the length, which is bounded, and raises nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from ldm.prompt_tree import Alternation, Change, Emphasis, Mark, Node, Nodes, Prompt, bounded, is_mark

MAX_CHARACTERS = 10_000  # a hundred windows of text; what is beyond is not read
MAX_DEPTH = 32  # of brackets in brackets
STEP = 1.1  # a pair of brackets


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
    return (1.0, nodes) if number is None else (bounded(float(number)), nodes[:-2])


def _number_at_end(nodes: list[Node]) -> str | None:
    """The number after a colon at the end."""
    if len(nodes) < 2 or not is_mark(nodes[-2], ":") or not isinstance(nodes[-1], str):
        return None
    match = _NUMBER.fullmatch(nodes[-1])
    return match[1] if match else None


def _split(nodes: list[Node], mark: str) -> list[list[Node]]:
    parts: list[list[Node]] = [[]]
    for node in nodes:
        if is_mark(node, mark):
            parts.append([])
        else:
            parts[-1].append(node)
    return parts
