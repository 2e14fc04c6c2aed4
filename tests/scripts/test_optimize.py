"""scripts/optimize: what is written can be drawn with, and is safe; which is fastest is not a test's business."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from ldm.checkpoint.load import outline
from ldm.config import load_config

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "optimize"))
Capture = pytest.CaptureFixture[str]


def test_the_fastest_of_those_that_are_safe() -> None:
    from _tuning import Row, fastest, table

    rows = [
        Row({"precision": "full"}, 4.0, 0.0, detail={"a step": 0.5}),
        Row({}, 3.0, 0.9, detail={"a step": 0.25}),
        Row({"precision": "bf16"}, 1.0, 7.0),
        Row({"precision": "fp16"}, 0.5, float("nan")),
        Row({"compile": True}, reason="no compiler here"),
    ]
    assert fastest(rows, 1.0) is rows[1] and fastest(rows, 8.0) is rows[2] and fastest(rows, 0.0) is rows[0]
    assert fastest(rows[2:], 1.0) is None
    assert fastest([Row({}, 1.0, 0.0), Row({"precision": "full"}, 0.97, 0.0)], 1.0).settings == {}  # clocks waver
    lines = table(rows, 1.0, "error").splitlines()
    assert lines[3] == "| as it is | 3 | 0.25 | 0.9 | fastest |"
    assert lines[4].endswith("| error above 1 |") and lines[5].endswith("| error above 1 |")
    assert lines[6] == "| compile True | | | | no compiler here |"
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.long
def test_settings_of_a_model_are_found_and_drawn_with(
    tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    import optimize_sd
    from _cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(optimize_sd, "TRIED", {"precision": ("bf16",), "no-such-option": (1,), "skip-save": (True,)})
    command = ["--model", str(tiny_file), "--device", "cpu", "--steps", "2", "--rounds", "1", "--out", "fast.yaml"]
    assert optimize_sd.main([*command, "--error", "0"]) == 0  # bf16 is another picture
    out = capsys.readouterr().out
    assert "| precision bf16 | " in out and "| error above 0 |" in out and "no-such-option" not in out
    settings = load_config("fast.yaml")
    assert "precision" not in settings or settings["precision"] == "full"
    with Image.open("fast.png") as plot:
        assert plot.format == "PNG" and plot.width > plot.height
    assert main("txt2img", ["--model", str(tiny_file), "--prompt", "a", "--steps", "1", "--settings", "fast.yaml"]) == 0

    assert optimize_sd.main(command) == 2
    assert "fast.yaml is there already; give another name" in capsys.readouterr().err
    assert optimize_sd.main([*command[:-1], "fast.txt"]) == 2
    assert "settings are written as YAML" in capsys.readouterr().err
    assert optimize_sd.main([*command[:-1], "b.yaml", "--rounds", "0"]) == 2
    assert "--rounds 0: give 1 or more" in capsys.readouterr().err


def test_a_way_that_fails_is_a_row(tiny_file: Path) -> None:
    import argparse

    from optimize_sd import measure

    base = ["--model", str(tiny_file), "--device", "cpu", "--prompt", "a", "--steps", "1", "--n-iter", "3"]
    row, images = measure(base, {"precision": "fp8"}, argparse.Namespace(device="cpu", n_samples=1))
    assert row.seconds is None and "fp8" in row.reason and images == []
    row, images = measure(base, {"precision": "full"}, argparse.Namespace(device="cpu", n_samples=1))
    assert row.seconds is not None and len(images) == 3


def test_what_a_network_attends_to() -> None:
    from optimize_attention import shapes

    asked = shapes(outline("scenes"), 2, 128, 64, states=64)
    # (batch, heads, queries, keys, channels): calls
    whole, half = {(2, 4, 128, 128, 16): 3, (2, 4, 128, 64, 16): 3}, {(2, 4, 32, 32, 44): 8, (2, 4, 32, 64, 44): 8}
    assert asked == Counter(whole | half)  # attention at all of 16 × 8 pixels, and at half


def test_attention_is_measured_against_float64(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    import optimize_attention

    q, k, v = optimize_attention.tensors((2, 3, 5, 7, 4), "cpu", torch.float32)
    wanted = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double())
    assert torch.allclose(optimize_attention.reference(q, k, v), wanted, atol=1e-12)

    monkeypatch.chdir(tmp_path)
    command = ["--model", "scenes", "--device", "cpu", "--size", "64", "--rounds", "1", "--out", "a.yaml"]
    assert optimize_attention.main(command) == 0
    assert "| attention cudnn | | | torch has no such kernel" in capsys.readouterr().out
    assert load_config("a.yaml")["attention"] in ("auto", "flash", "efficient", "math")
    assert optimize_attention.main([*command[:-1], "b.yaml", "--error", "0"]) == 1
    assert "no kernel stays within a relative error of 0" in capsys.readouterr().err
    assert not Path("b.yaml").exists()
