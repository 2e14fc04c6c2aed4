"""Good files spoiled a little, as strategies of hypothesis: bytes, trees of JSON, programs of pickles."""

from __future__ import annotations

import io
import json
import pickletools
import re
import struct
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, MutableMapping, MutableSequence, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]
NUMBERS = (0, 1, -1, 2, 255, 65536, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30, 10**400)
FLOATS = (0.0, -0.0, 0.5, 1e-320, 1e308, float("inf"), float("-inf"), float("nan"))
TEXTS = ("", " ", "\0", "a", "\ud800", "𝔸", "../../up", "/up", "a" * 3000, "%s{0}", "1e400", "${a}", "\n", "1.5")
NESTED: Any = []
for _ in range(60):
    NESTED = [NESTED]
VALUES = (*NUMBERS, *FLOATS, *TEXTS, None, True, False, [], {}, [1], [[]], {"": 0}, [0] * 99, NESTED)
PIECES = (b"\0", b"\0" * 8, b"\xff" * 4, b"\xff" * 8, b"\x7f\xff\xff\xff", b"\x80", b"\xf0\x9f", b"\r", b"\n", b"\t")
PIECES += tuple(b"{ } [ ] ( ) : , \" ' \\ | & * - # ! % $ ${ }} 0x NaN -1 1e999 AND BREAK \\u0000".split())
PIECES += (b"(" * 99, b"[" * 2000, b"{" * 40, b": " * 50, b"9" * 30, b"[a:b:", b"|" * 40)
EDITS = ("flip", "cut", "drop", "repeat", "splice", "write", "insert", "number", "key")


@st.composite
def bytes_of(draw: Draw, wholes: Sequence[bytes], most: int = 4) -> bytes:
    """One of them after a few edits: flipped bits, cuts, splices, other numbers, doubled keys."""
    data: bytes = draw(st.sampled_from(wholes))
    for _ in range(draw(st.integers(1, most))):
        data = _edited(draw, data, wholes)
    return data


def _edited(draw: Draw, data: bytes, wholes: Sequence[bytes]) -> bytes:
    kind, start = draw(st.sampled_from(EDITS)), draw(st.integers(0, max(0, len(data) - 1)))
    end = start + draw(st.sampled_from((1, 2, 4, 8, 30, 200)))
    before, piece, after = data[:start], data[start:end], data[end:]
    if kind == "flip":
        return (
            before
            + bytes(byte ^ (1 << draw(st.integers(0, 7))) for byte in data[start : start + 1])
            + data[start + 1 :]
        )
    if kind == "cut":
        return before
    if kind == "drop":
        return before + after
    if kind == "repeat":
        return before + piece * draw(st.sampled_from((2, 3, 50))) + after
    if kind == "splice":
        other = draw(st.sampled_from(wholes))
        at = draw(st.integers(0, max(0, len(other) - 1)))
        return before + other[at : at + 200] + data[start:]
    if kind in ("write", "insert"):
        new = draw(st.sampled_from(PIECES))
        return before + new + (data[start + len(new) :] if kind == "write" else data[start:])
    if kind == "number":
        return _with_other(
            draw, rb"-?\d+(\.\d+)?", data, lambda _: str(draw(st.sampled_from(NUMBERS + FLOATS))).encode()
        )
    return _with_other(draw, rb'"?\w+"?: ?', data, lambda key: key + b"1, " + key)


def _with_other(draw: Draw, pattern: bytes, data: bytes, make: Callable[[bytes], bytes]) -> bytes:
    """One match of the pattern as `make` has it."""
    found = list(re.finditer(pattern, data))[:500]
    if not found:
        return data
    match = draw(st.sampled_from(found))
    return data[: match.start()] + make(match[0]) + data[match.end() :]


