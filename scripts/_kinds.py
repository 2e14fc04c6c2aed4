"""What the value of an option may be: each function here reads one from text, or makes one that does.

argparse.ArgumentTypeError for a text that is none, with the value and the remedy.
"""

from __future__ import annotations

import argparse
import difflib
import math
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from ldm.files import check_writable

MAX_SEED = 2**32 - 1
MAX_SIDE = 8192


def whole(low: int, high: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number; give {low} … {high}") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value} is out of range; give {low} … {high}")
        return value

    return convert


def count_or_auto(text: str) -> int | str:
    """ "auto", or how many."""
    if text == "auto":
        return text
    try:
        return whole(1, 10_000)(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, or auto") from None


def bare(kind: Callable[[str], int], value: int) -> Callable[[str], int]:
    """An option that may go without a value, and has this one then."""

    def convert(text: str) -> int:
        return kind(text)

    convert.bare = value  # type: ignore[attr-defined]
    return convert


def number(low: float, high: float, ends: bool = False) -> Callable[[str], float]:
    """With `ends`, low and high may be infinite and are numbers still."""
    span = f"{low:g} … {high:g}"
    if math.isinf(high):
        span = "a finite number, such as 7.5" if math.isinf(low) else f"{low:g} or more"

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number; give {span}") from None
        if not low <= value <= high or (math.isinf(value) and not ends):
            raise argparse.ArgumentTypeError(f"{text} is out of range; give {span}")
        return value

    return convert


def side(text: str) -> int:
    value = whole(-(10**9), 10**9)(text)
    nearest = min(max(8, (value + 4) // 8 * 8), MAX_SIDE)
    if value != nearest:
        raise argparse.ArgumentTypeError(f"{value} is not a multiple of 8 in 8 … {MAX_SIDE}; the nearest is {nearest}")
    return value


def pair(shown: str, least: int) -> Callable[[str], tuple[int, int]]:
    """Two whole numbers, apart by "x" or a comma."""

    def convert(text: str) -> tuple[int, int]:
        first, apart, second = text.lower().replace("x", ",").partition(",")
        if not apart or not (first.isdecimal() and second.isdecimal()) or min(int(first), int(second)) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not {shown}: two whole numbers of pixels, {least} or more")
        return int(first), int(second)

    return convert


def several(count: int | None, low: float, high: float, example: str) -> Callable[[str], tuple[float, ...]]:
    """Numbers apart by commas: `count` of them, or, where that is None, one or more."""
    each = number(low, high)

    def convert(text: str) -> tuple[float, ...]:
        words = text.split(",")
        if count is not None and len(words) != count:
            raise argparse.ArgumentTypeError(f"{text!r} is not {count} numbers apart by commas, such as {example}")
        return tuple(each(word) for word in words)

    return convert


def names(text: str) -> tuple[str, ...]:
    """At least one, and none empty: "mid_block," would name all there is besides."""
    words = tuple(word.strip() for word in text.split(","))
    if not all(words):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty name; write names apart by commas, such as mid_block")
    return words


def numbers(text: str) -> list[str]:
    """Class numbers apart by commas, as the prompts that they are."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of class numbers; write it as 207,88")
    return words


def falling(text: str) -> list[float]:
    """Numbers apart by commas, each below the one before it."""
    values = [number(0, math.inf)(word) for word in text.split(",")]
    if any(after >= value for value, after in pairwise(values)):
        raise argparse.ArgumentTypeError(f"{text} does not fall; each number must be below the one before it")
    return values


def seed(text: str) -> int:
    return -1 if text == "random" else whole(-1, MAX_SEED)(text)


def sides(text: str) -> tuple[int, ...]:
    words = text.split(",")
    if len(words) != 4:
        raise argparse.ArgumentTypeError(f"{text!r} is not four numbers of pixels, such as 0,0,64,0")
    return tuple(whole(0, MAX_SIDE)(word) for word in words)


def one_of(*names: str) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if text.lower() not in names:
            close = difflib.get_close_matches(text.lower(), names, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise argparse.ArgumentTypeError(f"there is no {text!r} here; there are {', '.join(names)}{hint}")
        return text.lower()

    return convert


def check_new_folder(option: str, value: str) -> None:
    """ValueError unless a folder can be made there, or there is an empty one."""
    path = Path(value)
    if os.path.exists(path) and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{option} {value} is there already; name a new folder")
    if not os.path.isdir(path.absolute().parent):
        raise ValueError(f"{option} {value}: there is no folder {path.parent}; make it first")
    if not os.path.exists(path):
        check_writable(path)
