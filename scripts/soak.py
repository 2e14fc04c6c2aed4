"""Draw for a long time, and see that nothing runs out: soak.py memory, or soak.py folder.

`memory`: many pictures in one process. Memory after a warm-up and at the end, and open files.
`folder`: several processes draw into one folder. Names given twice, pictures lost, and files that nobody knows.
Exit status 1 if anything is not as it should be.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import _installed  # noqa: F401
from _ending import ended

MOST_GROWTH = 2.0  # percent, after the warm-up
WARM = 0.3  # of the pictures: until then caches fill, of texts for example
WINDOW = 0.05  # of the pictures: a median of so many, since memory goes up and down within a batch
FAULTS = ("failed", "collisions", "lost", "unreadable", "leftovers")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    memory = commands.add_parser("memory", help="many pictures in one process")
    memory.add_argument("--pictures", type=int, default=1000, help="(default: %(default)s)")
    folder = commands.add_parser("folder", help="several processes, one folder")
    folder.add_argument("--pictures", type=int, default=800, help="in all (default: %(default)s)")
    folder.add_argument("--processes", type=int, default=8, help="(default: %(default)s)")
    for one in (memory, folder):
        one.add_argument("--model", default="scenes", help="a shipped model or a file (default: %(default)s)")
        one.add_argument("--steps", type=int, default=1, help="(default: %(default)s)")
        one.add_argument("--size", type=int, default=64, help="side of a picture (default: %(default)s)")
        one.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(argv)
    if min(options.pictures // getattr(options, "processes", 1) - 1, options.steps) < 1:
        print("error: --pictures is 2 or more for each process, --steps 1 or more", file=sys.stderr)
        return 2
    import torch

    torch.set_num_threads(1)  # children are forked from here, and threads are not
    with tempfile.TemporaryDirectory() as name:
        found = (in_one_process if options.command == "memory" else in_one_folder)(options, Path(name))
    print(json.dumps(found) if options.json else "\n".join(f"{name:<24} {value}" for name, value in found.items()))
    return int(is_faulty(found))


def is_faulty(found: dict[str, Any]) -> bool:
    return any(found.get(name) for name in (*FAULTS, "files left open")) or found.get("growth, %", 0) >= MOST_GROWTH


def asked(options: argparse.Namespace, folder: Path, pictures: int, seed: int = 0) -> list[str]:
    """A command line for so many pictures, of prompts that differ."""
    from ldm.files import write_text

    prompts = folder / f"prompts-{seed}.txt"
    write_text(prompts, "\n".join(f"a red cube number {i}" for i in range(pictures)))
    words: dict[str, Any] = {"model": options.model, "steps": options.steps, "H": options.size, "W": options.size}
    words |= {"from-file": prompts, "seed": seed, "device": "cpu", "outdir": folder / "out"}
    return [*(f"--{name}={value}" for name, value in words.items()), "--skip-grid"]


# --- memory ------------------------------------------------------------------------------------------------------


def in_one_process(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from _cli import parse
    from _draw import Listener, draw

    sizes: list[int] = []
    files: list[int] = []

    class Gauge(Listener):
        def picture(self, result: object) -> None:
            sizes.append(resident())
            files.append(len(os.listdir("/proc/self/fd")))

    with muted():
        status = draw(parse("txt2img", asked(options, folder, options.pictures)), Gauge())
    before, after = grown(sizes)
    return {
        "pictures": len(list(folder.glob("out/0*.png"))),
        "failed": int(status != 0 or len(sizes) != options.pictures),
        f"MB after {int(WARM * options.pictures)}": round(before / 1e6, 1),
        f"MB after {options.pictures}": round(after / 1e6, 1),
        "growth, %": round(100 * (after / before - 1), 2),
        "files open": files[-1],
        "files left open": max(files[-1] - files[int(WARM * len(files))], 0),
    }


def grown(sizes: Sequence[int]) -> tuple[float, float]:
    """After the warm-up, and at the end."""
    count, start = max(1, int(WINDOW * len(sizes))), int(WARM * len(sizes))
    return statistics.median(sizes[start : start + count]), statistics.median(sizes[-count:])


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def muted() -> Iterator[None]:
    """What is printed goes nowhere inside."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


# --- one folder --------------------------------------------------------------------------------------------------


def in_one_folder(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    import _draw  # noqa: F401  (imported once, before any fork)
    from _cli import parse

    share = options.pictures // options.processes
    lines = [asked(options, folder, share, 1000 * k) for k in range(options.processes)]
    parse("txt2img", lines[0])  # what is wrong with it is said here, and once
    children = [_started(line) for line in lines]
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    counts = {"processes": options.processes, "pictures": len(list(folder.glob("out/0*.png")))}
    return counts | {"failed": sum(status != 0 for status in statuses)} | looked_at(folder / "out", lines)


def _started(line: list[str]) -> int:
    from _cli import main as draw

    child = os.fork()
    if child == 0:
        status = 1
        try:
            with muted():
                status = draw("txt2img", line)
        finally:
            os._exit(status)
    return child


def looked_at(folder: Path, lines: Sequence[list[str]]) -> dict[str, int]:
    """Whether each job has all of its pictures, under names that no other has, and nothing else is there."""
    from ldm.png import read_request

    jobs = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("job-*.json"))]
    names = Counter(item["name"] for job in jobs for item in job["items"])
    lost, unreadable = len(lines) - len(jobs), 0
    for job in jobs:
        for item in job["items"]:
            path = folder / f"{item['name']}.png"
            try:
                request = read_request(path)
            except ValueError:
                lost, unreadable = lost + (not path.exists()), unreadable + path.exists()
                continue
            lost += (request["job"], request["seed"], request["prompt"]) != (job["hash"], item["seed"], item["prompt"])
    known = {f"{name}.png" for name in names} | {path.name for path in folder.glob("job-*.json")}
    return {
        "collisions": sum(count - 1 for count in names.values()),
        "lost": lost,
        "unreadable": unreadable,
        "leftovers": len({path.name for path in folder.iterdir()} - known),
    }


if __name__ == "__main__":
    raise SystemExit(ended(main))
