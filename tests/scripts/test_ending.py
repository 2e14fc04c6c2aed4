"""SIGTERM, a reader that goes, a full disk, little memory: each ends as documented, and what is finished stays."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.images import load_image

Run = Callable[..., int]
pytestmark = pytest.mark.fault
Capture = pytest.CaptureFixture[str]
DRAW = ("--prompt", "a red cube", "--steps", 1, "--n-samples", 2, "--n-iter", 2)


def contents(folder: str) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


def test_sigterm_while_a_model_is_loaded(txt2img: Run, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    import _draw

    monkeypatch.setattr(_draw, "load", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    assert txt2img(*DRAW) == 130 and capsys.readouterr().err.splitlines()[-1] == "stopped"
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_while_drawing_is_as_ctrl_c(txt2img: Run, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    import _output

    step = _output.Bar.step
    monkeypatch.setattr(_output.Bar, "step", lambda self, p: (step(self, p), os.kill(os.getpid(), signal.SIGTERM))[0])
    assert txt2img(*DRAW) == 130
    assert sorted(os.listdir("outputs")) == ["00000-0.png", "00001-1.png", "job-00000.json"]
    assert "stopped after 2 of 4 pictures; --resume goes on" in capsys.readouterr().err


@pytest.mark.parametrize("goes", [0, 2])
def test_a_reader_that_goes_is_left_in_peace(txt2img: Run, monkeypatch: pytest.MonkeyPatch, goes: int) -> None:
    """As `| head`: the pipe's other end is closed, at the start or when a picture is saved; not a word is said."""
    import _output

    for_reading, for_writing = os.pipe()
    picture = _output.Bar.picture

    def leave(self: Any) -> None:
        picture(self)
        if self.pictures == goes:
            os.close(for_reading)

    monkeypatch.setattr(_output.Bar, "picture", leave)
    if goes == 0:
        os.close(for_reading)
    with os.fdopen(for_writing, "w") as out, Path("stderr").open("w") as err, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        assert txt2img(*DRAW) == 141
        print("nothing is raised at the end")
        out.flush()
    assert len(list(Path("outputs").glob("0*.png"))) == (4 if goes else 0)
    assert not any(word in Path("stderr").read_text() for word in ("failed", "Error", "pipe"))


@pytest.fixture(scope="module")
def drawn() -> dict[str, bytes]:
    return {}


