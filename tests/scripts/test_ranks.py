"""A job of two processes draws what one does, bit for bit, under the same names."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from ldm.png import read_request

SCRIPTS = Path(__file__).parents[2] / "scripts"


def start(folder: Path, rank: int, count: int, port: int, *words: str) -> subprocess.Popen[str]:
    """As torchrun starts them."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    environment["PYTHONPATH"] = str(SCRIPTS.parent)
    command = [sys.executable, str(SCRIPTS / "txt2img.py"), "--device", "cpu", *words]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=-1, stderr=-1, text=True)


def run(folder: Path, count: int, *words: str) -> list[tuple[int, str, str]]:
    """(exit status, what it printed, and on stderr) of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [start(folder, rank, count, port, *words) for rank in range(count)]
    printed = [process.communicate(timeout=600) for process in started]
    return [(process.returncode, *texts) for process, texts in zip(started, printed, strict=True)]


def contents(folder: Path) -> dict[str, bytes]:
    found = {}
    for name in sorted(path.name for path in folder.glob("*.png")):
        with Image.open(folder / name) as image:
            found[name] = image.tobytes()
    return found


@pytest.mark.long
def test_two_processes_draw_what_one_does(tmp_path: Path) -> None:
    """Five prompts in batches of two: the first process draws 0, 1 and 4, the second 2 and 3, after a picture that is
    there already; the first process alone tells of it."""
    (tmp_path / "p.txt").write_text("a red cube\na cone\na small blue sphere in fog\na cone\na green cube\n")
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    for folder in ("one", "two"):
        Image.new("RGB", (1, 1)).save(tmp_path / folder / "00006-9.png")
    job = ("--model", "scenes", "--from-file", "p.txt", "--steps", "2", "--n-samples", "2", "--H", "64", "--W", "64")
    ((status, told, _),) = run(tmp_path, 1, *job, "--seed", "random", "--outdir", "one")
    assert status == 0
    seed = told.split("seed: ")[1].split()[0]
    first, second = run(tmp_path, 2, *job, "--seed", seed, "--outdir", "two")
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert list(one) == ["00006-9.png", *(f"{i + 7:05}-{int(seed) + i}.png" for i in range(5)), "grid-00000.png"]
    assert one == two
    batches = [len(read_request(tmp_path / "two" / name)["batch"]) for name in list(two)[1:6]]
    assert batches == [2, 2, 2, 2, 1]
    assert "5 pictures: two/00007" in first[1] and "grid: two/grid-00000.png" in first[1]
    assert second[1] == "" and "images" not in second[2]
    assert json.loads((tmp_path / "one/job-00000.json").read_text()) == json.loads(
        (tmp_path / "two/job-00000.json").read_text()
    )
    for name in ("00008", "grid"):
        next((tmp_path / "two").glob(f"{name}-*.png")).unlink()
    first, second = run(tmp_path, 2, *job, "--seed", seed, "--outdir", "two", "--resume")
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert contents(tmp_path / "two") == one
    assert "4 of 5 pictures are there already" in first[1]


def test_standard_input_has_one_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    from _cli import parse

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="^--from-file -: standard input has one reader"):
        parse("txt2img", ["--from-file", "-"])


def test_batches_are_dealt_whole() -> None:
    from _ranks import Ranks

    shares = []
    for rank in range(3):
        ranks = Ranks()
        ranks.rank, ranks.count = rank, 3
        shares.append(ranks.own([*range(4), *range(6, 13)], 2))  # a job resumed: the third batch is there
    assert shares == [[0, 1, 8, 9], [2, 3, 10, 11], [6, 7, 12]]


@pytest.mark.long
def test_torchrun_itself(tmp_path: Path) -> None:
    """The launcher's own words for who is who; each process draws one of the two prompts."""
    (tmp_path / "p.txt").write_text("a red cube\na cone\n")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = ["--from-file", "p.txt", "--steps", "1", "--H", "64", "--W", "64", "--device", "cpu", "--outdir", "out"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPTS.parent)}
    command = [*launcher, str(SCRIPTS / "txt2img.py"), *words]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    assert list(contents(tmp_path / "out")) == ["00000-0.png", "00001-1.png", "grid-00000.png"]
    assert run.stdout.count("2 pictures: ") == 1  # the first process speaks for both
