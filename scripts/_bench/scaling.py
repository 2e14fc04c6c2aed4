"""The row that looks for cliffs: pictures a second against batch, side and steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from _bench.floors import clock
from _bench.harness import Bench, Line, row, settle
from _bench.weights import PROMPT, checkpoint, hasten
from ldm.files import atomic

Points = dict[int, float]  # along an axis: seconds a run
LINEAR = {"pictures": "as many as alone", "side": "by pixels", "steps": "by steps"}
XLABELS = {"pictures": "pictures in a batch", "side": "side of one picture, pixels", "steps": "steps of four pictures"}


@row("scaling", "pictures a second against batch, side and steps: no cliff, cost linear in pictures and steps")
def scaling(bench: Bench) -> Iterator[Line]:
    """On a GPU with SD 1 at 512 x 512; on a CPU, where that would take hours, with the shipped model."""
    import torch

    import ldm

    settle(bench.tiny)
    gpu = torch.cuda.is_available() and not bench.tiny
    model = checkpoint(bench, "sd-v1").ours_by_default("cuda") if gpu else hasten(ldm.load("scenes"))
    batches, sides, steps = (1, 2, 4, 8, 16, 32), (256, 512, 768, 1024), (5, 10, 20, 40)
    side, few = (512, 20) if gpu else (128, 10)
    if bench.tiny:
        batches, sides, steps, few = (1, 2), (64, 128), (1, 2), 2
    found: dict[str, Points] = {
        "pictures": {n: seconds(bench, model, n, side, few) for n in batches},
        "side": {n: seconds(bench, model, 1, n, 4 if not gpu else few) for n in sides},
        "steps": {n: seconds(bench, model, 4, side, n) for n in steps},
    }
    of_what = "SD 1" if gpu else "scenes"
    for axis, points in found.items():
        yield from lines(f"{of_what}, {axis}", axis, points)
    if bench.plot is not None and (said := plot(found, of_what, bench.plot)):
        yield Line(said, note="no plot")


def seconds(bench: Bench, model: Any, count: int, side: int, steps: int) -> float:
    """The least of the rounds, for here no side is held against another."""
    import ldm

    def draw() -> None:
        list(ldm.txt2img(model, PROMPT, num_images=count, batch_size=count, height=side, width=side, steps=steps))

    draw()
    return min(clock(draw) for _ in range(bench.rounds))


def lines(what: str, axis: str, points: Points) -> Iterator[Line]:
    """Each point; and how much dearer the dearest step along the axis is than its size says, 1 being linear."""
    counted = {"pictures": lambda n: n, "side": lambda n: 1, "steps": lambda n: 4}[axis]
    for n, taken in points.items():
        yield Line(f"{what} {n}", taken, note=f"{counted(n) / taken:.3g} pictures/s")
    if axis != "side":
        yield Line(f"{what}: dearest step over a linear one", value=worst_growth(points), must="<= 1.15")


def worst_growth(points: Mapping[int, float]) -> float:
    """The largest of time(b) / time(a) over b / a, for neighbours a < b: above 1, a unit costs more where there are
    more of them."""
    known = sorted(points.items())
    return max((after / before) / (b / a) for (a, before), (b, after) in zip(known, known[1:], strict=False))


def plot(found: Mapping[str, Points], what: str, path: Path) -> str:
    """Three curves into a picture, each beside the cost that is linear; or why there is none."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter
    except ImportError:
        return "matplotlib is not installed"
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    for axes, (axis, points) in zip(figure.subplots(1, 3), found.items(), strict=True):
        numbers, first = list(points), next(iter(points))
        each = [n / points[n] if axis == "pictures" else points[n] for n in numbers]
        cost = [1.0 if axis == "pictures" else (n / first) ** (2 if axis == "side" else 1) for n in numbers]
        axes.plot(numbers, [each[0] * one for one in cost], "--", color="gray", label=LINEAR[axis])
        axes.plot(numbers, each, marker="o", label="measured")
        axes.set(xlabel=XLABELS[axis], ylabel="pictures / s" if axis == "pictures" else "seconds", xscale="log")
        if axis == "side":
            axes.set(yscale="log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(ScalarFormatter())
            axes.yaxis.set_minor_formatter(NullFormatter())
        elif axis == "steps":
            axes.set(xscale="linear", xlim=(0, None))
        if axis != "side":
            axes.set_ylim(0, 1.1 * max(*each, each[0] * cost[-1]))
        axes.set_xticks(numbers, [str(n) for n in numbers], minor=False)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(what)
    with atomic(path) as out:
        figure.savefig(out, format="png", dpi=110)
    return ""
