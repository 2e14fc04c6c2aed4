"""The command line of the training scripts."""

from __future__ import annotations

import argparse
import os
import sys

import _installed  # noqa: F401
from _ending import ended
from _kinds import check_new_folder

from ldm.files import usable_folder

PROFILED = 5  # steps: one says little, and more say the same


def main(description: str, recipe: str, outdir: str) -> int:
    """Train by a recipe into a folder; 0 when done, 2 for a mistake in the options or the recipe."""
    return ended(lambda: _run(description, recipe, outdir))


def _run(description: str, recipe: str, outdir: str) -> int:
    epilog = "Run it again on the same --outdir to go on after a stop."
    parser = argparse.ArgumentParser(description=description, epilog=epilog)
    parser.add_argument("--config", default=recipe, metavar="YAML", help="the recipe (default: %(default)s)")
    parser.add_argument("--outdir", default=outdir, help="weights, losses and previews (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="train to this step instead of the recipe's")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: %(default)s)")
    parser.add_argument("--precision", default="auto", choices=["auto", "full", "bf16"], help="auto is bf16 on a GPU")
    parser.add_argument("--half", action="store_true", help="save the weights in float16, half the size")
    parser.add_argument("--plugin", metavar="FILE", help="a Python file that registers classes the recipe names")
    parser.add_argument("--profile", metavar="FOLDER", help=f"say where time goes in {PROFILED} steps, and stop there")
    parser.add_argument("--debug", action="store_true", help="show where an error came from")
    options = parser.parse_args()
    try:
        train(options)
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on from the last checkpoint in {options.outdir}", file=sys.stderr)
        return 130
    return 0


def train(options: argparse.Namespace) -> None:
    folder = usable_folder(options.outdir)
    if options.profile is not None:
        check_new_folder("--profile", options.profile)
        os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # torch's profiler would tell of its own ways, on stderr
    import torch
    from _device import find_device
    from _profile import profiled
    from _speed import keep_freed_memory
    from tqdm import tqdm

    from ldm.config import load_plugin
    from ldm.training.run import Run, current_commit

    if options.plugin:
        load_plugin(options.plugin)
    device = find_device(options.device)
    if device == "cpu":
        keep_freed_memory()  # a step makes and frees the same large tensors each time
    precision = ("bf16" if device == "cuda" else "full") if options.precision == "auto" else options.precision
    run = Run(options.config, folder, device, {"steps": options.steps, "batch_size": options.batch_size})
    print(f"{options.config} on {device}, {precision} precision, into {options.outdir}", flush=True)
    if run.resumed:
        print(f"resumed at step {run.trainer.step}", flush=True)
    steps = run.trainer.recipe.steps
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    with (
        profiled(options.profile, {"model": run.trainer.model}, device, dtype),
        tqdm(initial=run.trainer.step, total=steps, unit="step", dynamic_ncols=True, mininterval=1) as bar,
    ):
        for count, report in enumerate(run.steps(precision), start=1):
            bar.update()
            bar.set_postfix_str(f"loss {report.update.loss:.4f}", refresh=False)
            if report.preview:
                bar.write(f"step {report.update.step}: {report.preview}")
            if options.profile is not None and count == PROFILED:
                break
    if options.profile is not None:
        print("stopped after what was profiled; without --profile the same command goes on from the last checkpoint")
        return
    print(f"saved {run.save(current_commit(), torch.float16 if options.half else torch.float32)}")
