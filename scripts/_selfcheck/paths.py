"""Paths that lead nowhere, and file systems that do not take what is written."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator

from _selfcheck.case import Case

NAME = "paths and file systems"
PROMPT = ("--prompt", "a red cube")
FOLDERS = {  # for --outdir
    "a file": "file",
    "below a file": "file/below",
    "a device": "/dev/null",
    "below a device": "/dev/null/out",
    "where nothing can be made": "/proc/pictures",
    "where the kernel writes": "/sys",
    "a name of a kilobyte": "a" * 1000,
    "a path of a megabyte": "a/" * 500_000,
    "NUL": "a\0b",
    "a link to nowhere": "nowhere",
    "a link to itself": "loop",
    "a pipe": "pipe",
}
READ = ("--model", "--vae", "--text-encoder", "--refiner", "--autoguide")


def strange() -> None:
    """A file, links, and a pipe that nobody writes to."""
    os.symlink("gone/away", "nowhere")
    os.symlink("loop", "loop")
    os.mkfifo("pipe")


def small_files() -> None:
    """As a full disk: the probe finds room, and a picture is too much."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))


def cases() -> Iterator[Case]:
    for name, path in FOLDERS.items():
        says = path[:20].replace("\0", "") if "\0" not in path else "a"
        yield Case(f"out: {name}", (*PROMPT, "--outdir", path), says, {"file": b"x"}, prepare=strange)
    for option in READ:
        for name, path in {"not there": "gone.ckpt", "a folder": "empty/", "a pipe": "./pipe", "NUL": "./a\0b"}.items():
            says = path.strip("./").split("\0")[0]
            yield Case(f"{option}: {name}", (*PROMPT, option, path), says, {"empty/file": b"x"}, prepare=strange)
    for name, path in {"a device without end": "/dev/zero", "nothing": "/dev/null", "a loop": "./loop"}.items():
        yield Case(f"--model: {name}", (*PROMPT, "--model", path), path.strip("./"), prepare=strange)
    yield Case("--model: empty", (*PROMPT, "--model", ""), "--model")
    yield Case("--config: a pipe", (*PROMPT, "--config", "./pipe"), "pipe", prepare=strange)
    yield Case("--plugin: not there", (*PROMPT, "--plugin", "gone.py"), "gone.py")
    yield Case("--plugin: no Python", (*PROMPT, "--plugin", "a.py"), "a.py", {"a.py": b"(("})
    yield Case("--profile: there already", (*PROMPT, "--profile", "full"), "full", {"full/file": b"x"})
    yield Case("--resume: a broken manifest", (*PROMPT, "--resume", "--outdir", "old"), "job-00000", BROKEN)
    yield Case("a picture: a pipe", (*PROMPT, "--init-img", "pipe"), "pipe", command="img2img", prepare=strange)
    yield Case("a picture: without end", (*PROMPT, "--init-img", "/dev/zero"), "zero", command="img2img")
    yield Case("a full disk", PROMPT, "00000-0.png", within=small_files)


BROKEN = {"old/job-00000.json": b"{"}
