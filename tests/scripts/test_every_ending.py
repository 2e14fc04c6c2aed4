"""Every script, not only those that draw, ends as documented when nobody reads it, when it is stopped, and when it
cannot write where it is told to."""

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


FOLDERS = (  # commands that fill a folder; the sentence comes before weights are looked for
    "train_autoencoder --config no.yaml --outdir {}",
    "guidance_sheets --model no.safetensors --outdir {}",
    "look_at_samplers --model no.safetensors --page {}/page.md",
    "txt2img --model scenes --prompt a --outdir {}",
    "benchmark load --folder {}",
    "fuzz --seconds 0 --keep {}",
)
FILES = (  # commands that write one file, or a folder that is new
    "evaluate_scenes --model no.safetensors --sheet {}",
    "benchmark load --out {}",
    "benchmark load --plot {}",
    "mutation_check --json {}",
    "optimize_sd --model no.safetensors --out {}.yaml",
    "optimize_attention --model no.safetensors --out {}.yaml",
    "export_onnx no.safetensors --out {}",
    "train_autoencoder --config no.yaml --outdir run --profile {}",
)
LONG = "x" * 400
PLACES = [(command, place) for command in FOLDERS for place in ("file", "file/below", LONG, "/proc/x")]
PLACES += [(command, place) for command in FILES for place in ("folder", "none/x", "file/x", LONG, "/proc/x")]


@pytest.mark.parametrize(("command", "place"), PLACES, ids=lambda word: word.split()[0][:20])
def test_a_place_that_takes_no_files(
    command: str, place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "full").touch()
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "file").touch()
    script, *argv = command.format(place).split()
    (path,) = (path for path in ALL if path.stem == script)
    assert status_of(path, monkeypatch, *argv) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and place in said and "no.safetensors" not in said


def test_a_model_that_is_not_there_is_said_before_the_long_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in ("chaos batch --model no.safetensors", "soak memory --model no.safetensors", "soak folder --size 33"):
        script, *argv = words.split()
        assert status_of(SCRIPTS / f"{script}.py", monkeypatch, *argv) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1 and ("no.safetensors" in said or "33" in said)


@pytest.mark.long
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
