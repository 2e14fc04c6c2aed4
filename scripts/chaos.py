"""Kill a job at random moments, resume it, and compare what comes out with what an undisturbed one makes.

`batch`: pictures from prompts (txt2img.py --resume). `train`: a small autoencoder (train_autoencoder.py). Every process
ends by SIGKILL; after each, whatever has a final name must be readable. Exit status 1 if anything is not as it should.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import _installed  # noqa: F401
from _ending import ended

FAULTS = ("unreadable", "lost", "duplicates", "different", "leftovers", "failed")
WORDS = ("a red cube", "a large matte blue sphere", "a green cone at night", "a tiny yellow box", "two white cylinders")
Work = Callable[[Path], int]  # into a folder; the exit status


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    batch = commands.add_parser("batch", help="pictures from prompts")
    batch.add_argument("--model", default="scenes", help="a shipped model or a file (default: %(default)s)")
    batch.add_argument("--pictures", type=int, default=12, help="in the job (default: %(default)s)")
    batch.add_argument("--steps", type=int, default=2, help="(default: %(default)s)")
    batch.add_argument("--size", type=int, default=64, help="side of a picture (default: %(default)s)")
    train = commands.add_parser("train", help="a small autoencoder")
    train.add_argument("--steps", type=int, default=60, help="(default: %(default)s)")
    for one in (batch, train):
        one.add_argument("--kills", type=int, default=20, help="(default: %(default)s)")
        one.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
        one.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(argv)
    if min(options.kills, options.steps, getattr(options, "pictures", 2) - 1) < 1:
        print("error: --kills and --steps are 1 or more, --pictures 2 or more", file=sys.stderr)
        return 2
    import torch

    torch.set_num_threads(1)  # children are forked from here, and threads are not
    with tempfile.TemporaryDirectory() as name:
        work = (drawing if options.command == "batch" else training)(options, Path(name))
        found = torment(work, Path(name), options.kills, random.Random(options.seed))
    print(json.dumps(found) if options.json else "\n".join(f"{name:<22} {value}" for name, value in found.items()))
    return int(any(found[name] for name in FAULTS))


def torment(work: Work, folder: Path, kills: int, rng: random.Random) -> dict[str, float]:
    """Rounds of killing and resuming, each into a folder of its own, until there were that many kills."""
    start = time.monotonic()
    if attempt(work, folder / "whole", None) != 0:
        raise RuntimeError("the job fails though nobody disturbs it; see what its script says")
    seconds = time.monotonic() - start
    whole, found = contents(folder / "whole"), Counter[str]()
    while found["kills"] < kills or found["open"]:
        target = folder / f"round-{found['rounds']}"
        delay = rng.uniform(0, seconds) if found["kills"] < kills else None
        status = attempt(work, target, delay)
        if status is None:
            found.update(kills=1, unreadable=unreadable(target), open=not found["open"])
        elif status == 0:
            found.update(compare(whole, contents(target)) | {"rounds": 1, "open": -found["open"]})
        else:
            found.update(failed=1)
            break
    row: dict[str, float] = {"kills": found["kills"], "jobs": found["rounds"], "files in a job": len(whole)}
    row |= {"files compared": found["compared"], "seconds undisturbed": round(seconds, 2)}
    return row | {name: found[name] for name in FAULTS}


def attempt(work: Work, target: Path, delay: float | None) -> int | None:
    """The work in a process of its own; None if it was killed after `delay` seconds."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            status = work(target)
        finally:
            os._exit(status)
    deadline = None if delay is None else time.monotonic() + delay
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if deadline is not None and time.monotonic() >= deadline:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            return None if os.waitstatus_to_exitcode(status) < 0 else 0
        time.sleep(0.001)


# --- what is looked at -------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def compare(whole: dict[str, bytes], made: dict[str, bytes]) -> dict[str, int]:
    """Files of a finished job against those of the undisturbed one, byte for byte."""
    hidden = [name for name in made if Path(name).name.startswith(".")]
    return {
        "compared": len(made),
        "lost": len(whole.keys() - made.keys()),
        "leftovers": len(hidden),
        "duplicates": len(made.keys() - whole.keys() - set(hidden)),
        "different": sum(made[name] != whole[name] for name in whole.keys() & made.keys()),
    }


def unreadable(folder: Path) -> int:
    """How many files of final names cannot be read whole."""
    return sum(not _is_readable(file) for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))


def _is_readable(file: Path) -> bool:
    from ldm.checkpoint.read import read
    from ldm.images import load_image

    readers: dict[str, Callable[[Path], object]] = {
        ".png": load_image,
        ".json": lambda path: json.loads(path.read_text("utf-8")),
        ".safetensors": read,
        ".csv": lambda path: [(int(a), float(b)) for a, b in (row.split(",") for row in path.read_text().splitlines())],
    }
    try:
        readers[file.suffix](file)
    except ValueError as error:
        print(f"{file.name}: {error}", file=sys.stderr)
        return False
    return True


# --- the jobs ----------------------------------------------------------------------------------------------------


def drawing(options: argparse.Namespace, folder: Path) -> Work:
    import _draw  # noqa: F401  (imported once, before any fork)
    from _cli import main as draw
    from _cli import parse

    from ldm.files import write_text

    write_text(folder / "prompts.txt", "\n".join(WORDS[i % len(WORDS)] for i in range(options.pictures)))
    given = [
        "--from-file",
        folder / "prompts.txt",
        "--model",
        options.model,
        "--steps",
        options.steps,
        "--n-samples",
        2,
    ]
    given += ["--H", options.size, "--W", options.size, "--device", "cpu", "--resume", "--outdir"]
    parse("txt2img", [str(word) for word in (*given, folder)])  # what is wrong with it is said here, and once
    return lambda target: draw("txt2img", [str(word) for word in (*given, target)])


def training(options: argparse.Namespace, folder: Path) -> Work:
    import _train
    import matplotlib.figure  # noqa: F401
    from PIL import Image

    from ldm.files import write_text
    from ldm.png import write_png
    from ldm.training import run  # noqa: F401

    (folder / "pictures").mkdir(exist_ok=True)
    for i in range(6):
        picture = Image.linear_gradient("L").rotate(60 * i).resize((16, 16)).convert("RGB")
        write_png(picture, folder / "pictures" / f"{i}.png")
    network = {"block_out_channels": [8, 8], "layers_per_block": 1, "mid_attention": False, "norm_num_groups": 4}
    steps = {"steps": options.steps, "batch_size": 2, "learning_rate": 1e-3, "save_every": 5, "log_every": 3}
    params = {
        "crop": 16,
        "model": {"target": "AutoencoderKL", "params": network},
        "data": {"target": "ImageFolder", "params": {"path": str(folder / "pictures"), "size": 16}},
        "recipe": {"target": "Recipe", "params": steps | {"preview_every": options.steps}},
    }
    recipe = folder / "recipe.yaml"
    write_text(recipe, json.dumps({"target": "AutoencoderExperiment", "params": params}))

    def train(target: Path) -> int:
        sys.argv = ["train_autoencoder.py", "--outdir", str(target), "--device", "cpu"]
        return _train.main("", str(recipe), str(target))

    return train


if __name__ == "__main__":
    raise SystemExit(ended(main))
