"""The script that draws and writes docs/samplers.md, with a miniature model, and the page itself."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import _sampler_figures
import look_at_samplers
import pytest
import torch
from _ending import ended
from _sampler_figures import DETERMINISTIC, LABEL, difference
from look_at_samplers import BEGIN, END, PAGE
from PIL import Image

from ldm.models.diffusion import SAMPLERS


@pytest.fixture
def look(tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def run(*options: object) -> int:
        fixed = ["--model", str(tiny_file), "--device", "cpu", "--page", str(tmp_path / "page.md"), "--pictures", "2"]
        monkeypatch.setattr(sys, "argv", ["look_at_samplers.py", *fixed, *map(str, options)])
        return ended(look_at_samplers.main)

    return run


def row(text: str, name: str) -> list[str]:
    (line,) = re.findall(rf"^\| `?{name}`? \|(.*)\|$", text, re.M)
    return [cell.strip() for cell in line.split("|")]


def test_another_spacing_is_compared(look, tmp_path, monkeypatch):
    for module in (look_at_samplers, _sampler_figures):
        monkeypatch.setattr(module, "RESPACED_STEPS", (3,))
    assert look("--samplers", "lms", "unipc", "dpm_2", "dpm_fast", "--steps", 3, "--converged", 3) == 0
    text, _, compared = (tmp_path / "page.md").read_text().partition("What karras makes")
    own, other = row(compared, "lms")
    assert own == row(text, "lms")[0] != other and float(other) > 0
    assert row(text, "unipc") == ["0.00"]  # the reference itself
    assert len(re.findall(r"^\| [dlu]", compared, re.M)) == 1  # the others are at karras, or where they like


def test_errors_calls_and_pictures(look, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    samplers = ("unipc", "heun", "euler_ancestral")
    assert look("--samplers", *samplers, "--spacing", "karras", "--steps", 2, 4, "--converged", 4) == 0
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n") and text.endswith(f"{END}\nafter\n") and "old" not in text
    unipc, heun = row(text, "unipc"), row(text, "heun")
    assert unipc[1] == "0.00" and float(unipc[0]) > 1  # 4 steps of it are the reference
    assert [cell.split(" ", 1)[1] for cell in heun] == ["(3 calls)", "(7 calls)"]
    assert row(text, "4") == ["unipc, heun"]  # heun's 3 calls, and the 4 that leave nothing to be better
    assert "| euler_ancestral |" not in text  # which comes to no picture, and is only shown
    with Image.open(tmp_path / "page" / "grid.jpg") as grid:
        shown = [grid.crop((x, y, x + 64, y + 64)).tobytes() for x in (LABEL, LABEL + 66) for y in (16, 82)]
    assert len(set(shown)) == 4
    with Image.open(tmp_path / "page" / "error.png") as plotted:
        assert min(low for low, _ in plotted.convert("RGB").getextrema()) < 50  # something is on it


def test_a_page_that_is_not_there_and_one_without_a_place(look, tmp_path, capsys):
    few = ("--samplers", "ddim", "--steps", 2, "--converged", 2)
    assert look(*few) == 0
    text = (tmp_path / "page.md").read_text()
    assert "(page/grid.jpg)" in text and float(row(text, "ddim")[0]) > 0
    (tmp_path / "page.md").write_text("no markers")
    assert look(*few) == 2
    assert "put the two lines" in capsys.readouterr().err
    assert (tmp_path / "page.md").read_text() == "no markers"


@pytest.mark.long
def test_a_stopped_one_goes_on(look, tmp_path, monkeypatch):
    words = ("--samplers", "heun", "euler_ancestral", "--steps", 2, 3, "--converged", 4)
    assert look(*words) == 0
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    calls, draw = [], look_at_samplers.drawn_by

    def stops(*args):
        calls.append(args[2:4])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return draw(*args)

    monkeypatch.setattr(look_at_samplers, "drawn_by", stops)
    assert look(*words) == 130
    assert look(*words, "--resume") == 0
    assert len(set(calls)) == 6 and calls[3] == calls[4]  # two for the reference, four in the sheet, none of them twice
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


def test_difference_is_averaged_over_pictures():
    a = torch.zeros(2, 3, 4, 4)
    b = torch.stack([torch.full((3, 4, 4), 0.2), torch.full((3, 4, 4), -0.4)])
    assert difference(a, b) == pytest.approx(127.5 * 0.3)


@pytest.mark.parametrize("name", SAMPLERS)
def test_deterministic_are_those_that_ask_for_no_noise(name):
    drawn = []

    def noise(x, sigma, sigma_next):
        drawn.append(sigma)
        return torch.zeros_like(x)

    x, sigmas = torch.ones(1, 1, 2, 2), torch.logspace(1, -2, 12, dtype=torch.float64)
    assert list(SAMPLERS[name][0](lambda x, sigma: x / (1 + float(sigma) ** 2), x, sigmas, noise=noise))
    assert (not drawn) == (name in DETERMINISTIC)


def test_the_page_is_whole_and_true():
    text = PAGE.read_text()
    tables = text.partition("### Deterministic")[2].partition("### With fresh noise")
    for name, (_, spacing) in SAMPLERS.items():
        assert row(tables[0] if name in DETERMINISTIC else tables[2], name)[2] == spacing
    written = text[text.index(BEGIN) : text.index("What karras makes")]
    for name in DETERMINISTIC:
        last = row(written, name)[-1].split()[0]
        assert 0 < float(last) < float(row(written, "ddim")[0])
    assert (PAGE.with_suffix("") / "grid.jpg").stat().st_size < 400_000
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", text):
        with Image.open(PAGE.parent / picture) as image:
            assert image.width > 800
