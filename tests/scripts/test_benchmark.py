"""scripts/benchmark.py: what it measures is there, on a miniature; how fast it is, is not a test's business."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ldm
from ldm.config import build, load_config

ROOT = Path(__file__).parents[2]


def test_load(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tree, path = load_config(ROOT / "tests" / "tiny.yaml"), tmp_path / "tiny.safetensors"
    tree["params"]["autoencoder"]["params"]["norm_num_groups"] = 8
    ldm.save(build(tree), path, config=tree, dtype=torch.float16)
    command = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), "load", str(path), "--json", "--rounds", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    reading, ours, diffusers = json.loads(run.stdout)
    assert [row["way"] for row in (reading, ours, diffusers)] == ["reading", "ldm.load", "diffusers"]
    assert reading["times reading"] == 1 and reading["bytes"] == path.stat().st_size
    assert ours["times reading"] == pytest.approx(ours["seconds"] / reading["seconds"])
    assert ours["peak over size"] == pytest.approx(ours["peak bytes"] / path.stat().st_size) and ours["peak bytes"] > 0
    assert "seconds" in diffusers or diffusers["error"]


def test_table_and_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("script_benchmark", ROOT / "scripts" / "benchmark.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    rows = [
        {"way": "reading", "bytes": 2e9, "seconds": 1.0, "busy": 0.5, "times reading": 1.0, "peak over size": 0.01},
        {"way": "diffusers", "bytes": 2e9, "error": "ModuleNotFoundError: none"},
    ]
    assert script.table(rows).splitlines()[1:] == [
        "reading           1.00          0.50       1.00                0.01",
        "diffusers      ModuleNotFoundError: none",
    ]
    assert script.main(["load", "--rounds", "0"]) == 2
    assert "--rounds 0 measures nothing; give 1 or more" in capsys.readouterr().err
