from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from ldm import prompt, prompt_tree
from ldm.prompt import MAX_CHARACTERS, MAX_DEPTH, parse
from ldm.prompt_tree import MAX_WEIGHT, Prompt, Span


def spans(text: str, i: int = 0, steps: int = 10) -> list[tuple[str, float]]:
    """Of a prompt of one clause and no BREAK."""
    ((weight, (part,)),) = parse(text).at(i, steps)
    assert weight == 1
    return [(span.text, round(span.weight, 6)) for span in part]


def texts(text: str, steps: int = 10) -> list[tuple[int, str]]:
    """(until which step, text), as A1111's documentation writes it; weights are left out."""
    schedule = parse(text).schedule(steps)
    ends = [first for first, _ in schedule[1:]] + [steps]
    return [
        (end, "".join(s.text for s in clause.passage[0])) for end, (_, (clause,)) in zip(ends, schedule, strict=True)
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [  # what A1111 answers, from its own documentation
        ("normal text", [("normal text", 1)]),
        ("an (important) word", [("an ", 1), ("important", 1.1), (" word", 1)]),
        (
            "a (house:1.5) [on] a ((hill))",
            [("a ", 1), ("house", 1.5), (" ", 1), ("on", 0.909091), (" a ", 1), ("hill", 1.21)],
        ),
        (r"\(literal\]", [("(literal]", 1)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).)",
            [("a ", 1), ("house", 1.573), (" ", 1.1), ("on", 1), (" a ", 1.1), ("hill", 0.55), (", sun, ", 1.1),
             ("sky", 1.4641), (".", 1.1)],
        ),
        ("(a:b)", [("a:b", 1.1)]),
        ("[a:b]", [("a:b", 0.909091)]),
        ("(a:b:1.2)", [("a:b", 1.2)]),
        ("( a : 1.2 )", [(" a ", 1.2)]),
        ("(a:-0.5)(b:+2)(c:.5)(d:3.)", [("a", -0.5), ("b", 2), ("c", 0.5), ("d", 3)]),
        # malformed input is text: A1111 would let the first weigh to the end, and break at the second
        ("(unbalanced", [("(unbalanced", 1)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("a ) b ] c (", [("a ) b ] c (", 1)]),
        ("(a [b)]", [("a [b", 1.1), ("]", 1)]),
        ("time 4:30, a|b", [("time 4:30, a|b", 1)]),
        (r"a\b \:\|\\ \(x:1.2\)", [(r"a\b :|\ (x:1.2)", 1)]),
        (r"BANDS \AND \BREAK ANDY", [("BANDS AND BREAK ANDY", 1)]),
        ("(a AND b:1.3)", [("a AND b", 1.3)]),
        ("((a:100):100)", [("a", MAX_WEIGHT)]),
        ("((a:-100):100)", [("a", -MAX_WEIGHT)]),
        ("", []),
        ("()", []),
    ],
)  # fmt: skip
def test_weights(text: str, expected: list[tuple[str, float]]) -> None:
    assert spans(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [  # what A1111 answers for 10 steps, from its own documentation
        ("test", [(10, "test")]),
        ("a [b:3]", [(3, "a "), (10, "a b")]),
        ("a [b: 3]", [(3, "a "), (10, "a b")]),
        ("a [[[b]]:2]", [(2, "a "), (10, "a b")]),
        ("[(a:2):3]", [(3, ""), (10, "a")]),
        ("a [b : c : 1] d", [(1, "a b  d"), (10, "a  c  d")]),
        ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
        ("a [unbalanced", [(10, "a [unbalanced")]),
        ("a [b:.5] c", [(5, "a  c"), (10, "a b c")]),
        ("a [{b|d{:.5] c", [(5, "a  c"), (10, "a {b|d{ c")]),
        ("((a][:b:c [d:3]", [(3, "((a][:b:c "), (10, "((a][:b:c d")]),
        ("[a|(b:1.1)]", [(i + 1, "ab"[i % 2]) for i in range(10)]),
        ("[fe|]male", [(i + 1, ("female", "male")[i % 2]) for i in range(10)]),
        ("[fe|||]male", [(1, "female"), (4, "male"), (5, "female"), (8, "male"), (9, "female"), (10, "male")]),
        # and what its wiki says
        ("[cat::0.4]", [(4, "cat"), (10, "")]),
        ("[cat:dog:0.4]", [(4, "cat"), (10, "dog")]),
        ("[cat:dog:1.0]", [(10, "cat")]),  # a share
        ("[cat:dog:1]", [(1, "cat"), (10, "dog")]),  # a step
        ("[cat:dog:0]", [(10, "dog")]),
        ("[cat:dog:-2]", [(10, "dog")]),
        ("[cat:dog:99]", [(10, "cat")]),
        ("[cat:dog:999999999]", [(10, "cat")]),
        ("[a:b:c:3]", [(10, "a:b:c:3")]),
        ("[[a|b]|c]", [(i + 1, "ac"[i % 2]) for i in range(10)]),
    ],
)  # fmt: skip
def test_schedules(text: str, expected: list[tuple[int, str]]) -> None:
    assert texts(text) == expected


def test_shares_are_of_the_steps_taken() -> None:
    assert [texts("[a:b:0.4]", steps)[0] for steps in (1, 5, 30, 1000)] == [(1, "b"), (2, "a"), (12, "a"), (400, "a")]


def test_composition() -> None:
    clauses = parse("a cat :1.2 AND a (dog:1.5):-0.5 AND sky").at(0, 1)
    assert [clause.weight for clause in clauses] == [1.2, -0.5, 1]
    assert [clause.passage for clause in clauses] == [
        ((Span("a cat "),),),
        ((Span(" a "), Span("dog", 1.5)),),
        ((Span(" sky"),),),
    ]
    assert [clause.passage for clause in parse("a AND b:2", compose=False).at(0, 1)] == [((Span("a AND b:2"),),)]
    assert [clause.passage for clause in parse("a : 1.2").at(0, 1)] == [((Span("a : 1.2"),),)]  # no AND, no weight
    assert len(parse("a [b AND c:d:0.5]").at(0, 1)) == 1
    first, second = parse("[a:b:1]AND[c:d:2]").schedule(3)[1][1]
    assert (first.passage, second.passage) == (((Span("b"),),), ((Span("c"),),))


def test_breaks() -> None:
    ((_, passage),) = parse("a BREAK (b BREAK c:1.2) BREAK").at(0, 1)
    assert [[(s.text.strip(), s.weight) for s in part if s.text.strip()] for part in passage] == [
        [("a", 1)], [("b", 1.2)], [("c", 1.2)], [],
    ]  # fmt: skip
    ((_, passage),) = parse("[a BREAK b:c:1]").schedule(2)[1][1]
    assert passage == ((Span("c"),),)


@pytest.mark.parametrize("seed", range(8))
def test_any_string_is_a_prompt(seed: int) -> None:
    rng = random.Random(seed)
    alphabet = [*"()[]:|\\ ab19.-,\n", "AND", " BREAK ", ":0.5]", ":1.2)", "é", "\ud800", "\0", "日"]
    for _ in range(60):
        text = "".join(rng.choices(alphabet, k=rng.randrange(60)))
        steps = rng.choice([1, 2, 7, 30])
        schedule = parse(text).schedule(steps)
        firsts = [first for first, _ in schedule]
        assert firsts[0] == 0 and firsts == sorted(set(firsts)) and firsts[-1] < steps
        assert all(
            abs(span.weight) <= MAX_WEIGHT for _, clauses in schedule for c in clauses for p in c.passage for span in p
        )
        in_step = [[clauses for first, clauses in schedule if first <= i][-1] for i in range(steps)]
        assert in_step == [parse(text).at(i, steps) for i in range(steps)]
        words = "".join(s.text for _, clauses in schedule for c in clauses for p in c.passage for s in p)
        assert set(words) <= set(text)
        escaped = re.sub(r"\b(AND|BREAK)\b", r"\\\1", re.sub(r"([\\()\[\]:|])", r"\\\1", text))
        ((_, passage),) = parse(escaped).at(0, steps)
        assert [s.text for s in passage[0]] == [text] * bool(text)


LONG: list[Callable[[int], str]] = [
    lambda n: "(" * n,
    lambda n: "(" * n + ")" * n,
    lambda n: "([" * n + "])" * n,
    lambda n: "([" * n + ")]" * n,
    lambda n: "(a:1.1" * n + ")" * n,
    lambda n: "[a:" * n + ":0.5]" * n,
    lambda n: "[a|" * n + "]" * n,
    lambda n: ":1" * n,
    lambda n: "(:" + "1" * n + ")",
    lambda n: "(a:" + " " * n + ")",
    lambda n: "\\" * n,
    lambda n: " AND " * n,
    lambda n: "BREAK " * n,
    lambda n: "[a|b]" * n,
    lambda n: ") (" * n,
]


@pytest.mark.parametrize("make", LONG, ids=lambda make: make(1))
def test_size_and_depth_are_no_trouble(make: Callable[[int], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times the length is ten times the work, and no stack overflows: by the grammar, not by the limit."""
    parse(make(10**5 // len(make(1)))).at(0, 2)
    monkeypatch.setattr(prompt, "MAX_CHARACTERS", 10**6)
    assert _work(make(500)) <= 15 * _work(make(50)) + 100


def _work(text: str, do: Callable[[Prompt], object] = lambda one: one.at(0, 2)) -> int:
    """Lines of the parser that run."""
    count = 0

    def trace(frame: object, event: str, _: object) -> object:
        nonlocal count
        count += 1
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        do(parse(text))
    finally:
        sys.settrace(previous)
    return count


@pytest.mark.parametrize(("text", "most"), [("[a|b] (c:1.2) " * 60, 2), ("[a:b:3] [c|d|e] " * 60, 6)])
def test_a_step_that_reads_nothing_new_costs_nothing(text: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred times the steps are not a hundred times the work: each different text is put together once."""
    calls = []
    read = prompt_tree._read
    monkeypatch.setattr(prompt_tree, "_read", lambda clauses, i: calls.append(i) or read(clauses, i))
    schedule = parse(text).schedule(1000)
    assert len(schedule) == 1000 and len(calls) <= most
    assert len({clauses for _, clauses in schedule}) == most


@pytest.mark.parametrize("rest", [":)", "(a)b", "BREAK "])
def test_a_step_costs_what_changes_in_it(rest: str) -> None:
    """Whatever is the same in 300 different texts is put together once."""
    changing = "".join(f"[{'|'.join(map(str, range(size)))}]" for size in (5, 7, 11, 13))
    short, long = (_work(changing + rest * n, lambda one: one.schedule(300)) for n in (20, 1500))
    assert long <= short + 60 * len(rest) * 1500


def test_bounds() -> None:
    deep = spans("(" * (MAX_DEPTH + 2) + "a" + ")" * (MAX_DEPTH + 2))
    assert deep == [("((a))", round(1.1**MAX_DEPTH, 6))]
    assert spans("a" * (MAX_CHARACTERS + 5)) == [("a" * MAX_CHARACTERS, 1)]


def test_torch_is_not_needed() -> None:
    code = "import sys, ldm.prompt; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
