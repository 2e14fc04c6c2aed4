"""The fastest safe settings for a model and a device, measured: a YAML for --settings, with a table and a plot.

Each way of drawing is the command line that a user would type; the first batch warms up and is not timed. From the
options as they are, one after the other is tried, and kept where it is the fastest so far and the pictures still are
those of --precision full.

    python scripts/optimize/optimize_sd.py --model FILE --out fast.yaml
    python scripts/txt2img.py --model FILE --settings fast.yaml --prompt "…"
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import _installed  # noqa: E402, F401
import torch  # noqa: E402
from _cli import parse  # noqa: E402
from _device import find_device  # noqa: E402
from _draw import Listener, draw  # noqa: E402
from _ending import ended  # noqa: E402
from _options import groups  # noqa: E402
from _tuning import Row, Settings, check_out, fastest, machine, mean_difference, save, table  # noqa: E402
from PIL import Image  # noqa: E402

from ldm.generate import Progress, Result  # noqa: E402

REFERENCE: Settings = {"precision": "full"}  # whose pictures are the right ones
TRIED: dict[str, tuple[Any, ...]] = {  # values of options, in the order of trial; those that this program has
    "precision": ("bf16", "fp16", "full", "autocast"),
    "attention": ("flash", "efficient", "cudnn", "math"),
    "compile": (True,),
    "tile": (512,),
    "deep-cache": (2,),
}
PROMPT = "a photograph of a red cube on a sunny day"


@dataclass
class Stopwatch(Listener):
    """When each step and each picture was finished, after all that was asked of the device."""

    device: str
    steps: list[float] = field(default_factory=list)  # seconds of each but the first of a batch
    images: list[Image.Image] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)  # of each picture
    _last: float | None = None

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def step(self, progress: Progress) -> None:
        now = self.now()
        if self._last is not None and progress.step.i > 0 and progress.done > 0:  # the first batch warms up
            self.steps.append(now - self._last)
        self._last = now

    def picture(self, result: Result) -> None:
        self.ends.append(self.now())
        self.images.append(result.image)

    def batches(self, size: int) -> list[float]:
        """Seconds of each batch but the first: text, steps, decoding, saving."""
        ends = self.ends[size - 1 :: size]
        return [after - before for before, after in zip(ends, ends[1:], strict=False)]


def measure(base: Sequence[str], settings: Settings, options: argparse.Namespace) -> tuple[Row, list[Image.Image]]:
    """The job of the command line `base` with these settings; the row has no error yet."""
    watch = Stopwatch(options.device)
    said = io.StringIO()
    try:
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(said), redirect_stderr(said):
            if draw(parse("txt2img", [*base, "--outdir", folder, *words(settings)]), watch) == 130:
                raise KeyboardInterrupt  # which `draw` has answered by finishing a batch
    except (ValueError, RuntimeError, NotImplementedError) as error:
        return Row(settings, reason=" ".join(str(error).split())[:160]), []
    seconds = median(watch.batches(options.n_samples)) / options.n_samples
    detail = {"a step": median(watch.steps or [0.0])}
    return Row(settings, seconds, detail=detail), watch.images


def words(settings: Settings) -> list[str]:
    return [f"--{key}" if value is True else f"--{key}={value}" for key, value in settings.items()]


def search(base: Sequence[str], options: argparse.Namespace) -> list[Row]:
    """All rows: what is done without settings, the reference, and each trial on top of the best so far."""
    reference, right = measure(base, REFERENCE, options)
    if reference.seconds is None:
        raise RuntimeError(f"the model cannot be drawn with in full precision: {reference.reason}")
    _tell(reference)
    rows: list[Row] = []
    best = _add(rows, base, {}, right, options)
    rows.append(Row(REFERENCE, reference.seconds, 0.0, detail=reference.detail))
    best = fastest(rows, options.error) or best
    for name in tried():
        for value in TRIED[name]:
            settings = {**best.settings, name: value}
            if all(settings != row.settings for row in rows):
                _add(rows, base, settings, right, options)
        best = fastest(rows, options.error) or best
    if best is not rows[0]:
        rows = [confirmed(row, base, options) if row in (rows[0], best) else row for row in rows]
    return rows


def confirmed(row: Row, base: Sequence[str], options: argparse.Namespace) -> Row:
    """Measured again, and the better of both: what else a machine did meanwhile is no merit of the other settings."""
    again, _ = measure(base, row.settings, options)
    return row if again.seconds is None or again.seconds > (row.seconds or 0.0) else replace(again, error=row.error)


def tried() -> list[str]:
    here = {
        option.strip("-") for group in groups("txt2img").values() for names, *_ in group for option in names.split()
    }
    return [name for name in TRIED if name in here]


def _add(
    rows: list[Row], base: Sequence[str], settings: Settings, right: list[Image.Image], options: argparse.Namespace
) -> Row:
    row, images = measure(base, settings, options)
    if row.seconds is not None:
        row = Row(settings, row.seconds, mean_difference(images, right), detail=row.detail)
    rows.append(row)
    _tell(row)
    return row


def _tell(row: Row) -> None:
    print(f"{row.name}: {row.reason if row.seconds is None else f'{row.seconds:.4g} s a picture'}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="scenes", help="a model's name or its file (%(default)s)")
    parser.add_argument("--config", help="its architecture, if the file does not say")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (%(default)s)")
    parser.add_argument("--out", required=True, metavar="YAML", help="the settings; the plot goes beside them")
    parser.add_argument("--prompt", default=PROMPT, help="what is drawn (%(default)s)")
    parser.add_argument("--steps", type=int, default=6, help="of each picture (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="batches that are timed (%(default)s)")
    parser.add_argument("--n-samples", type=int, default=1, help="pictures in a batch (%(default)s)")
    parser.add_argument("--error", type=float, default=1.0, help="most mean difference of 8-bit values (%(default)s)")
    parser.add_argument("--debug", action="store_true", help="a traceback instead of one sentence")
    options = parser.parse_args(argv)
    try:
        check_out(Path(options.out))
        for name in ("steps", "rounds", "n_samples"):
            if getattr(options, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(options, name)}: give 1 or more")
        options.device = find_device(options.device)
        base = ["--model", options.model, "--device", options.device, "--prompt", options.prompt, "--skip-grid"]
        base += ["--steps", str(options.steps), "--n-samples", str(options.n_samples)]
        base += ["--n-iter", str(options.rounds + 1)] + ([] if options.config is None else ["--config", options.config])
        return report(search(base, options), options)
    except BrokenPipeError:
        raise
    except (ValueError, RuntimeError, OSError) as error:
        if options.debug:
            raise
        mistake = isinstance(error, ValueError)
        print(f"{'error' if mistake else 'failed'}: {error}", file=sys.stderr)
        return 2 if mistake else 1


def report(rows: list[Row], options: argparse.Namespace) -> int:
    best = fastest(rows, options.error)
    assert best is not None, "the reference has no error"
    where = f"{options.model} on {machine(options.device)}, {options.steps} steps, {options.n_samples} together"
    print(f"{where}\n\n{table(rows, options.error, 'mean pixel error')}\n")
    about = [
        f"{where}: {best.seconds:.4g} s a picture, {rows[0].seconds or 0.0:.4g} s without these settings.",
        f"Pixels differ by {best.error:.2g} of 255 on average from --precision full; {options.error:g} was allowed.",
    ]
    save(rows, best, options.error, Path(options.out), about)
    print(f"{best.name}: {options.out}, for --settings; the plot is beside it")
    return 0


if __name__ == "__main__":
    raise SystemExit(ended(main))
