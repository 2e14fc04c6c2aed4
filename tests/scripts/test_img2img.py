from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.png import read_request

Run = Callable[..., int]
Capture = pytest.CaptureFixture[str]


def picture(name: str = "in.png", size: tuple[int, int] = (32, 32)) -> str:
    Image.fromarray(np.random.default_rng(2).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(name)
    return name


def pixels(path: str) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def test_a_picture_from_a_picture_and_again(img2img: Run, txt2img: Run, capsys: Capture) -> None:
    assert img2img("--prompt", "a", "--steps", 4, "--seed", 3) == 2
    assert "--init-img" in capsys.readouterr().err
    assert img2img("--prompt", "a", "--init_img", picture(), "--strength", 0.5, "--steps", 4, "--seed", 3) == 0
    with Image.open("outputs/00000-3.png") as image:
        assert ", Denoising strength: 0.5, Eta: 0, " in image.text["parameters"]
    assert img2img("--reproduce", "outputs/00000-3.png", "--outdir", "again") == 0
    assert "bit for bit" in capsys.readouterr().out
    assert txt2img("--reproduce", "outputs/00000-3.png", "--outdir", "again") == 0  # either script can
    assert pixels("again/00000-3.png") == pixels("again/00001-3.png") == pixels("outputs/00000-3.png")

    os.rename("in.png", "moved.png")
    assert img2img("--reproduce", "outputs/00000-3.png", "--init-img", "moved.png") == 0
    assert img2img("--reproduce", "outputs/00000-3.png") == 2
    assert "in.png: cannot be read" in capsys.readouterr().err
    picture("in.png", (32, 40))
    assert img2img("--reproduce", "outputs/00000-3.png") == 2
    assert "--init-img in.png: not what outputs/00000-3.png began from" in capsys.readouterr().err


def test_strengths_at_the_ends(img2img: Run, txt2img: Run) -> None:
    source = picture()
    assert img2img("--prompt", "a", "--init-img", source, "--strength", 0, "--outdir", "zero", "--n_samples", 2) == 0
    assert pixels("zero/00000-0.png") == pixels("zero/00001-1.png")
    assert img2img("--prompt", "a", "--init-img", source, "--strength", 1, "--outdir", "one", "--steps", 2) == 0
    assert txt2img("--prompt", "a", "--outdir", "text", "--steps", 2) == 0
    assert pixels("one/00000-0.png") == pixels("text/00000-0.png")


def test_odd_sizes_are_resized_and_said(img2img: Run, capsys: Capture) -> None:
    source = picture("odd.png", (45, 30))
    assert img2img("--prompt", "a", "--init-img", source, "--steps", 1) == 0
    assert "odd.png: resized from 45x30 to 48x32" in capsys.readouterr().out
    assert img2img("--prompt", "a", "--init-img", source, "--steps", 1, "--W", 16, "--H", 40) == 0
    assert read_request("outputs/00001-0.png")["settings"]["height"] == 40
    with Image.open("outputs/00001-0.png") as image:
        assert image.size == (16, 40)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--init-img", "none.png"), "--init-img none.png: there is no such file"),
        (("--init-img", "text.png"), "--init-img text.png: not a picture"),
        (("--init-img", "cut.png"), "cut.png: the picture is broken or cut off"),
        (("--init-img", "in.png", "--strength", "1.5"), "--strength: 1.5 is out of range; give 0 … 1"),
        (("--init-img", "in.png", "--strength", "nan"), "--strength: nan is out of range"),
    ],
)
def test_mistakes_get_one_sentence_and_status_2(
    img2img: Run, capsys: Capture, options: tuple[str, ...], words: str
) -> None:
    content = Path(picture()).read_bytes()
    Path("cut.png").write_bytes(content[: len(content) // 2])
    Path("text.png").write_text("not a picture")
    assert img2img("--prompt", "a", *options) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and words in err and err.count("\n") == 1, err
