"""Files of prompts: encodings, line ends, and what is no file of prompts."""

from __future__ import annotations

import os
from collections.abc import Iterator

from _selfcheck.case import Case, ckpt, drawn, picture

NAME = "prompt files"
REFUSED = {
    "empty": b"",
    "newlines": b"\n\r\n\n",
    "spaces": b"   \n\t\n",
    "a byte order mark alone": b"\xef\xbb\xbf",
    "Latin-1": "ein Würfel\n".encode("latin-1"),
    "UTF-16": "a cube\n".encode("utf-16"),
    "UTF-16 without a mark": "ä cube\n".encode("utf-16-le"),
    "UTF-32": "a cube\n".encode("utf-32"),
    "half a character": "🧊".encode()[:3],
    "a surrogate in UTF-8": b"a\xed\xa0\x80b\n",
    "overlong UTF-8": b"\xc0\xaf",
    "random bytes": bytes(range(256)) * 8,
    "a picture": picture,
    "a checkpoint": lambda: ckpt({"a": 1}),
    "NULs alone": bytes(64),
    "too large to be prompts": lambda: b"a red cube\n" * 4_000_000,
}
DRAWN = {
    "a byte order mark": (b"\xef\xbb\xbfa\nb\n", 2),
    "no newline at the end": (b"a\nb", 2),
    "Windows": (b"a\r\nb\r\n", 2),
    "old Macintosh": (b"a\rb\r", 2),
    "empty lines between": (b"\n\na\n\n\nb\n\n", 2),
    "a NUL in a line": (b"a\0b\nc\n", 2),
    "line separators in a line": ("a\u2028b\x85c\x0bd\x0ce\nf\n".encode(), 2),
    "emoji": ("🧊\n🟥\n".encode(), 2),
    "a long line": (b"x " * 100_000 + b"\n", 1),
    "options in a line": (b"--steps 5\n", 1),
}


def cases() -> Iterator[Case]:
    argv = ("--from-file", "bad.txt")
    for name, contents in REFUSED.items():
        yield Case(name, argv, "bad.txt", {"bad.txt": contents})
    for name, (text, pictures) in DRAWN.items():
        yield drawn(name, argv, files={"bad.txt": text}, pictures=pictures)
    yield Case("not there", argv, "bad.txt")
    yield Case("a folder", ("--from-file", "out"), "out")
    yield Case("a pipe that nobody fills", argv, "bad.txt", prepare=lambda: os.mkfifo("bad.txt"))
    yield Case("a device without end", ("--from-file", "/dev/zero"), "/dev/zero")
    yield Case("nothing on standard input", ("--from-file", "-"), "--from-file -")
    yield Case("a name with NUL", ("--from-file", "a\0b"), "--from-file")
    yield Case("a name of a kilobyte", ("--from-file", "a" * 1000), "--from-file")
    yield Case("an empty name", ("--from-file", ""), "--from-file")