@st.composite
def trees_of(draw: Draw, trees: Sequence[Any], most: int = 3) -> Any:
    """One of them with a few nodes lost, doubled, renamed, or of another value or kind."""
    tree = [deepcopy(draw(st.sampled_from(trees)))]
    for _ in range(draw(st.integers(1, most))):
        holder, key = draw(st.sampled_from(list(_places(tree))))
        kind = draw(st.sampled_from(("value", "value", "swap", "drop", "double", "rename")))
        if kind == "value":
            holder[key] = deepcopy(draw(st.sampled_from(VALUES)))
        elif kind == "swap":
            other, name = draw(st.sampled_from(list(_places(tree))))
            holder[key] = deepcopy(other[name])
        elif holder is tree:
            continue
        elif kind == "drop":
            del holder[key]
        elif isinstance(holder, MutableSequence):
            holder.insert(key, deepcopy(holder[key]))
        else:
            new = draw(st.sampled_from([*TEXTS, *(str(place) for _, place in _places(tree))]))
            holder[new] = holder[key] if kind == "double" else holder.pop(key)
    return tree[0]


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every (holder, key) in it, from the top down."""
    waiting = [tree]
    while waiting:
        holder = waiting.pop()
        keys = range(len(holder)) if isinstance(holder, MutableSequence) else list(holder)
        for key in keys:
            yield holder, key
            if isinstance(holder[key], MutableSequence | MutableMapping):
                waiting.append(holder[key])


def texts_of(trees: Sequence[Any]) -> st.SearchStrategy[bytes]:
    """JSON of spoiled trees, or spoiled JSON of good ones."""
    wholes = [json.dumps(tree).encode() for tree in trees]
    return st.one_of(trees_of(trees).map(lambda tree: json.dumps(tree).encode()), bytes_of(wholes))


# --- containers, whose lengths and checksums are right, so that what is in them is read ------------------------------


def safetensors(header: bytes, size: int) -> bytes:
    return len(header).to_bytes(8, "little") + header + bytes(size)


def zipped(records: Sequence[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file, warnings.catch_warnings(action="ignore"):  # of a name twice
        for name, contents in records:
            file.writestr(zipfile.ZipInfo(name), contents, compression)
    return buffer.getvalue()


def png(chunks: Sequence[tuple[bytes, bytes]]) -> bytes:
    made = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


def chunks_of(whole: bytes) -> list[tuple[bytes, bytes]]:
    """The inverse of `png`."""
    at, found = 8, []
    while at < len(whole):
        length = int.from_bytes(whole[at : at + 4], "big")
        found.append((whole[at + 4 : at + 8], whole[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


@st.composite
def programs_of(draw: Draw, pickles: Sequence[bytes]) -> bytes:
    """Pickles with operations lost, doubled, out of their order, taken from others, or of other arguments."""
    pool = [_operations(program) for program in pickles]
    steps = list(draw(st.sampled_from(pool)))
    for _ in range(draw(st.integers(1, 3))):
        kind, i = (
            draw(st.sampled_from(("drop", "double", "swap", "other", "spoil"))),
            draw(st.integers(0, len(steps) - 1)),
        )
        if kind == "drop" and len(steps) > 1:
            del steps[i]
        elif kind == "double":
            steps[i:i] = [steps[i]] * draw(st.sampled_from((1, 2, 300)))
        elif kind == "swap":
            j = draw(st.integers(0, len(steps) - 1))
            steps[i], steps[j] = steps[j], steps[i]
        elif kind == "other":
            steps.insert(i, draw(st.sampled_from(draw(st.sampled_from(pool)))))
        else:
            steps[i] = _edited(draw, steps[i], steps)
    return b"".join(steps)


def _operations(program: bytes) -> list[bytes]:
    starts = [place for _, _, place in pickletools.genops(program) if place is not None] + [len(program)]
    return [program[a:b] for a, b in zip(starts, starts[1:], strict=False)]


def written(name: str, write: Callable[[Path], object]) -> bytes:
    """What `write` makes of a file of this name."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder, name))
        return Path(folder, name).read_bytes()
