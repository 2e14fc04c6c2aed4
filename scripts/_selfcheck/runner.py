"""Runs a case in a process of its own, through the command line, and judges what came of it."""

from __future__ import annotations

import importlib
import os
import re
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from _selfcheck.case import Case, miniature, weights

HANDLED, UNHANDLED, WRONG = "handled", "not handled", "accepted but wrong"
LIMIT = 120.0  # seconds until a case counts as one that hangs
MEMORY = 2 << 30  # bytes that a case may add to what importing took
WORDS = "give use name save write choose leave take convert unpack expected only need change".split()
PHRASES = ("; ", "get it", "such as", "must be", "make room", "did you mean", "(known: ", "it can be", "ask for")
REMEDY = re.compile("|".join([rf"\b{word}\b" for word in WORDS] + [re.escape(phrase) for phrase in PHRASES]))


class Verdict(NamedTuple):
    kind: str
    why: str  # where it is not handled
    status: int | None  # None: it did not end
    said: str


class Bench:
    """A folder for each case, and the miniature model that all of them draw with."""

    def __init__(self, folder: Path) -> None:
        import torch

        from ldm.checkpoint.load import load, save
        from ldm.config import build

        torch.set_num_threads(1)  # children are forked from here, and threads are not
        self.folder, self.model, self._count = folder, folder / "miniature.safetensors", 0
        model = build(miniature(), "miniature")
        model.load_state_dict(weights())
        save(model, self.model, config=miniature())
        load(self.model)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        self._memory = used + MEMORY
        for name in ("_draw", "inspect_checkpoint", "convert"):  # imported once, before any fork
            importlib.import_module(name)

    def run(self, case: Case) -> Verdict:
        from ldm.files import atomic

        here = self.folder / f"{self._count:04}"
        self._count += 1
        (here / "out").mkdir(parents=True, exist_ok=True)
        for name, contents in case.files.items():
            (here / name).parent.mkdir(exist_ok=True)
            with atomic(here / name) as file:
                file.write(contents() if callable(contents) else contents)
        if case.prepare is not None:
            before_all = Path.cwd()
            os.chdir(here)
            try:
                case.prepare()
            finally:
                os.chdir(before_all)
        before = contents_of(here)
        status, said = self._forked(case, here)
        return judge(case, status, said, before, here)

    def _forked(self, case: Case, here: Path) -> tuple[int | None, str]:
        """The exit status (below 0: the signal that ended it), and what it wrote to stderr."""
        with tempfile.TemporaryFile() as heard:
            child = os.fork()
            if child == 0:
                status = 99
                try:
                    os.chdir(here)
                    resource.setrlimit(resource.RLIMIT_AS, (self._memory, self._memory))
                    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
                    os.dup2(0, 1)
                    os.dup2(heard.fileno(), 2)
                    if case.within is not None:
                        case.within()
                    status = call(case, self.model)
                except SystemExit as error:
                    status = error.code if isinstance(error.code, int) else 1
                except BaseException:
                    sys.excepthook(*sys.exc_info())
                finally:
                    sys.stderr.flush()
                    os._exit(status)
            ended = wait(child)
            heard.seek(0)
            return ended, heard.read().decode("utf-8", "replace")


def call(case: Case, model: Path) -> int:
    from _cli import main
    from _options import COMMANDS

    if case.command not in COMMANDS:
        return int(importlib.import_module(case.command).main(list(case.argv)))
    steps = () if "--reproduce" in case.argv else ("--steps", "2")
    common = ["--model", str(model), "--device", "cpu", *steps, "--outdir", "out"]
    return main(case.command, [*common, *case.argv])


def wait(child: int) -> int | None:
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def contents_of(folder: Path) -> dict[str, bytes | str]:
    """Everything below a folder, links and devices by what they are; an output folder without anything counts not."""
    found: dict[str, bytes | str] = {}
    for parent, folders, files in os.walk(folder):
        for path in (Path(parent, name) for name in (*folders, *files)):
            plain = path.is_file() and not path.is_symlink()
            found[path.relative_to(folder).as_posix()] = path.read_bytes() if plain else oct(path.lstat().st_mode)
    return found


def judge(case: Case, status: int | None, said: str, before: dict[str, bytes | str], here: Path) -> Verdict:
    lines = [line for line in re.split(r"[\r\n]+", said) if line.strip() and not re.match(r"step \d+/\d+ \|", line)]
    if len(lines) > 1 and all(line.startswith("bad.yaml: ") for line in lines[1:]):
        lines = [" ".join(lines)]  # a config with several faults: one line for each
    why = ""
    if status is None or status < 0:
        why = "hangs" if status is None else f"ended by signal {-status}"
    elif "Traceback" in said:
        why = "a traceback"
    elif not case.says:
        why = f"refused, and is good: {lines[-1:]}" if status else wrong_picture(case, here)
        return Verdict((UNHANDLED if status else WRONG) if why else HANDLED, why, status, said.strip())
    elif status == 0:
        return Verdict(WRONG, "exit status 0", status, said.strip())
    elif status not in (1, 2):
        why = f"exit status {status}"
    elif len(lines) != 1 or not lines[0].startswith(("error: ", "failed: ")[2 - status]):
        why = f"{len(lines)} lines, and one sentence is owed"
    elif case.says not in lines[0]:
        why = f"does not name {case.says!r}"
    elif not REMEDY.search(lines[0]):
        why = "no remedy"
    elif max(map(len, said.splitlines())) > 1000:
        why = f"a sentence of {len(lines[0])} characters"
    elif changed := sorted(name for name, _ in before.items() ^ contents_of(here).items()):
        why = f"written or changed: {', '.join(changed[:3])}"
    return Verdict(UNHANDLED if why else HANDLED, why, status, said.strip()[:2000])


def wrong_picture(case: Case, here: Path) -> str:
    """Why what was drawn is not what was asked for; empty if it is."""
    from ldm.png import read_request

    made: Sequence[Path] = [path for path in sorted(here.glob("out/*.png")) if not path.name.startswith("grid")]
    if len(made) != case.pictures:
        return f"{len(made)} pictures instead of {case.pictures}"
    for path in made:
        found = str(read_request(path)["prompt"])
        if "\0" in found or found != found.strip() or (case.prompt is not None and found != case.prompt):
            return f"the picture says {found[:60]!r}"
    return ""
