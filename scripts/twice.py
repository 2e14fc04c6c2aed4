"""Draw everything twice, in two processes, the second in reverse order; are the files the same, byte for byte?

Every sampler, every task that a model without foreign weights can do, and options that touch other code. One row for
each group; exit status 1 if any file differs or is missing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import _installed  # noqa: F401
from _ending import ended

Words = tuple[str, ...]
SCHEDULED = "a (red:1.3) cube [on a sunny day:at night:0.4] AND [red|blue] fog :0.5"
TXT2IMG: tuple[str, ...] = (  # options beside --prompt
    "--spacing karras",
    "--spacing align_your_steps --steps 5",
    "--sigmas 14.6,3.9,0.7",
    "--timesteps 999,500,100",
    "--eta 0.5",
    "--sampler euler --s-churn 1 --s-noise 1.01",
    "--scale 1",
    "--scale 1,4 --n-samples 2",
    "--guidance-rescale 0.7",
    "--dynamic-threshold 0.995",
    "--guidance-interval 0.3,5",
    "--cfg-pp",
    "--pag 3",
    "--freeu 1.3,1.4,0.9,0.2",
    "--negative-prompt fog",
    "--variation-seed 5 --variation-strength 0.3",
    "--fixed-code --n-iter 2",
    "--n-samples 3",
    "--tile 32",
    "--tile 32 --exact-tiles",
    "--precision bf16",
    "--clip-skip 2",
    "--save-intermediates 1",
    "--H 96 --W 64",
    f"--prompt={SCHEDULED}",
)
BEGUN = ("--strength 0.5", "--strength 1", "--sampler euler_ancestral", "--sampler dpmpp_2m --n-samples 2")
PAINTED = ("", "--mask-blur 2", "--outpaint 0,16,0,8", "--sampler dpmpp_sde", "--strength 0.6")
ENLARGED = ("", "--noise-level 50", "--tile 24", "--sampler heun")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="only each N-th combination (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)  # the processes themselves
    parser.add_argument("--reverse", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.every < 1:
        print(f"error: --every is {options.every}; give 1 or more", file=sys.stderr)
        return 2
    asked = combinations()[:: options.every]
    if options.into is not None:
        return drawn(asked[::-1] if options.reverse else asked, options.into)
    with tempfile.TemporaryDirectory() as name:
        begin_with(Path(name))
        found = [_of_process(Path(name), way, options.every) for way in ("there", "back")]
    rows = {group: counted(group, asked, *found) for group in dict.fromkeys(words[0] for words in asked)}
    rows["in all"] = {key: sum(row[key] for row in rows.values()) for key in next(iter(rows.values()))}
    print(json.dumps(rows) if options.json else table_of(rows))
    return int(rows["in all"]["different"] > 0)


def combinations() -> list[Words]:
    """(command, option, …), each of which makes at least one picture."""
    from ldm.names import SAMPLERS

    made = [("txt2img", "--sampler", name) for name in SAMPLERS]
    for command, some in {"txt2img": TXT2IMG, "img2img": BEGUN, "inpaint": PAINTED, "upscale": ENLARGED}.items():
        made += [(command, *((line,) if line.startswith("--prompt=") else line.split())) for line in some]
    return made


def begin_with(folder: Path) -> None:
    """The pictures that some begin from, of names that are the same for both processes."""
    from PIL import Image

    from ldm.png import write_png

    gradient = Image.linear_gradient("L").resize((64, 64))
    write_png(Image.merge("RGB", (gradient, gradient.rotate(90), gradient.rotate(180))), folder / "begin.png")
    write_png(gradient.point(lambda value: 255 * (value > 127)), folder / "mask.png")
    write_png(Image.open(folder / "begin.png").resize((32, 32)), folder / "small.png")


def _of_process(folder: Path, way: str, every: int) -> dict[str, str]:
    """Every file that a fresh interpreter draws, by name: its SHA-256."""
    command = [sys.executable, str(Path(__file__).resolve()), "--into", way, "--every", str(every)]
    done = subprocess.run([*command, *["--reverse"][: way == "back"]], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"drawing failed: {done.stderr.strip().splitlines()[-1]}")
    files = sorted(path for path in (folder / way).rglob("*.png"))
    return {path.relative_to(folder / way).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def drawn(asked: Sequence[Words], into: Path) -> int:
    """Each into a folder that is named after it."""
    from _cli import main as draw

    for command, *words in asked:
        pictures = {"img2img": "begin.png", "inpaint": "begin.png", "upscale": "small.png"}
        begin = ["--init-img", pictures[command]] if command in pictures else ["--H", "64", "--W", "64"]
        mask = ["--mask", "mask.png"] if command == "inpaint" and "--outpaint" not in words else []
        fixed = ["--prompt", "a red cube at night", "--steps", "3", "--seed", "7", "--device", "cpu", "--skip-grid"]
        status = draw(command, [*fixed, *begin, *mask, *words, "--outdir", str(into / name_of((command, *words)))])
        if status:
            print(f"{command} {' '.join(words)}: exit status {status}", file=sys.stderr)
            return status
    return 0


def name_of(words: Words) -> str:
    return hashlib.sha256(" ".join(words).encode()).hexdigest()[:16]


def counted(group: str, asked: Sequence[Words], first: dict[str, str], second: dict[str, str]) -> dict[str, int]:
    folders = {name_of(words) for words in asked if words[0] == group}
    files = {name for name in first | second if name.partition("/")[0] in folders}
    missing = folders - {name.partition("/")[0] for name in files}
    different = sum(first.get(name) != second.get(name) for name in files) + len(missing)
    return {"combinations": len(folders), "files": len(files), "different": different}


def table_of(rows: dict[str, dict[str, int]]) -> str:
    head = f"{'':<10}" + "".join(f"{name:>14}" for name in rows["in all"])
    return "\n".join([head, *(f"{name:<10}" + "".join(f"{n:>14}" for n in row.values()) for name, row in rows.items())])


if __name__ == "__main__":
    raise SystemExit(ended(main))
