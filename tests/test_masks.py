from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldm import masks

RNG = np.random.default_rng(4)
PICTURE = Image.fromarray(RNG.integers(0, 256, (29, 37, 3), dtype=np.uint8))
DRAWN = Image.fromarray(RNG.integers(0, 256, (32, 40, 3), dtype=np.uint8))


def spot(size: tuple[int, int] = (37, 29), box: tuple[int, int, int, int] = (9, 11, 20, 18)) -> Image.Image:
    mask = Image.new("L", size, 0)
    mask.paste(255, box)
    return mask


def test_what_is_painted_is_white_or_transparent(tmp_path: Path) -> None:
    gray = Image.fromarray(np.array([[0, 127, 128, 255]], np.uint8))
    small = PICTURE.crop((0, 0, 4, 1))
    assert np.asarray(masks.canvas(small, gray).mask).tolist() == [[0, 0, 255, 255]]
    assert np.asarray(masks.canvas(small, gray.convert("1")).mask).tolist() == [[0, 0, 255, 255]]
    assert np.asarray(masks.canvas(small, gray.convert("RGB").convert("P")).mask).tolist() == [[0, 0, 255, 255]]
    wide = Image.fromarray(np.array([[0, 32000, 33000, 65535]], np.uint16))
    wide.save(tmp_path / "wide.png")
    assert np.asarray(masks.canvas(small, masks.load_mask(tmp_path / "wide.png")).mask).tolist() == [[0, 0, 255, 255]]

    stroke = Image.new("RGBA", (4, 1), (255, 255, 255, 0))  # white, but nothing of it is there
    stroke.putpixel((2, 0), (255, 255, 255, 255))
    stroke.save(tmp_path / "stroke.png")
    for mask in (stroke, masks.load_mask(tmp_path / "stroke.png")):
        assert np.asarray(masks.canvas(small, mask).mask).tolist() == [[0, 0, 255, 0]]

    holed = small.copy()
    holed.putalpha(Image.fromarray(np.array([[255, 128, 127, 0]], np.uint8)))
    holed.save(tmp_path / "holed.png")
    for picture in (holed, masks.load_picture(tmp_path / "holed.png")):
        canvas = masks.canvas(picture)
        assert np.asarray(canvas.mask).tolist() == [[0, 0, 255, 255]]
        assert canvas.image.getpixel((0, 0)) == small.getpixel((0, 0))
        assert np.asarray(masks.canvas(picture, gray.rotate(180)).mask).tolist() == [[255, 255, 0, 0]]  # then it rules
    small.save(tmp_path / "small.png")
    assert masks.load_picture(tmp_path / "small.png").mode == "RGB"


@pytest.mark.parametrize("blur", [0, 1, 4, 20])
def test_old_pixels_are_bit_equal_where_nothing_is_pasted(blur: int) -> None:
    canvas = masks.canvas(PICTURE, spot(), mask_blur=blur).sized(40, 32, 8)
    out, old, drawn = np.asarray(canvas.finish(DRAWN)), np.asarray(PICTURE), np.asarray(DRAWN)[:29, :37]
    paste, mask = np.asarray(canvas.paste)[:29, :37], np.asarray(spot())
    assert out.shape == old.shape
    assert np.array_equal(out[paste == 0], old[paste == 0])
    assert np.array_equal(out[mask == 255], drawn[mask == 255])  # nothing old shines through
    assert np.array_equal(np.asarray(canvas.paint) > 0, np.asarray(canvas.paste) > 0)
    between = (paste > 0) & (mask == 0)
    assert between.any() == (blur > 0)
    row = paste[14, 19:].astype(int)  # falls from the edge on evenly, to 0 behind 2 * blur pixels
    ramp = 255 * np.clip(1 - np.arange(len(row)) / (2 * blur + 1), 0, 1)
    if blur < 5:  # more would meet the picture's edge
        assert np.abs(row - ramp).max() <= 0.5 and (row[2 * blur + 1 :] == 0).all()


