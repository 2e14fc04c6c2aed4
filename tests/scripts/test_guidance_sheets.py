"""The script that draws the pictures of docs/guidance.md, with a miniature model, and the pictures it left there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import guidance_sheets
import pytest
from _ending import ended
from PIL import Image

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


def test_the_page_shows_every_sheet_and_every_setting_makes_sense() -> None:
    page = guidance_sheets.DOCS.parent / "guidance.md"
    shown = re.findall(r"!\[.*?\]\(guidance/([\w-]+)\.png\)", page.read_text())
    assert sorted(shown) == sorted(guidance_sheets.SHEETS)
    for name, rows in guidance_sheets.SHEETS.items():
        assert (guidance_sheets.DOCS / f"{name}.png").stat().st_size < 150_000
        for _, how in rows:
            Guidance(**{key: value for key, value in how.items() if key not in ("guidance_scale", "worse")})
