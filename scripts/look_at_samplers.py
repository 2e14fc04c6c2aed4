"""The pictures and figures of docs/samplers.md: every sampler at several numbers of steps, and how far each is from
the picture that many steps converge to."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import _installed  # noqa: F401
import torch
from _device import find_device
from _ending import ended
from _kept import Kept, kept, request
from _sampler_figures import (
    CHECK,
    DETERMINISTIC,
    OWN_STEPS,
    REFERENCE,
    RESPACED,
    RESPACED_STEPS,
    Drawn,
    difference,
    figures,
    plot,
    respaced,
    sheet,
)
from torch import Tensor
from tqdm import tqdm

import ldm
from ldm.files import atomic, check_writable, usable_folder
from ldm.items import Item
from ldm.models.diffusion import SAMPLERS
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.sampling import sample
from ldm.settings import resolve

PAGE = Path(__file__).parents[1] / "docs" / "samplers.md"
BEGIN, END = "<!-- written by scripts/look_at_samplers.py -->", "<!-- until here -->"
PROMPTS = (  # picture i has the i-th, and they begin again; the first is in the grid
    "a large shiny red sphere to the left of a small matte blue cube on a sunny day",
    "a small glossy green cone in front of a large matte white cylinder at sunset",
    "a big yellow box and a tiny purple ball on a foggy day",
    "a large shiny orange cone at night",
)


def main() -> int:
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
    parser.add_argument("--resume", action="store_true", help="go on where the same command was stopped")
    options = parser.parse_args()
    look(options)
    return 0


def look(options: argparse.Namespace) -> None:
    try:
        import matplotlib  # noqa: F401  (before anything is drawn)
    except ImportError:
        raise ValueError("the plot needs matplotlib; run pip install -e '.[train]'") from None
    page, folder = options.page, usable_folder(options.page.with_suffix(""))
    check_writable(page)
    before, after = _around(page)
    device = find_device(options.device)
    model = ldm.load(options.model, device=device)
    asked = request(options, device, "model", pictures=options.pictures, seed=options.seed)
    with kept(folder, asked, options.resume) as so_far:
        drawn, doubt = draw_all(model, options, so_far)
        own = [one for one in drawn if one.spacing == options.spacing]
        with atomic(folder / "grid.jpg") as out:
            sheet(own, options.samplers, options.steps).save(out, format="JPEG", quality=88)
        with atomic(folder / "error.png") as out:
            plot(own).savefig(out, format="png", dpi=100)
        written = figures(own, doubt, options, model.guidance_scale) + respaced(drawn)
        with atomic(page) as out:
            out.write("\n".join([before + BEGIN, "", *written, "", END + after]).encode())
    print(*written, "", page, folder / "grid.jpg", folder / "error.png", sep="\n")


def draw_all(model: LatentDiffusion, options: argparse.Namespace, so_far: Kept) -> tuple[list[Drawn], float]:
    """All that is looked at, and how far the reference is from another sampler's picture of half as many steps.

    Where noise is added there is nothing to measure, and only the first picture is drawn.
    """
    items = [Item(PROMPTS[i % len(PROMPTS)], seed=options.seed + i) for i in range(options.pictures)]
    jobs = [
        (sampler, steps, options.spacing)
        for sampler in options.samplers
        for steps in (options.steps[-1:] if sampler in OWN_STEPS else options.steps)
    ]
    jobs += [(name, n, RESPACED) for name, n, own in jobs if own is None and _is_respaced(name) and n in RESPACED_STEPS]

    def draw(items: Sequence[Item], sampler: str, steps: int, spacing: str | None) -> Drawn:
        name = f"{sampler}, {steps} steps, {spacing or 'own'} spacing, {len(items)}"
        one = so_far.tensors(name, lambda: drawn_by(model, items, sampler, steps, spacing))
        return Drawn(sampler, steps, int(one["calls"]), one["pixels"], spacing)

    with tqdm(total=options.converged * 3 // 2 + sum(steps for _, steps, _ in jobs), unit="step") as bar:
        bar.set_postfix_str("the reference")
        converged = draw(items, REFERENCE[0], options.converged, REFERENCE[1])
        reference, at_once = converged.pixels, converged.calls // options.converged  # it asks once in each step
        check = draw(items, CHECK[0], options.converged // 2, CHECK[1]).pixels
        bar.update(options.converged * 3 // 2)
        drawn = []
        for sampler, steps, spacing in jobs:
            bar.set_postfix_str(f"{sampler}, {steps}")
            if sampler in DETERMINISTIC:
                one = draw(items, sampler, steps, spacing)
                one = replace(one, calls=one.calls // at_once, error=difference(one.pixels, reference))
            else:
                one = draw(items[:1], sampler, steps, spacing)
            drawn.append(one)
            bar.update(steps)
    return drawn, difference(check, reference)


def drawn_by(
    model: LatentDiffusion, items: Sequence[Item], sampler: str, steps: int, spacing: str | None
) -> dict[str, Tensor]:
    """The items in one batch, in the model's size and with its guidance: `pixels` (B, 3, H, W) in [-1, 1], and `calls`
    of the network, which counts prompts of unequal length apart."""
    settings = resolve(model, steps=steps, sampler=sampler, spacing=spacing)
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
    return {"pixels": pixels, "calls": torch.tensor(calls)}


def _is_respaced(sampler: str) -> bool:
    """Whether its own levels are others, and it goes where the spacing says."""
    return sampler in DETERMINISTIC and sampler not in ("dpm_fast", *OWN_STEPS) and SAMPLERS[sampler][1] != RESPACED


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
    raise SystemExit(ended(main))
