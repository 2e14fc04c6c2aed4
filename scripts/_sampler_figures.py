"""What scripts/look_at_samplers.py makes of what it has drawn: a sheet of pictures, a plot and tables."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ldm.images import to_images

ADAMS = ("ddim", "euler", "lms", "plms", "ipndm", "deis")
SOLVERS = ("heun", "dpm_2", "dpm_fast", "dpm_adaptive", "dpmpp_2m", "res_multistep", "unipc", "unipc_bh2")
DETERMINISTIC = (*ADAMS, *SOLVERS)  # those that come to one picture; all others add noise on the way
OWN_STEPS = ("dpm_adaptive",)  # takes as many as it needs, so it is drawn once
REFERENCE = ("unipc", "karras")  # what many steps converge to, and what that is checked with
CHECK = ("dpmpp_2m", "karras")
RESPACED, RESPACED_STEPS = "karras", (8, 20)  # tells what is the sampler's doing, and what its spacing's
BUDGETS = (4, 6, 8, 12, 20, 30)  # model calls, for the table of the nearest
CELL, LABEL, HEADER = 64, 124, 16  # pixels of the grid


@dataclass(frozen=True)
class Drawn:
    sampler: str
    steps: int
    calls: int  # of the network, all that guidance asks in one
    pixels: Tensor  # (B, 3, H, W) in [-1, 1]
    spacing: str | None  # None: the sampler's own
    error: float | None = None  # root mean square over a picture, of 255, averaged over the pictures


def difference(a: Tensor, b: Tensor) -> float:
    """Root mean square over each picture, of 255 levels, averaged over the pictures. a, b: (B, 3, H, W) in [-1, 1]."""
    return 127.5 * float((a - b).square().mean((1, 2, 3)).sqrt().mean())


def sheet(drawn: Sequence[Drawn], samplers: Sequence[str], steps: Sequence[int]) -> Image.Image:
    """First pictures, scaled down: a row for each sampler, the deterministic ones on the left."""
    sides = [[name for name in samplers if (name in DETERMINISTIC) == kind] for kind in (True, False)]
    sides = [side for side in sides if side]
    gap, pitch, font = 2, CELL + 2, ImageFont.load_default(size=11)
    width = LABEL + len(steps) * pitch + gap
    out = Image.new("RGB", (len(sides) * width, HEADER + max(map(len, sides)) * pitch), (255, 255, 255))
    pen = ImageDraw.Draw(out)
    for left, side in zip(range(0, out.width, width), sides, strict=True):
        pen.text((left + LABEL - 8, 1), "steps", font=font, fill=(110, 110, 110), anchor="ra")
        for column, n in enumerate(steps):
            middle = left + LABEL + column * pitch + CELL // 2
            pen.text((middle, 1), str(n), font=font, fill=(40, 40, 40), anchor="ma")
        for row, name in enumerate(side):
            top, own = HEADER + row * pitch, [one for one in drawn if one.sampler == name]
            pen.text((left + 4, top + CELL // 2), name, font=font, fill=(40, 40, 40), anchor="lm")
            for column, one in enumerate(own):
                picture = to_images(one.pixels[:1])[0].resize((CELL, CELL), Image.Resampling.LANCZOS)
                out.paste(picture, (left + LABEL + column * pitch, top))
            if name in OWN_STEPS:
                told = f"as many steps as it needs: {own[0].calls} calls"
                beside = (left + LABEL + pitch + 6, top + CELL // 2)
                pen.text(beside, told, font=font, fill=(110, 110, 110), anchor="lm")
    return out


def plot(drawn: Sequence[Drawn]) -> Any:
    """matplotlib's Figure: error against model calls, on two axes with the same scales; ddim, to compare, on both."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(10, 4.6), layout="constrained")
    for axes, family in zip(figure.subplots(1, 2, sharex=True, sharey=True), (ADAMS, SOLVERS), strict=True):
        colors = iter(("C0", "C1", "C2", "C3", "C4", "C5", "C6", "C8"))  # C7 is the gray of ddim
        for name in dict.fromkeys(("ddim", *family)):
            own = [(one.calls, one.error) for one in drawn if one.sampler == name]
            style = {"color": "C7", "linestyle": "--"} if name == "ddim" else {"color": next(colors)}
            if own:
                marker = "*" if name in OWN_STEPS else "o"
                axes.plot(*zip(*own, strict=True), marker=marker, markersize=4, linewidth=1.3, label=name, **style)
        axes.set(xlabel="model calls", xscale="log", yscale="log", xticks=BUDGETS)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8)
    figure.axes[0].set_ylabel("difference to the converged picture, of 255")
    return figure


def figures(drawn: Sequence[Drawn], doubt: float, options: argparse.Namespace, scale: float) -> list[str]:
    """The lines of markdown between the markers."""
    measured = [one for one in drawn if one.error is not None]
    lines = [
        f"{options.pictures} pictures of `{Path(options.model).name}`, seeds from {options.seed} on, guidance scale "
        f"{scale:g}, {f'spacing {options.spacing}' if options.spacing else 'each sampler at its default spacing'}; "
        f"the converged picture is {REFERENCE[0]}'s after {options.converged} steps of {REFERENCE[1]}. That of "
        f"{CHECK[0]} after {options.converged // 2} is {doubt:.2f} from it.",
        "",
        "| steps | " + " | ".join(map(str, options.steps)) + " |",
        "| --- |" + " ---: |" * len(options.steps),
    ]
    for name in dict.fromkeys(one.sampler for one in measured):
        cells = [_cell(one) for one in measured if one.sampler == name]
        lines.append(f"| {name} | " + " | ".join([""] * (len(options.steps) - len(cells)) + cells) + " |")
    lines += ["", "| with at most … calls | nearest |", "| ---: | --- |"]
    for budget in BUDGETS:
        affordable = sorted((one.error, one.sampler) for one in measured if one.calls <= budget)
        best = list(dict.fromkeys(name for _, name in affordable))[:4]
        lines += [f"| {budget} | {', '.join(best)} |"] if best else []
    return lines


def respaced(drawn: Sequence[Drawn]) -> list[str]:
    """Further lines: the same samplers at another spacing; none where nothing was drawn so."""
    error = {(one.sampler, one.steps, one.spacing): one.error for one in drawn}
    rows = list(dict.fromkeys(sampler for sampler, _, spacing in error if spacing == RESPACED))
    steps = [n for n in RESPACED_STEPS if any((name, n, None) in error for name in rows)]
    if not steps:
        return []
    columns = [(n, spacing) for n in steps for spacing in (None, RESPACED)]
    lines = [
        "",
        f"What {RESPACED} makes of the samplers that have another spacing of their own:",
        "",
        "| spacing | " + " | ".join(f"{spacing or 'own'}, {n} steps" for n, spacing in columns) + " |",
        "| --- |" + " ---: |" * len(columns),
    ]
    return lines + [
        f"| {name} | " + " | ".join(f"{error[name, n, spacing]:.2f}" for n, spacing in columns) + " |" for name in rows
    ]


def _cell(one: Drawn) -> str:
    return f"{one.error:.2f}" + (f" ({one.calls} calls)" if one.calls != one.steps else "")
