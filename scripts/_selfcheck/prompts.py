"""Prompts of any characters and any length: what is odd is cleaned once, and drawn."""

from __future__ import annotations

from collections.abc import Iterator

from _selfcheck.case import Case, drawn

NAME = "prompts"
ODD = {
    "nothing": "",
    "spaces": "   ",
    "a tab and a newline": "\t\n",
    "NUL": "a\0b",
    "NULs alone": "\0\0",
    "a lone surrogate": "a \ud800 b",
    "a low surrogate": "\udfff",
    "emoji": "🟥🧊 a cube",
    "a family of four": "👨‍👩‍👧‍👦",
    "a flag": "🇦🇶",
    "Arabic": "مكعب أحمر",
    "right to left": "\u202ea cube\u202c",
    "zero width": "a\u200bb\u200d\ufeffc",
    "combining marks": "e" + "\u0301" * 5000,
    "Chinese": "红色立方体",
    "the last character": "\U0010ffff",
    "not a character": "\ufffe\uffff",
    "control characters": "".join(map(chr, range(1, 32))),
    "DEL and C1": "\x7f\x80\x9f",
    "lines": "a\nb\r\nc",
    "line separators": "a\u2028b\u2029c\x85d",
    "a megabyte": "a cube " * 150_000,
    "a megabyte without spaces": "x" * 1_000_000,
    "a megabyte of brackets": "(" * 1_000_000,
    "closing brackets": ")]" * 50_000,
    "deep brackets": "(" * 5000 + "a" + ")" * 5000,
    "deep square brackets": "[" * 5000 + "a" + "]" * 5000,
    "a weight of infinity": "(a:1e999)",
    "a weight of NaN": "(a:nan)",
    "a weight below 0": "(a:-1)",
    "a huge weight": "(a:999999999)",
    "stacked weights": "((((a:9999):9999):9999):9999)",
    "many alternatives": "[" + "|".join("ab" * 2000) + "]",
    "a change at NaN": "[a:b:nan]",
    "a change far away": "[a:b:999999999]",
    "ANDs": " AND ".join("abcdefgh"),
    "ANDs alone": "AND AND AND",
    "an AND of no weight": "a :0 AND b :0",
    "BREAKs": "BREAK " * 20,
    "a network that is not here": "<lora:x:1> a cube",
    "YAML": "${oc.env:HOME} !!python/object:os.system",
    "a shell": "$(touch gone); `touch gone`",
    "a format": "%s%n {0.__class__} {index:05}",
    "an end mark": "<|endoftext|> <|startoftext|>",
}


def cases() -> Iterator[Case]:
    for name, text in ODD.items():
        clean = text.replace("\0", " ").encode("utf-8", "replace").decode().strip()
        yield drawn(name, (f"--prompt={text}",), prompt=clean)
    yield drawn("a negative prompt of NULs", ("--prompt=a", "--negative-prompt=\0\ud800"))
    yield drawn("a negative megabyte", ("--prompt=a", f"--negative-prompt={'x ' * 500_000}"))
