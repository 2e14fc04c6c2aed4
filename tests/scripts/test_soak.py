"""The short forms of scripts/soak.py and scripts/twice.py, and whether they tell what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(script: str, *options: object) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS.parent)}
    command = [sys.executable, str(SCRIPTS / script), *map(str, options), "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_memory_and_open_files_stay(tiny_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from soak import main

    assert main(["memory", "--model", str(tiny_file), "--pictures", "60", "--size", "32", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pictures"] == 60 and found["failed"] == found["files left open"] == 0 and found["growth, %"] < 2


@pytest.mark.long
def test_several_processes_share_a_folder(tiny_file: Path) -> None:
    found = run("soak.py", "folder", "--model", tiny_file, "--pictures", 24, "--processes", 4, "--size", 32)
    nothing = dict.fromkeys(("failed", "collisions", "lost", "unreadable", "leftovers"), 0)
    assert found == {"processes": 4, "pictures": 24} | nothing


def test_it_tells_what_is_wrong(tmp_path: Path, tiny_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from _cli import main as draw
    from soak import grown, is_faulty, looked_at

    line = [
        "--model",
        str(tiny_file),
        "--device",
        "cpu",
        "--prompt",
        "a",
        "--n-iter",
        "3",
        "--steps",
        "1",
        "--skip-grid",
    ]
    assert draw("txt2img", [*line, "--outdir", str(tmp_path)]) == 0
    sound = {"collisions": 0, "lost": 0, "unreadable": 0, "leftovers": 0}
    assert looked_at(tmp_path, [line]) == sound
    (tmp_path / "00000-0.png").unlink()
    (tmp_path / "00001-1.png").write_bytes((tmp_path / "00002-2.png").read_bytes())
    (tmp_path / "00002-2.png").write_bytes(b"half")
    (tmp_path / ".x.part").touch()
    (tmp_path / "job-00001.json").write_text((tmp_path / "job-00000.json").read_text())
    found = looked_at(tmp_path, [line, line, line])
    assert found == {"collisions": 3, "lost": 1 + 2 * 2, "unreadable": 2, "leftovers": 1}
    assert not is_faulty(sound | {"growth, %": 1.9}) and all(is_faulty(sound | {name: 1}) for name in sound)
    assert is_faulty({"growth, %": 2.1}) and is_faulty({"files left open": 1})
    assert grown([*range(30), *[100] * 60, *[200] * 10]) == (100, 200)


@pytest.mark.long
def test_some_of_everything_is_the_same_twice() -> None:
    found = run("twice.py", "--every", 20)
    assert found["in all"] == {"combinations": 4, "files": 4, "different": 0}


def test_what_differs_is_counted() -> None:
    from twice import combinations, counted, name_of

    asked = combinations()
    assert len(set(asked)) == len(asked) >= 60 and {words[0] for words in asked} == {
        "txt2img", "img2img", "inpaint", "upscale"
    }  # fmt: skip
    two = [("txt2img", "--a"), ("txt2img", "--b")]
    first, other = (f"{name_of(words)}/00000-7.png" for words in two)
    assert counted("txt2img", two, {first: "1", other: "2"}, {first: "1", other: "2"})["different"] == 0
    assert counted("txt2img", two, {first: "1", other: "2"}, {first: "1", other: "3"})["different"] == 1
    assert counted("txt2img", two, {first: "1"}, {first: "1"})["different"] == 1  # nobody drew the second