def test_padded_only_where_rounding_up_is_all_that_is_asked() -> None:
    canvas = masks.canvas(PICTURE, spot())
    padded = canvas.sized(40, 32, 8)
    assert padded.image.crop((0, 0, 37, 29)).tobytes() == PICTURE.tobytes() and padded.size == (37, 29)
    assert np.array_equal(np.asarray(padded.image)[:, 37:], np.asarray(padded.image)[:, 36:33:-1])  # a mirror
    assert padded.mask.getbbox() == (9, 11, 20, 18)
    scaled = canvas.sized(80, 64, 8)
    assert scaled.size is None and scaled.image.size == (80, 64) and set(np.unique(scaled.mask)) == {0, 255}
    dot = masks.canvas(PICTURE, spot(box=(18, 14, 19, 15))).sized(16, 8, 8)
    assert dot.mask.getbbox() is not None  # a single white pixel is not lost in shrinking
    with pytest.raises(ValueError, match="nothing to paint: the crop to 8x32"):
        masks.canvas(PICTURE, spot(box=(0, 0, 3, 29))).sized(8, 32, 8)


def test_outpainting_adds_a_mirror_that_is_painted() -> None:
    canvas = masks.canvas(PICTURE, outpaint=(3, 0, 5, 2))
    assert canvas.image.size == (45, 31)
    assert canvas.image.crop((3, 0, 40, 29)).tobytes() == PICTURE.tobytes()
    white = np.asarray(canvas.mask) == 255
    assert not white[:29, 3:40].any() and white[29:].all() and white[:, :3].all() and white[:, 40:].all()
    old, new = np.asarray(PICTURE), np.asarray(canvas.image)
    assert np.array_equal(new[:29, 2::-1], old[:, :3]) and np.array_equal(new[29:, 3:40], old[:-3:-1])
    both = masks.canvas(PICTURE, spot(), outpaint=(0, 0, 8, 0))
    assert np.asarray(both.mask)[12, 10] == 255 and np.asarray(both.mask)[0, 40] == 255
    assert masks.canvas(PICTURE.crop((0, 0, 1, 1)), outpaint=(8, 8, 8, 8)).image.size == (17, 17)


def test_a_mask_of_another_size_is_scaled_only_when_asked() -> None:
    with pytest.raises(ValueError, match=r"the mask is 74x58, the picture 37x29: .*--fit-mask"):
        masks.canvas(PICTURE, spot((74, 58), (18, 22, 40, 36)))
    fitted = masks.canvas(PICTURE, spot((74, 58), (18, 22, 40, 36)), fit_mask=True)
    assert np.array_equal(np.asarray(fitted.mask), np.asarray(spot()))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "nothing says where to paint: give a mask"),
        ({"mask": Image.new("1", (37, 29))}, "nothing to paint: nothing is white in the mask"),
        ({"image": PICTURE.convert("RGBA")}, "nothing to paint: nothing is transparent in the picture"),
        ({"outpaint": (1, 2, 3)}, r"outpaint is \(1, 2, 3\); give four"),
        ({"outpaint": (0, -1, 0, 0)}, r"outpaint is \(0, -1, 0, 0\)"),
        ({"outpaint": (10**6, 0, 0, 10**6)}, "makes 1000037x1000029 pixels"),
        ({"mask": spot(), "mask_blur": float("nan")}, "mask_blur is nan"),
        ({"mask": spot(), "mask_blur": -1}, "mask_blur is -1"),
    ],
)
def test_mistakes(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        masks.canvas(**{"image": PICTURE, **options})


def test_all_white_is_fine() -> None:
    canvas = masks.canvas(PICTURE, Image.new("L", PICTURE.size, 255)).sized(40, 32, 8)
    assert canvas.finish(DRAWN).tobytes() == DRAWN.crop((0, 0, 37, 29)).tobytes()
