"""Runs the cases of a parser in a process of its own, and judges each."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from _fuzz.parsers import Parser
from ldm.files import atomic, write_text

LIMIT = 5  # seconds for a case
MEMORY = 2 << 30  # bytes that cases may add to what importing took
ROUND = 200  # cases of a seed
SHRINKING = 25  # seconds more in which a finding may be made smaller
UNNAMED = "not a sentence that names the file: "
LONGEST = 4000  # characters of a sentence; the command line cuts its middle out


class Slow(BaseException):
    """It takes too long: no reader that catches errors catches this one."""


def fault(parser: Parser, case: bytes, folder: Path) -> str | None:
    """What is wrong with how the parser takes the case; None if nothing is. `refused` if it is, as it should be."""
    path = folder / parser.file
    with atomic(path) as file:
        file.write(case)
    try:
        with _limited():
            parser.read(path)
    except ValueError as error:
        return _wrong_refusal(parser, path, error)
    except Slow:
        return f"takes longer than {LIMIT} s"
    except BaseException as error:
        return _named(error)
    return None


def _wrong_refusal(parser: Parser, path: Path, error: ValueError) -> str | None:
    said = str(error)
    lines = said.splitlines() or [""]
    if not parser.refuses or isinstance(error, UnicodeError | json.JSONDecodeError):
        return _named(error)
    if not all(path.name in line or str(path.parent) in line for line in lines) or len(said) > LONGEST * len(lines):
        return f"{UNNAMED}{_named(error)}"
    return "refused"


def _named(error: BaseException) -> str:
    """The error, and the last place in this project that it came through."""
    places = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if "_fuzz" not in f.filename and ("/ldm/" in f.filename or "/scripts/" in f.filename)
    ]
    where = f"{Path(places[-1].filename).name}:{places[-1].lineno}" if places else "?"
    return f"{type(error).__name__} at {where}: {' '.join(str(error).split())[:150]}"


@contextmanager
def _limited() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise Slow

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Hunt:
    """Rounds of cases for one parser, until the deadline. findings: kind -> one sentence."""

    def __init__(self, parser: Parser, here: Path, deadline: float) -> None:
        self.parser, self.here, self.deadline, self.cases = parser, here, deadline, parser.cases()
        self.counts, self.findings = {"cases": 0, "read": 0, "refused": 0}, dict[str, str]()
        self._last: tuple[str, bytes, str] | None = None  # kind, case and sentence of what is being made smaller

    def round(self, number: int) -> bytes | None:
        """The smallest case of a new finding, if the round of this seed has one."""
        self._last = None
        calm = settings(max_examples=ROUND, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        look = settings(calm, phases=[Phase.generate, Phase.shrink], report_multiple_bugs=False)(
            given(self.cases)(self._look)
        )
        try:
            seed(number)(look)()
        except AssertionError:
            assert self._last is not None
            kind, case, self.findings[kind] = self._last
            return case
        return None

    def _look(self, case: bytes) -> None:
        if time.monotonic() > self.deadline + SHRINKING:
            return
        self.counts["cases"] += 1
        why = fault(self.parser, case, self.here)
        if why in (None, "refused"):
            self.counts["refused" if why else "read"] += 1
            return
        assert why is not None
        kind = why.removeprefix(UNNAMED).partition(": ")[0]
        if kind not in self.findings:  # one that is known is let pass
            self._last = kind, case, why
            raise AssertionError(kind)


class Bench:
    """A folder for the case at hand, and one, if any, for those that something is wrong with."""

    def __init__(self, folder: Path, keep: Path | None) -> None:
        self.folder, self.keep = folder, keep

    def run(self, parser: Parser, seconds: float, first_seed: int) -> dict[str, Any]:
        """How many cases were read and refused, and one sentence for each kind of finding."""
        report = self.folder / "report.json"
        here = self.folder / parser.name.replace(" ", "-")
        here.mkdir(exist_ok=True)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                null = os.open(os.devnull, os.O_RDWR)
                os.dup2(null, 1)
                write_text(report, json.dumps(self._hunted(parser, here, seconds, first_seed)))
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        if status != 0:
            self._keep(parser, (here / parser.file).read_bytes(), "crash")
            return {"cases": 0, "read": 0, "refused": 0, "findings": [f"the process ended with {status}"]}
        found: dict[str, Any] = json.loads(report.read_text())
        return found

    def _hunted(self, parser: Parser, here: Path, seconds: float, number: int) -> dict[str, Any]:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        hunt = Hunt(parser, here, time.monotonic() + seconds)
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        while time.monotonic() < hunt.deadline:
            if (case := hunt.round(number)) is not None:
                self._keep(parser, case, str(len(hunt.findings)))
            number += 1
        return hunt.counts | {"findings": list(hunt.findings.values())}

    def _keep(self, parser: Parser, case: bytes, name: str) -> None:
        if self.keep is not None:
            folder = self.keep / parser.name.replace(" ", "-")
            folder.mkdir(parents=True, exist_ok=True)
            with atomic(folder / name) as file:
                file.write(case)
