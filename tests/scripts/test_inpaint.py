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
GIVEN = ("--prompt", "a", "--steps", 2)


@pytest.fixture(autouse=True)
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the empty folder: a picture of an odd size, and masks."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.random.default_rng(2).integers(0, 256, (29, 43, 3), dtype=np.uint8)).save("in.png")
    mask = Image.new("L", (43, 29), 0)
    mask.paste(255, (11, 5, 30, 19))
    mask.save("mask.png")
    mask.resize((86, 58)).save("large.png")
    Image.new("L", (43, 29), 0).save("black.png")
    Image.new("L", (43, 29), 255).save("white.png")
    Path("text.png").write_text("not a picture")


def array(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_pixels_outside_stay_and_the_picture_can_be_made_again(inpaint: Run, txt2img: Run, capsys: Capture) -> None:
    given = (*GIVEN, "--init_img", "in.png", "--mask", "mask.png", "--mask_blur", 1, "--seed", 3, "--n_samples", 2)
    assert inpaint(*given, "--skip_grid") == 0
    assert "in.png: 43x29, padded to 48x32 while drawn, then cut back\n" in capsys.readouterr().out
    old, new = array("in.png"), array("outputs/00001-4.png")
    assert new.shape == old.shape
    changed = (new != old).any(2)
    assert changed[5:19, 11:30].mean() > 0.9
    changed[3:21, 9:32] = False
    assert not changed.any()
    request = read_request("outputs/00001-4.png")
    assert request["own"] == {"strength": 1.0, "mask_blur": 1, "outpaint": [0, 0, 0, 0], "fit_mask": False}
    assert sorted(request["pictures"]) == ["init_img", "mask"] and request["settings"]["strength"] == 1

    for again in (inpaint, txt2img):  # either script can
        assert again("--model", request["model"]["name"], "--reproduce", "outputs/00001-4.png") == 0
        assert "bit for bit" in capsys.readouterr().out
    os.rename("mask.png", "moved.png")
    assert inpaint("--reproduce", "outputs/00001-4.png", "--mask", "moved.png") == 0
    assert inpaint("--reproduce", "outputs/00001-4.png", "--mask", "white.png") == 2
    assert "--mask white.png: not what outputs/00001-4.png began from" in capsys.readouterr().err


def test_outpainting(inpaint: Run, capsys: Capture) -> None:
    assert inpaint(*GIVEN, "--init-img", "in.png", "--outpaint", "5,0,16,3") == 0
    new = array("outputs/00000-0.png")
    assert new.shape == (32, 64, 3) and np.array_equal(new[:29, 5:48], array("in.png"))
    assert "padded" not in capsys.readouterr().out
    assert inpaint("--reproduce", "outputs/00000-0.png") == 0
    assert inpaint(*GIVEN, "--init-img", "in.png", "--outpaint", "5,0,16,3", "--mask", "mask.png") == 0
    both = array("outputs/00002-0.png")
    inside = np.zeros((29, 43), bool)
    inside[5:19, 11:30] = True
    assert np.array_equal(both[:29, 5:48][~inside], array("in.png")[~inside])
    assert not np.array_equal(both[:29, 5:48][inside], array("in.png")[inside])


def test_prompts_from_a_file_transparency_and_a_given_size(inpaint: Run, capsys: Capture) -> None:
    Path("p.txt").write_text("a\nb\n")
    image = Image.open("in.png").convert("RGBA")
    image.paste((9, 9, 9, 0), (11, 5, 30, 19))
    image.save("holed.png")
    assert inpaint("--from-file", "p.txt", "--steps", 1, "--init-img", "holed.png", "--skip-grid") == 0
    one, two, old = array("outputs/00000-0.png"), array("outputs/00001-1.png"), array("in.png")
    assert not np.array_equal(one, two) and np.array_equal(one[19:], old[19:]) and np.array_equal(two[:5], old[:5])
    assert inpaint(*GIVEN, "--init-img", "in.png", "--mask", "large.png", "--fit-mask", "--W", 64, "--H", 32) == 0
    assert "in.png: 43x29, resized to 64x32\n" in capsys.readouterr().out
    assert array("outputs/00002-0.png").shape == (32, 64, 3)
    assert inpaint("--reproduce", "outputs/00002-0.png") == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--mask", "mask.png"), "--init-img: name the picture"),
        (("--init-img", "in.png"), "nothing says where to paint: give a mask"),
        (("--init-img", "in.png", "--mask", "none.png"), "--mask none.png: there is no such file"),
        (("--init-img", "in.png", "--mask", "text.png"), "--mask text.png: not a picture"),
        (("--init-img", "in.png", "--mask", "large.png"), "the mask is 86x58, the picture 43x29: "),
        (("--init-img", "in.png", "--mask", "black.png"), "there is nothing to paint: nothing is white in the mask"),
        (("--init-img", "in.png", "--outpaint", "1,2,3"), "--outpaint: '1,2,3' is not four numbers"),
        (("--init-img", "in.png", "--outpaint", "1,2,3,-1"), "--outpaint: -1 is out of range; give 0 … 8192"),
        (("--init-img", "in.png", "--mask", "mask.png", "--mask-blur", "-1"), "--mask-blur: -1 is out of range"),
        (("--init-img", "in.png", "--depth", "mask.png"), "--depth: scripts/depth2img.py takes it"),
    ],
)
def test_mistakes_get_one_sentence_and_status_2(
    inpaint: Run, capsys: Capture, options: tuple[str, ...], words: str
) -> None:
    assert inpaint("--prompt", "a", *options) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and words in err and err.count("\n") == 1, err


def test_a_model_made_for_masks_is_sent_here(txt2img: Run, img2img: Run, tiny_painter: Path, capsys: Capture) -> None:
    for draw, own in ((txt2img, ()), (img2img, ("--init-img", "in.png"))):
        assert draw(*GIVEN, "--model", tiny_painter, *own) == 2
        err = capsys.readouterr().err
        assert "it takes a mask: draw with scripts/inpaint.py" in err and err.count("\n") == 1


def test_all_white_paints_everything(inpaint: Run) -> None:
    assert inpaint(*GIVEN, "--init-img", "in.png", "--mask", "white.png") == 0
    assert (array("outputs/00000-0.png") != array("in.png")).mean() > 0.9