@pytest.fixture
def whole(txt2img: Run, drawn: dict[str, bytes]) -> dict[str, bytes]:
    """What an undisturbed job leaves, drawn once for all tests."""
    if not drawn:
        assert txt2img(*DRAW, "--outdir", "whole") == 0
        drawn |= contents("whole")
    return drawn


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("batch", [0, 1])
def test_a_second_signal_stops_at_once(
    txt2img: Run,
    whole: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    first: int,
    second: int,
    batch: int,
) -> None:
    import _output

    step, count = _output.Bar.step, [0]

    def twice(self: Any, progress: Any) -> None:
        step(self, progress)
        count[0] += 1
        if count[0] == 1 + batch:
            os.kill(os.getpid(), first)
            os.kill(os.getpid(), second)

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        patch.setattr(_output.Bar, "step", twice)
        assert txt2img(*DRAW, "--outdir", "now") == 130
    assert capsys.readouterr().err.splitlines()[-1] == "stopped"
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert len(list(Path("now").glob("0*.png"))) == 2 * batch and not list(Path("now").glob(".*"))
    assert txt2img(*DRAW, "--outdir", "now", "--resume") == 0 and contents("now") == whole


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.ENOENT], ids=errno.errorcode.get)
def test_a_folder_that_takes_no_files(
    txt2img: Run, monkeypatch: pytest.MonkeyPatch, capsys: Capture, number: int
) -> None:
    """Found before a model is loaded, whoever asks: root may write anywhere."""
    import _draw

    import ldm.files

    def refuse(**_: Any) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(ldm.files.tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(_draw, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    assert txt2img(*DRAW) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: outputs: files cannot be written there") and os.strerror(number) in said


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG], ids=errno.errorcode.get)
@pytest.mark.parametrize("k", [0, 1, 3, 9, 12])
def test_a_full_disk(
    txt2img: Run,
    whole: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    k: int,
    number: int,
) -> None:
    """At the k-th write from the first picture on; a write leaves half of its bytes there."""
    import _draw

    import ldm.files

    left, fdopen, generate = [-1], os.fdopen, _draw.generate

    class Full:
        def __init__(self, file: Any) -> None:
            self._file = file

        def write(self, data: bytes) -> int:
            if left[0] == 0:
                self._file.write(data[: len(data) // 2])
                raise OSError(number, os.strerror(number))
            left[0] -= 1
            return int(self._file.write(data))

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()

    def begin(*args: Any, **options: Any) -> Any:
        left[0] = k
        return generate(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ldm.files.os, "fdopen", lambda *args, **options: Full(fdopen(*args, **options)))
        patch.setattr(_draw, "generate", begin)
        assert txt2img(*DRAW, "--outdir", "full") == 1
    said = capsys.readouterr().err.rstrip().splitlines()[-1]
    assert said.startswith("failed: ") and "the disk is full; what is finished is whole" in said and "--resume" in said
    found = contents("full")
    assert "job-00000.json" in found and all(whole[name] == data for name, data in found.items())  # no leftovers
    assert txt2img(*DRAW, "--outdir", "full", "--resume") == 0
    assert contents("full") == whole


@pytest.mark.long
@pytest.mark.parametrize("extra", [(), ("--save-intermediates", 1)], ids=["plain", "with intermediates"])
def test_little_memory_is_a_line_and_resumes(
    txt2img: Run, monkeypatch: pytest.MonkeyPatch, capsys: Capture, extra: tuple[Any, ...]
) -> None:
    from ldm.modules.unet import UNet

    forward = UNet.forward

    def short(self: UNet, x: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        if len(x) > 2:  # with guidance, two rows a picture
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, x, *args, **options)

    assert txt2img(*DRAW, *extra, "--outdir", "roomy") == 0
    capsys.readouterr()
    monkeypatch.setattr(UNet, "forward", short)
    assert txt2img(*DRAW, *extra, "--outdir", "short") == 0
    assert capsys.readouterr().err.count("out of memory with 2 pictures at once: from here on 1 at once") == 1
    whole, roomy = contents_of("short"), contents_of("roomy")
    assert whole.keys() == roomy.keys()
    for name in (name for name in whole if name.endswith(".png") and name.startswith("0") and "/" not in name):
        a, b = load_image(Path("short", name)), load_image(Path("roomy", name))
        assert max(abs(x - y) for x, y in zip(a.tobytes(), b.tobytes(), strict=True)) <= 1
    for lost in ("00001-1.png", "00002-2.png"):
        Path("short", lost).unlink()
    assert txt2img(*DRAW, *extra, "--outdir", "short", "--resume") == 0
    assert contents_of("short") == whole


def contents_of(folder: str) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in Path(folder).rglob("*") if f.is_file()}


def test_no_memory_to_load_a_model(txt2img: Run, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    import _draw

    def load(*_: object, **__: object) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes.")

    monkeypatch.setattr(_draw, "load", load)
    assert txt2img(*DRAW) == 1
    said = capsys.readouterr().err.rstrip().splitlines()[-1]
    assert said.startswith("failed: out of memory while loading --model ") and "draw a smaller picture" in said


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ValueError("--steps 0: give 1 or more"), 2, "error: --steps 0: give 1 or more"),
        (RuntimeError("NaN or infinity"), 1, "failed: NaN or infinity"),
        (RuntimeError(), 1, "failed: RuntimeError"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), 1, "failed: x: No such file or directory"),
        (OSError("no network"), 1, "failed: no network"),
        (OSError(errno.ENOSPC, "No space left on device", "x"), 1, "failed: x: the disk is full; what is finished is"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_goes_wrong_is_a_sentence(
    error: Exception, status: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    from _ending import ended

    def work() -> int:
        raise error

    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert ended(work) == status
    told = capsys.readouterr().err
    assert told.startswith(said) and told.count("\n") == 1
    monkeypatch.setattr(sys, "argv", ["train.py", "--debug"])
    with pytest.raises(type(error)):
        ended(work)
