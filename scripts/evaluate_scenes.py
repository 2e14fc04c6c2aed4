"""Judge a model's pictures of fresh prompts, with an independent network that has only ever seen rendered scenes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

import _installed  # noqa: F401
from _ending import ended

from ldm.files import check_writable

if TYPE_CHECKING:
    from ldm.settings import Settings


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="scenes", help="a shipped model or a file (default: %(default)s)")
    parser.add_argument("--plugin", metavar="FILE", help="a Python file that registers the model's own classes")
    parser.add_argument("--judge", default="judge", help="the judge's weights (default: the shipped ones)")
    parser.add_argument("--inpaint", action="store_true", help="paint a thing of each rendered scene anew, as another")
    parser.add_argument("--prompts", type=int, default=500, metavar="N", help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of prompts and pictures (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--sampler", help="(default: the model's)")
    parser.add_argument("--eta", type=float, help="fresh noise in each step (default: the model's, or the --sampler's)")
    parser.add_argument("--spacing")
    parser.add_argument("--scale", type=float, help="guidance scale (default: the model's)")
    parser.add_argument("--batch-size", type=int, default=25)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: %(default)s)")
    parser.add_argument("--sheet", metavar="PNG", help="also write the first 64 pictures as a contact sheet")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    print(run(options))
    return 0


def run(options: argparse.Namespace) -> str:
    if options.prompts < 2:
        raise ValueError(f"--prompts {options.prompts}: at least 2 are needed")
    if options.sheet:
        check_writable(options.sheet)
    from _device import find_device
    from _speed import lay_out
    from tqdm import tqdm

    from ldm.checkpoint.load import load, load_part
    from ldm.config import load_plugin
    from ldm.images import grid
    from ldm.metrics.evaluate import evaluate, judged
    from ldm.metrics.exchange import exchanges, paint
    from ldm.metrics.judge import Judge
    from ldm.png import write_png
    from ldm.settings import resolve

    if options.plugin:
        load_plugin(options.plugin)
    model, judge = load(options.model, device=find_device(options.device)), load_part(options.judge, Judge)
    lay_out(model)
    settings = {"steps": options.steps, "sampler": options.sampler, "eta": options.eta, "spacing": options.spacing}
    settings["guidance_scale"] = options.scale
    drawn_with = resolve(model, **settings)
    settings["batch_size"] = options.batch_size
    with tqdm(total=options.prompts, desc="drawing", unit="image", dynamic_ncols=True) as bar:
        if options.inpaint:
            asked = exchanges(options.prompts, options.seed)
            pictures = paint(model, asked, options.seed, bar.update, **settings)
            report = judged(model, judge, [one.after for one in asked], pictures)
        else:
            report, pictures, _ = evaluate(model, judge, options.prompts, options.seed, bar.update, **settings)
    if options.sheet:
        write_png(grid(pictures[:64], columns=8), Path(options.sheet))
    return json.dumps(report, indent=2) if options.json else table(report, options, drawn_with)


def table(report: dict[str, dict[str, float]], options: argparse.Namespace, drawn_with: Settings) -> str:
    """Markdown, as it stands in the README."""
    lines = [
        f"{options.prompts} {'exchanged things' if options.inpaint else 'fresh prompts'}, {drawn_with.steps} steps of "
        f"{drawn_with.method}, seed {options.seed}.",
        "",
        "| right, in the judge's eyes | generated | rendered (the judge's own accuracy) |",
        "| --- | ---: | ---: |",
    ]
    for name, share in report["generated"].items():
        lines.append(f"| {name} | {share:.1%} | {report['renders'][name]:.1%} |")
    lines += ["", "| quality | |", "| --- | ---: |"]
    lines += [f"| {name} | {value:.2f} |" for name, value in report["quality"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(ended(main))
