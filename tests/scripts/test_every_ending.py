"""Every script, not only those that draw, ends as documented when nobody reads it, and when it is stopped."""

from __future__ import annotations

import argparse
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
ALL = sorted(path for path in SCRIPTS.rglob("[a-z]*.py") if "__main__" in path.read_text())
Run = Callable[[], int]
pytestmark = pytest.mark.fault
each = pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)


def status_of(path: Path, monkeypatch: pytest.MonkeyPatch, *argv: str) -> int:
    """The exit status of `python path argv`, run here: importing torch for each would take minutes."""
    monkeypatch.setattr(sys, "argv", [str(path), *argv])
    monkeypatch.setattr(sys, "path", [str(path.parent), str(SCRIPTS), *sys.path])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    code = ended.value.code
    return code if isinstance(code, int) else int(code is not None)


@pytest.fixture(autouse=True)
def heeds_ctrl_c() -> Iterator[None]:
    """What a shell starts in the background does not, and the tests may be run so."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupted_by(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def parse_args(*_: Any, **__: Any) -> Any:
        os.kill(os.getpid(), number)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)


def test_there_are_scripts() -> None:
    assert len(ALL) >= 28 and {"txt2img", "train", "convert", "optimize_sd", "fuzz"} <= {path.stem for path in ALL}


@each
def test_nobody_reads(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for_reading, for_writing = os.pipe()
    os.close(for_reading)
    with os.fdopen(for_writing, "w") as out, (tmp_path / "err").open("w") as err, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        assert status_of(path, patch, "--help") == 141
    assert (tmp_path / "err").read_text() == ""


@each
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_stopped(path: Path, number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    interrupted_by(number, monkeypatch)
    assert status_of(path, monkeypatch) == 130
    assert capsys.readouterr().err == "stopped\n"


@pytest.mark.parametrize(
    "command",
    ["inspect_checkpoint.py {model} --json", "benchmark.py", "txt2img.py --model {model} --prompt a --explain"],
)
def test_nobody_reads_a_real_process(command: str, tiny_file: Path, tmp_path: Path) -> None:
    script, *rest = command.format(model=tiny_file).split()
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS.parent)}
    for_reading, for_writing = os.pipe()
    os.close(for_reading)
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / script), *rest],
        stdout=for_writing, stderr=subprocess.PIPE, env=environment, cwd=tmp_path, text=True,
    )  # fmt: skip
    os.close(for_writing)
    assert (done.returncode, done.stderr) == (141, "")
