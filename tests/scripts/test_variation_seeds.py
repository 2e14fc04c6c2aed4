"""`--variation-seed` and `--variation-strength` from the command line to the picture's record and back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from PIL import Image

from ldm.png import read_request

Run = Callable[..., int]
Capture = pytest.CaptureFixture[str]
DRAW = ("--prompt", "a red cube", "--steps", 2, "--sampler", "euler_ancestral", "--seed", 5)


def pixels(path: str) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


@pytest.mark.long
def test_variations_and_their_record(txt2img: Run, capsys: Capture) -> None:
    vary = (*DRAW, "--variation_seed", 70, "--variation-strength", 0.4)
    assert txt2img(*vary, "--n_samples", 2, "--skip-grid") == 0
    requests = [read_request(f"outputs/0000{i}-5.png") for i in (0, 1)]
    assert [request["batch"][request["index"]]["variation_seed"] for request in requests] == [70, 71]
    with Image.open("outputs/00001-5.png") as image:
        assert "Seed: 5, " in image.text["parameters"]
        assert "Variation seed: 71, Variation seed strength: 0.4, " in image.text["parameters"]
    assert txt2img(*DRAW, "--outdir", "plain") == 0
    assert txt2img(*DRAW[:-1], 70, "--outdir", "other") == 0
    assert txt2img(*vary[:-1], 0, "--outdir", "zero") == 0
    assert txt2img(*vary[:-1], 1, "--outdir", "one") == 0
    assert pixels("zero/00000-5.png") == pixels("plain/00000-5.png") != pixels("outputs/00000-5.png")
    assert pixels("one/00000-5.png") == pixels("other/00000-70.png") != pixels("outputs/00000-5.png")
    with Image.open("plain/00000-5.png") as image:
        assert "Variation" not in image.text["parameters"]
    capsys.readouterr()
    assert txt2img("--reproduce", "outputs/00001-5.png", "--outdir", "again") == 0
    assert "bit for bit" in capsys.readouterr().out


def test_a_random_variation_seed_is_said(txt2img: Run, capsys: Capture) -> None:
    assert txt2img(*DRAW, "--variation-seed", -1, "--variation-strength", 0.1) == 0
    drawn = read_request("outputs/00000-5.png")["batch"][0]["variation_seed"]
    assert f"variation seed: {drawn}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (("--variation-seed", 1), "--variation-seed and --variation-strength need each other; give both, or none"),
        (("--variation-strength", 0.5), "need each other"),
        (("--variation-seed", 1, "--variation-strength", 2), "2 is out of range; give 0 … 1"),
        (
            ("--variation-seed", 2**32 - 1, "--variation-strength", 0.5, "--n_samples", 2),
            "--variation-seed: 4294967295 and the 1 after it leave 0 … 4294967295; begin lower",
        ),
    ],
)
def test_mistakes(txt2img: Run, capsys: Capture, typed: tuple[object, ...], message: str) -> None:
    assert txt2img(*DRAW, *typed) == 2
    assert message in capsys.readouterr().err
