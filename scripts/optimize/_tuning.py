"""What both scripts here share: measurements, of which the fastest safe one wins, as table, plot and settings."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

SCRIPTS = Path(__file__).resolve().parents[1]
if str(SCRIPTS) not in sys.path:
    sys.path.insert(0, str(SCRIPTS))

from _plot import bars  # noqa: E402
from _settings_file import write_settings  # noqa: E402

from ldm.files import atomic, check_writable  # noqa: E402

GAIN = 0.05  # of the time, below which two are as fast
Settings = dict[str, Any]  # names of options on the command line -> values


@dataclass(frozen=True)
class Row:
    """One way of computing the same."""

    settings: Settings
    seconds: float | None = None  # None: it cannot be done here
    error: float | None = None  # from the reference
    reason: str = ""  # why it cannot
    detail: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return ", ".join(f"{key} {value}" for key, value in self.settings.items()) or "as it is"

    def is_safe(self, limit: float) -> bool:
        return self.seconds is not None and self.error is not None and self.error <= limit  # NaN is not


def fastest(rows: Sequence[Row], limit: float) -> Row | None:
    """Of those within the limit; an earlier one, unless a later one gains more than clocks are sure of."""
    best = None
    for row in rows:
        if row.is_safe(limit) and (best is None or (row.seconds or 0.0) < (1 - GAIN) * (best.seconds or 0.0)):
            best = row
    return best


def table(rows: Sequence[Row], limit: float, error: str) -> str:
    """error: what the numbers in that column are."""
    details = list(dict.fromkeys(name for row in rows for name in row.detail))
    lines = [
        f"| settings | seconds | {' | '.join([*details, error])} | |",
        f"| --- | {'---: | ' * (len(details) + 2)}--- |",
    ]
    best = fastest(rows, limit)
    for row in rows:
        if row.seconds is None:
            lines.append(f"| {row.name} | {'| ' * (len(details) + 2)}{row.reason} |")
            continue
        verdict = "fastest" if row is best else "" if row.is_safe(limit) else f"error above {limit:g}"
        numbers = [f"{row.seconds:.4g}", *(f"{row.detail.get(name, float('nan')):.4g}" for name in details)]
        lines.append(f"| {row.name} | {' | '.join(numbers)} | {row.error:.2g} | {verdict} |")
    return "\n".join(lines)


def save(rows: Sequence[Row], best: Row, limit: float, out: Path, about: Sequence[str]) -> None:
    """The settings, and beside them a plot of all that was measured."""
    image = bars("seconds; pale: beyond the error", [(r.name, r.seconds or 0.0, r.is_safe(limit)) for r in rows])
    write_settings(out, best.settings, about)
    with atomic(out.with_suffix(".png")) as file:
        image.save(file, "PNG")


def mean_difference(images: Sequence[Image.Image], references: Sequence[Image.Image]) -> float:
    """Of the 8-bit values of pictures, on average; NaN where there are not the same."""
    import numpy as np

    pairs = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in zip(images, references, strict=True)]
    if not pairs or any(a.shape != b.shape for a, b in pairs):
        return float("nan")
    return float(np.mean([np.abs(a - b).mean() for a, b in pairs]))


def machine(device: str) -> str:
    name = (
        torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    return f"{device} ({name}), torch {torch.__version__}"


def check_out(out: Path) -> None:
    if out.suffix not in (".yaml", ".yml"):
        raise ValueError(f"--out {out}: settings are written as YAML; give a name that ends in .yaml")
    if not os.path.isdir(out.absolute().parent):
        raise ValueError(f"--out {out}: there is no folder {out.parent}; make it first")
    for file in (out, out.with_suffix(".png")):
        if os.path.exists(file):
            raise ValueError(f"--out {out}: {file} is there already; give another name")
        check_writable(file)
