"""--profile: what it counts is known for a miniature; how long anything takes is not a test's business."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import ldm

Run = Callable[..., int]
DRAW = ("--prompt", "a red cube", "--steps", 2)


def test_drawing(txt2img: Run, tiny_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert txt2img(*DRAW, "--outdir", "plain") == 0
    assert txt2img(*DRAW, "--profile", "where") == 0
    with Image.open("plain/00000-0.png") as a, Image.open("outputs/00000-0.png") as b:
        assert a.tobytes() == b.tobytes()
    assert sorted(path.name for path in Path("where").iterdir()) == ["memory.png", "modules.md", "trace.json"]

    lines = [line.split("|") for line in Path("where/modules.md").read_text().splitlines() if line.startswith("| ")]
    rows = {cells[1].strip(): [cell.strip() for cell in cells[2:-1]] for cells in lines[2:]}
    assert rows["unet"][0] == "2" and rows["autoencoder.decoder"][0] == "1"  # guidance asks for both rows at once
    x, kernel, weight = 4 * 4 * 2, 9, ldm.load(tiny_file).unet.conv_in.weight  # pixels of both rows
    assert weight.shape == (32, 4, 3, 3)
    assert float(rows["unet.conv_in"][4]) == pytest.approx(2 * 2 * x * 32 * 4 * kernel / 1e9, abs=0.005)
    assert sum(float(rows[name][2]) for name in rows if name.count(".") == 0 or name.startswith("autoencoder.")) < 200
    assert 0 < float(rows["unet"][3]) < 100  # MB
    trace = json.loads(Path("where/trace.json").read_text())
    assert sum(e.get("name") == "unet" and e.get("cat") == "user_annotation" for e in trace["traceEvents"]) == 2
    assert "profile: where/trace.json" in capsys.readouterr().out

    assert txt2img(*DRAW, "--profile", "where") == 2
    assert "--profile where is there already; name a new folder" in capsys.readouterr().err
    assert txt2img(*DRAW, "--profile", "no/such") == 2
    assert "there is no folder no; make it first" in capsys.readouterr().err


def test_products_are_counted_for_every_module() -> None:
    from _profile import Watch, flops, watched

    network = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 7))
    watch = Watch(watched({"net": network}))
    with watch(), torch.no_grad():
        for rows in (2, 2, 4):
            network(torch.ones(rows, 3))
    assert sum(watch.asked.values()) == 3 and len(watch.asked) == 2
    counted = flops(watch, "cpu")
    assert counted["net.0"] == 8 * 2 * 3 * 5 and counted["net.2"] == 8 * 2 * 5 * 7
    assert counted["net"] == 8 * 2 * (3 * 5 + 5 * 7)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_a_trace_is_read() -> None:
    from _profile import Row, read_trace, table, table_rows

    def memory(ts: float, size: int) -> dict[str, object]:
        args = {"Bytes": size, "Device Type": 0}
        return {"cat": "cpu_instant_event", "name": "[memory]", "ts": ts, "args": args}

    def call(name: str, ts: float, dur: float) -> dict[str, object]:
        return {"cat": "user_annotation", "name": name, "ts": ts, "dur": dur}

    events = [call("net", 1e6, 3e6), call("net.0", 2e6, 1e6), call("other", 1e6, 9e6), memory(1.5e6, 100)]
    events += [memory(2.5e6, 50), memory(3.2e6, -120), memory(3.5e6, 400), {"cat": "python", "ts": 0, "name": "net"}]
    trace = read_trace({"traceEvents": events}, {"net", "net.0"}, "cpu")
    assert trace.bytes.tolist() == [100, 150, 30, 430] and trace.times.tolist() == pytest.approx([0.5, 1.5, 2.2, 2.5])
    rows = table_rows(trace, {"net": 6, "net.0": None})
    assert rows == [Row("net", 1, 3.0, 430, 6), Row("net.0", 1, 1.0, 50, None)]
    assert rows[0].floor(4.0) == 0.5 and rows[1].floor(4.0) is None
    assert table(rows, 4.0, "here").splitlines()[-2:] == [
        "| net | 1 | 3.0000 | 100.0 | 0.0 | 0.00 | 50% |",
        "| net.0 | 1 | 1.0000 | 33.3 | 0.0 |  |  |",
    ]


def test_drawings_show_what_they_are_given() -> None:
    from _plot import BAD, BOTTOM, GOOD, HEIGHT, LEFT, LINE, RIGHT, TOP, WIDTH, bars, timeline

    image = np.asarray(timeline(np.array([1.0, 2.0, 3.0]), np.array([10, 40, 0]), [("a", 0.0, 4.0)]))
    column = LEFT + int((WIDTH - LEFT - RIGHT) * 2.5 / 4)  # while 40 are held
    (rows,) = np.nonzero((image[:, column] == LINE).all(axis=1))
    assert rows.mean() == pytest.approx(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) / 1.05, abs=2)
    chart = np.asarray(bars("t", [("slow", 4.0, True), ("fast", 1.0, False)]))
    good, bad = ((chart == colour).all(axis=2).sum() for colour in (GOOD, BAD))
    assert good / bad == pytest.approx(4, rel=0.02)


def test_a_call_that_ends_in_an_exception_is_over() -> None:
    """As those of exact tiles do, and one that memory did not suffice for."""

    from _profile import Watch

    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("enough")

    broken, sound = Broken(), nn.Linear(2, 3)
    calls = Watch({"broken": broken, "sound": sound})
    with calls():
        for _ in range(2):
            with pytest.raises(RuntimeError, match="enough"):
                broken(torch.ones(1))
            sound(torch.ones(1, 2))
    assert not calls._open
    assert {name: number for (name, _), number in calls.asked.items()} == {"broken": 2, "sound": 2}
