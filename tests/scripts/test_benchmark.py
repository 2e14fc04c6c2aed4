"""scripts/benchmark.py on miniatures: both sides of a row do the same; how fast they are is not a test's business."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from _bench.floors import count
from _bench.harness import ROWS, Bench, Line, take_turns
from _bench.scaling import worst_growth
from _bench.weights import weight
from _synthetic import weight as weight_of_its_name

ROOT = Path(__file__).parents[2]
OF_A_GPU = {"gpu-unet-sd1", "gpu-memory-sdxl"}
MOST = {  # a row's largest error; the other rows are left to its `--all --tiny`
    "unet-sd1-fp32": 1e-5,
    "txt2img-sd1": 5e-2,
    "scenes": 1e-3,
}


def benchmark(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_every_row_says_something_and_both_sides_compute_the_same(tmp_path: Path) -> None:
    rows, plot = [*MOST, "guidance-1", "scaling", "load", *OF_A_GPU], tmp_path / "scaling.png"
    run = benchmark(*rows, *"--tiny --rounds 1 --json --folder".split(), str(tmp_path), "--plot", str(plot))
    assert run.returncode == 0, run.stdout + run.stderr
    assert plot.stat().st_size > 1000
    printed: dict[str, Any] = json.loads(run.stdout)
    assert "torch" in printed["machine"]["versions"] and printed["machine"]["processor"]
    found = printed["rows"]
    for name, lines in found.items():
        assert lines and all(line["what"] for line in lines), name
        assert (lines[0]["note"] == "not measured") == (name in OF_A_GPU)
    for name, most in MOST.items():
        errors = [line["error"] for line in found[name] if line["error"] is not None]
        assert errors and max(errors) < most, name
        for line in (line for line in found[name] if line["theirs"]):
            assert line["ratio"] == pytest.approx(line["theirs"] / line["ours"]) and line["floor"] > 0
    share = found["guidance-1"][0]
    assert share["ratio"] == pytest.approx(share["ours"] / share["theirs"])
    cast, least = found["load"][-2], 0
    assert "float32" in cast["what"] and cast["ours"] > least and cast["theirs"] > least and cast["floor"] > least


@pytest.mark.long
def test_rows_and_mistakes() -> None:
    listed = benchmark()
    assert [line.split()[0] for line in listed.stdout.splitlines()][-1].startswith("gpu-")
    assert {"unet-sd1-fp32", "cold-start", "openvino"} <= {line.split()[0] for line in listed.stdout.splitlines()}
    wrong = benchmark("unet-sd3")
    assert wrong.returncode == 2 and "there is no row 'unet-sd3'; there are load" in wrong.stderr
    none = benchmark("load", "--rounds", "0")
    assert none.returncode == 2 and "--rounds 0 measures nothing; give 1 or more" in none.stderr


def test_a_row_that_fails_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import benchmark as script
    from _bench.harness import Row

    def fails(bench: Bench) -> Iterator[Line]:
        raise RuntimeError("no such\nthing")
        yield

    monkeypatch.setitem(ROWS, "broken", Row("broken", "it breaks", fails))
    (line,) = script.measured("broken", Bench(tmp_path, tiny=True))
    assert line.note == "RuntimeError: no such thing"
    assert script.table_row("broken", line).startswith("| broken | failed: RuntimeError: no such thing |")


def test_rows_are_kept_and_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import benchmark as script
    from _bench.harness import Row

    measured: list[str] = []

    def works(bench: Bench) -> Iterator[Line]:
        measured.append("works")
        yield Line("half", 0.5, 1.0, ">= 1.5")

    def stops(bench: Bench) -> Iterator[Line]:
        measured.append("stops")
        if measured.count("stops") < 3:
            raise KeyboardInterrupt if measured.count("stops") == 1 else RuntimeError("no")
        yield Line("at last", 1.0)

    for name, function in (("works", works), ("stops", stops)):
        monkeypatch.setitem(ROWS, name, Row(name, name, function))
    monkeypatch.setattr(script, "describe", lambda: {"commit": "one"})
    given = ["works", "stops", "--tiny", "--out", str(tmp_path / "rows.json")]
    assert [script.main(given) for _ in range(4)] == [130, 1, 0, 0]  # stopped, failed, measured, read
    assert measured == ["works", "stops", "stops", "stops"]
    said = capsys.readouterr()
    assert said.out.count("| works | half | 500 ms | 1.00 s | 2.00 | ≥ 1.5 yes |") == 4
    assert said.err == "stopped; the same command goes on\n"
    assert script.main([*given, "--rounds", "2"]) == 2 and "of another rounds, 3" in capsys.readouterr().err
    full = [word for word in given if word != "--tiny"]
    monkeypatch.setattr(Bench, "alone", lambda self, function, *arguments: function(*arguments))
    assert script.main(full) == 2 and "its rows are of another size, tiny: " in capsys.readouterr().err
    monkeypatch.setattr(script, "describe", lambda: {"commit": "two"})
    assert script.main(given) == 2 and "its rows are of another commit, one; name another" in capsys.readouterr().err
    (tmp_path / "rows.json").write_text("[]")
    assert script.main(given) == 2 and "not a file of this command" in capsys.readouterr().err


def test_lines() -> None:
    from benchmark import table_row

    line = Line("float32, theirs", 0.5, 1.0, ">= 1.5", floor=0.25, error=1e-6)
    assert line.shown == 2 and line.met
    assert table_row("a", line) == "| a | float32, theirs | 500 ms | 1.00 s | 2.00 | ≥ 1.5 yes | 250 ms | 1.0e-06 |"
    assert Line("memory", 3, 4, "<= 0.7", unit="GB", value=0.75).met is False
    assert Line("memory", 3, None, "<= 0.7").met is None and Line("a", 1, 2).met is None


def test_turns() -> None:
    called: list[str] = []
    sides = {name: lambda name=name: called.append(name) or name for name in "AB"}
    turns = take_turns(sides, 3)
    assert "".join(called) == "ABABABAB" and turns.outputs == {"A": "A", "B": "B"}
    a, b = torch.ones(3, 4), torch.ones(4, 5)
    assert count(lambda: a @ b)[1] == 2 * 3 * 4 * 5


def test_growth() -> None:
    assert worst_growth({1: 1.0, 2: 1.5, 8: 9.0}) == pytest.approx((9 / 1.5) / 4)


@pytest.mark.parametrize(("name", "shape"), [("conv.weight", (64, 32, 3, 3)), ("norm.weight", (4096,))])
def test_weights_are_scaled_as_those_of_parity(name: str, shape: tuple[int, ...]) -> None:
    pool = torch.randn(5003, generator=torch.Generator().manual_seed(0))
    ours, wanted = weight(pool, name, shape), weight_of_its_name(name, shape)
    assert float(ours.std() / wanted.std()) == pytest.approx(1, rel=0.1)
    assert float(ours.mean() - wanted.mean()) == pytest.approx(0, abs=0.02)
