"""The pictures and figures of docs/samplers.md: every sampler at several numbers of steps, and how far each is from
the picture that many steps converge to."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from ldm.models.latent_diffusion import LatentDiffusion
    from ldm.request import Item

PAGE = Path(__file__).parents[1] / "docs" / "samplers.md"
BEGIN, END = "<!-- written by scripts/look_at_samplers.py -->", "<!-- until here -->"
PROMPTS = (  # picture i has the i-th, and they begin again; the first is in the grid
    "a large shiny red sphere to the left of a small matte blue cube on a sunny day",
    "a small glossy green cone in front of a large matte white cylinder at sunset",
    "a big yellow box and a tiny purple ball on a foggy day",
    "a large shiny orange cone at night",
)
ADAMS = ("ddim", "euler", "lms", "plms", "ipndm", "deis")
SOLVERS = ("heun", "dpm_2", "dpm_fast", "dpm_adaptive", "dpmpp_2m", "res_multistep", "unipc", "unipc_bh2")
DETERMINISTIC = (*ADAMS, *SOLVERS)  # those that come to one picture; all others add noise on the way
OWN_STEPS = ("dpm_adaptive",)  # takes as many as it needs, so it is drawn once
REFERENCE = ("unipc", "karras")  # what many steps converge to, and what that is checked with
CHECK = ("dpmpp_2m", "karras")
BUDGETS = (4, 6, 8, 12, 20, 30)  # model calls, for the table of the nearest
CELL, LABEL, HEADER = 64, 116, 16  # pixels of the grid


@dataclass(frozen=True)
class Drawn:
    sampler: str
    steps: int
    calls: int  # of the network, all that guidance asks in one
    pixels: Tensor  # (B, 3, H, W) in [-1, 1]
    error: float | None = None  # root mean square over a picture, of 255, averaged over the pictures


def main() -> int:
    from ldm.names import SAMPLERS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="scenes", help="a shipped model or a file (default: %(default)s)")
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS), metavar="NAME", help="(all)")
    parser.add_argument("--steps", nargs="+", type=int, default=[4, 6, 8, 12, 20, 30], metavar="N")
    parser.add_argument("--converged", type=int, default=120, metavar="N", help="steps of the reference (%(default)s)")
    parser.add_argument("--pictures", type=int, default=3, metavar="N", help="that errors are averaged over")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--spacing", help="one for all samplers (default: each sampler's own)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: %(default)s)")
    parser.add_argument("--page", type=Path, default=PAGE, help="where it writes; pictures go beside it")
    options = parser.parse_args()
    try:
        look(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def look(options: argparse.Namespace) -> None:
    try:
        import matplotlib  # noqa: F401  (before anything is drawn)
    except ImportError:
        raise ValueError("the plot needs matplotlib; run pip install -e '.[train]'") from None
    from _device import find_device

    import ldm
    from ldm.files import atomic

    page, folder = options.page, options.page.with_suffix("")
    before, after = _around(page)
    model = ldm.load(options.model, device=find_device(options.device))
    drawn, doubt = draw_all(model, options)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic(folder / "grid.jpg") as out:
        sheet(drawn, options.samplers, options.steps).save(out, format="JPEG", quality=88)
    with atomic(folder / "error.png") as out:
        plot(drawn).savefig(out, format="png", dpi=100)
    written = figures(drawn, doubt, options, model.guidance_scale)
    with atomic(page) as out:
        out.write("\n".join([before + BEGIN, "", *written, "", END + after]).encode())
    print(*written, "", page, folder / "grid.jpg", folder / "error.png", sep="\n")


def draw_all(model: LatentDiffusion, options: argparse.Namespace) -> tuple[list[Drawn], float]:
    """All that is looked at, and how far the reference is from another sampler's picture of half as many steps.

    Where noise is added there is nothing to measure, and only the first picture is drawn.
    """
    from dataclasses import replace

    from tqdm import tqdm

    from ldm.request import Item

    items = [Item(PROMPTS[i % len(PROMPTS)], seed=options.seed + i) for i in range(options.pictures)]
    jobs = [
        (sampler, steps)
        for sampler in options.samplers
        for steps in (options.steps[-1:] if sampler in OWN_STEPS else options.steps)
    ]
    with tqdm(total=options.converged * 3 // 2 + sum(steps for _, steps in jobs), unit="step") as bar:
        bar.set_postfix_str("the reference")
        converged = draw(model, items, REFERENCE[0], options.converged, REFERENCE[1])
        reference, at_once = converged.pixels, converged.calls // options.converged  # it asks once in each step
        check = draw(model, items, CHECK[0], options.converged // 2, CHECK[1]).pixels
        bar.update(options.converged * 3 // 2)
        drawn = []
        for sampler, steps in jobs:
            bar.set_postfix_str(f"{sampler}, {steps}")
            if sampler in DETERMINISTIC:
                one = draw(model, items, sampler, steps, options.spacing)
                one = replace(one, calls=one.calls // at_once, error=difference(one.pixels, reference))
            else:
                one = draw(model, items[:1], sampler, steps, options.spacing)
            drawn.append(one)
            bar.update(steps)
    return drawn, difference(check, reference)


def draw(model: LatentDiffusion, items: Sequence[Item], sampler: str, steps: int, spacing: str | None = None) -> Drawn:
    """The items in one batch, in the model's size and with its guidance. `calls` counts the network's own: prompts of
    unequal length are asked apart."""
    import torch

    from ldm.generate import sample
    from ldm.request import resolve

    settings = resolve(model, None, None, steps, sampler, spacing, None, None, None)
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    hook = model.unet.register_forward_hook(count)
    try:
        with torch.inference_mode():
            *_, last = sample(model, items, settings)
            pixels = model.decode(last.x).float().clamp(-1, 1).cpu()
    finally:
        hook.remove()
    return Drawn(sampler, steps, calls, pixels)


def difference(a: Tensor, b: Tensor) -> float:
    """Root mean square over each picture, of 255 levels, averaged over the pictures. a, b: (B, 3, H, W) in [-1, 1]."""
    return 127.5 * float((a - b).square().mean((1, 2, 3)).sqrt().mean())


def sheet(drawn: Sequence[Drawn], samplers: Sequence[str], steps: Sequence[int]) -> Image.Image:
    """First pictures, scaled down: a row for each sampler, the deterministic ones on the left."""
    from PIL import Image, ImageDraw, ImageFont

    from ldm.images import to_images

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


def plot(drawn: Sequence[Drawn]):  # noqa: ANN201  (matplotlib's Figure, which need not be there)
    """Error against model calls, on two axes that share their scales; ddim, for comparison, on both."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(10, 4.6), layout="constrained")
    for axes, family in zip(figure.subplots(1, 2, sharex=True, sharey=True), (ADAMS, SOLVERS), strict=True):
        for name in dict.fromkeys(("ddim", *family)):
            own = [(one.calls, one.error) for one in drawn if one.sampler == name]
            style = {"color": "0.6", "linestyle": "--"} if name == "ddim" else {}
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


def _cell(one: Drawn) -> str:
    return f"{one.error:.2f}" + (f" ({one.calls} calls)" if one.calls != one.steps else "")


def _around(page: Path) -> tuple[str, str]:
    """What stands before the first marker and after the second; of a page that is not there yet, the two pictures."""
    if not page.exists():
        return f"![every sampler]({page.stem}/grid.jpg)\n\n![errors]({page.stem}/error.png)\n\n", "\n"
    before, begin, rest = page.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has nowhere to write to; put the two lines {BEGIN} and {END} there")
    return before, after


if __name__ == "__main__":
    raise SystemExit(main())
