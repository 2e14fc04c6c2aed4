"""The short form of scripts/chaos.py: killed at random moments, resumed, compared byte for byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
FAULTS = ("unreadable", "lost", "duplicates", "different", "leftovers", "failed")


def chaos(*options: object) -> dict[str, Any]:
    command = [sys.executable, str(SCRIPTS / "chaos.py"), *map(str, options), "--json"]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.long
@pytest.mark.fault
def test_a_batch_survives_being_killed(tiny_file: Path) -> None:
    found = chaos("batch", "--kills", 4, "--model", tiny_file, "--pictures", 6, "--size", 32)
    assert found["kills"] == 4 and found["jobs"] >= 1 and found["files in a job"] == 8
    assert {name: found[name] for name in FAULTS} == dict.fromkeys(FAULTS, 0)


@pytest.mark.long
@pytest.mark.fault
def test_a_training_survives_being_killed() -> None:
    found = chaos("train", "--kills", 3, "--steps", 20)
    assert found["kills"] == 3 and found["files in a job"] == 5
    assert {name: found[name] for name in FAULTS} == dict.fromkeys(FAULTS, 0)


def test_it_tells_what_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from chaos import compare, unreadable

    whole = {"a.png": b"1", "b.png": b"2", "c.png": b"3"}
    made = {"a.png": b"1", "b.png": b"9", "d.png": b"2", ".x.part": b""}
    assert compare(whole, made) == {"compared": 4, "lost": 1, "leftovers": 1, "duplicates": 1, "different": 1}
    for name in ("a.png", "b.json", "c.safetensors", "d.csv", ".e.png.part"):
        (tmp_path / name).write_text("{")
    assert unreadable(tmp_path) == 4
