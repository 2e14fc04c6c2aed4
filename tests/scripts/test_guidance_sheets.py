"""The script that draws the pictures of docs/guidance.md, with a miniature model, and the pictures it left there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import guidance_sheets
import pytest
from _ending import ended
from PIL import Image
from torch import Tensor

from ldm.files import claimed
from ldm.guidance import Guidance


def test_every_sheet_has_a_row_for_each_setting(
    tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(tiny_file), "--steps", "1", "--device", "cpu", "--outdir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["guidance_sheets.py", *arguments, "--only", "autoguidance", "pag"])
    assert ended(guidance_sheets.main) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 == len(list(tmp_path.glob("*.png")))
    for name in ("autoguidance", "pag"):
        with Image.open(tmp_path / f"{name}.png") as sheet:
            third = sheet.height // 3
            rows = [sheet.crop((0, i * third + 2, 4 * 34, i * third + 34)).tobytes() for i in range(3)]
        assert len(set(rows)) == 3
    monkeypatch.setattr(sys, "argv", ["guidance_sheets.py", *arguments, "--worse", "none.safetensors"])
    assert ended(guidance_sheets.main) == 2
    assert "none.safetensors" in capsys.readouterr().err


@pytest.mark.long
def test_a_stopped_one_goes_on_and_no_other_does(
    tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(folder: str, *more: str) -> int:
        common = ["--model", str(tiny_file), "--steps", "1", "--device", "cpu", "--only", "pag", "--resume"]
        monkeypatch.setattr(sys, "argv", ["guidance_sheets.py", *common, "--outdir", str(tmp_path / folder), *more])
        return ended(guidance_sheets.main)

    drawn, draw = [], guidance_sheets.pictures

    def stops(*args: Any) -> dict[str, Tensor]:
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(args[2])
        return draw(*args)

    assert run("whole") == 0
    monkeypatch.setattr(guidance_sheets, "pictures", stops)
    assert run("stopped") == 130 and len(drawn) == 2
    assert not list((tmp_path / "stopped").glob("*.png"))
    assert run("stopped", "--seed", "1") == 2
    assert "seed was 0, and is 1 here" in capsys.readouterr().err
    with claimed(tmp_path / "stopped" / ".unfinished.claim"):
        assert run("stopped") == 2
    assert "is being drawn to just now" in capsys.readouterr().err
    drawn.pop()  # one more may be drawn, and one more is missing
    assert run("stopped") == 0 and len(drawn) == 2
    one, other = (sorted((tmp_path / folder).rglob("*")) for folder in ("whole", "stopped"))
    assert [path.name for path in one] == [path.name for path in other] == ["pag.png"]
    assert one[0].read_bytes() == other[0].read_bytes()


def test_the_page_shows_every_sheet_and_every_setting_makes_sense() -> None:
    page = guidance_sheets.DOCS.parent / "guidance.md"
    shown = re.findall(r"!\[.*?\]\(guidance/([\w-]+)\.png\)", page.read_text())
    assert sorted(shown) == sorted(guidance_sheets.SHEETS)
    for name, rows in guidance_sheets.SHEETS.items():
        assert (guidance_sheets.DOCS / f"{name}.png").stat().st_size < 150_000
        for _, how in rows:
            Guidance(**{key: value for key, value in how.items() if key not in ("guidance_scale", "worse")})
