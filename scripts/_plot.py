"""Two drawings with nothing but pillow: memory over time, and bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT, LEFT, TOP, BOTTOM, RIGHT = 960, 360, 80, 30, 40, 20
INK, LINE, GRID = (30, 30, 30), (40, 90, 160), (220, 220, 220)
TINTS = ((255, 236, 200), (214, 234, 248), (222, 242, 214), (244, 220, 232), (232, 226, 246), (238, 238, 220))
GOOD, BAD = (70, 130, 90), (200, 120, 110)


def timeline(
    times: np.ndarray[Any, Any], sizes: np.ndarray[Any, Any], spans: Sequence[tuple[str, float, float]]
) -> Image.Image:
    """Bytes held from each of `times` (seconds, rising) on, over stretches of time that have names."""
    image, draw, font = _sheet(HEIGHT)
    end = max([1e-6, *times.tolist()[-1:], *(span[2] for span in spans)])
    most = max([1, *sizes.tolist()])
    across, up = (WIDTH - LEFT - RIGHT) / end, (HEIGHT - TOP - BOTTOM) / (most * 1.05)
    names = list(dict.fromkeys(name for name, *_ in sorted(spans, key=lambda span: span[1])))
    for name, begin, stop in spans:
        tint = TINTS[names.index(name) % len(TINTS)]
        draw.rectangle((LEFT + begin * across, TOP, LEFT + stop * across, HEIGHT - BOTTOM), fill=tint)
    for share in (0.25, 0.5, 0.75, 1.0):
        y = HEIGHT - BOTTOM - most * share * up
        draw.line((LEFT, y, WIDTH - RIGHT, y), fill=GRID)
        draw.text((LEFT - 6, y), f"{most * share / 1e6:.1f} MB", INK, font, anchor="rm")
        draw.text((LEFT + end * share * across, HEIGHT - BOTTOM + 6), f"{end * share:.3g} s", INK, font, anchor="ra")
    points, level = [], 0
    for at, size in zip(times.tolist(), sizes.tolist(), strict=True):
        points += [(LEFT + at * across, HEIGHT - BOTTOM - held * up) for held in (max(0, level), max(0, size))]
        level = size
    if len(points) > 1:
        draw.line(points, fill=LINE, width=2)
    x = LEFT
    for i, name in enumerate(names):
        draw.rectangle((x, 10, x + 10, 20), fill=TINTS[i % len(TINTS)], outline=INK)
        draw.text((x + 15, 15), name, INK, font, anchor="lm")
        x += 35 + int(draw.textlength(name, font))
    return image


def bars(title: str, rows: Sequence[tuple[str, float, bool]]) -> Image.Image:
    """A bar a row, as long as its number; pale where it is not to be taken."""
    image, draw, font = _sheet(TOP + 24 * len(rows) + 16)
    draw.text((10, 8), title, INK, font)
    left = 20 + max([60, *(int(draw.textlength(name, font)) for name, *_ in rows)])
    longest = max([1e-12, *(value for _, value, _ in rows)])
    for i, (name, value, is_good) in enumerate(rows):
        y = TOP + 24 * i
        draw.text((left - 8, y + 9), name, INK, font, anchor="rm")
        end = left + (WIDTH - left - 100) * value / longest
        draw.rectangle((left, y, end, y + 18), fill=GOOD if is_good else BAD)
        draw.text((end + 6, y + 9), f"{value:.4g}", INK, font, anchor="lm")
    return image


def _sheet(height: int) -> tuple[Image.Image, ImageDraw.ImageDraw, Any]:
    image = Image.new("RGB", (WIDTH, height), "white")
    return image, ImageDraw.Draw(image), ImageFont.load_default(12)
