from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm import images

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (9, 14, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)


def saved(tmp_path: Path, image: Image.Image, name: str = "a.png", **options: object) -> Path:
    image.save(tmp_path / name, **options)
    return tmp_path / name


def test_pixels_survive_there_and_back() -> None:
    everything = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    x = images.to_tensor(everything)
    assert x.shape == (1, 3, 16, 16) and x.dtype == torch.float32 and x.min() == -1 and x.max() == 1
    assert images.to_images(x)[0].tobytes() == everything.tobytes()


def test_pixels_are_rounded_and_clamped() -> None:
    x = torch.tensor([-3.0, 3.0, 100.4 / 127.5 - 1, 100.6 / 127.5 - 1]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    assert np.asarray(images.to_images(x)[0])[..., 0].tolist() == [[0, 255], [100, 101]]


def test_plain_rgb_is_untouched(tmp_path: Path) -> None:
    assert np.array_equal(images.load_image(saved(tmp_path, PICTURE)), PIXELS)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "CMYK", "YCbCr", "HSV"])
def test_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    image = PICTURE.convert("RGB").convert("L").convert(mode) if mode == "LA" else PICTURE.convert(mode)
    name = "a.tif" if mode in ("CMYK", "YCbCr", "HSV") else "a.png"
    if mode == "HSV":  # no format stores it
        assert images.to_rgb(image).mode == "RGB"
        return
    loaded = images.load_image(saved(tmp_path, image, name))
    assert loaded.mode == "RGB" and loaded.size == PICTURE.size
    assert np.abs(np.asarray(loaded).astype(int) - np.asarray(image.convert("RGB")).astype(int)).max() <= 1


def test_16_bit_gray_is_divided_by_257_and_rounded(tmp_path: Path) -> None:
    values = np.array([[0, 128, 129, 257, 32767, 65407, 65535]], dtype=np.uint16)
    loaded = np.asarray(images.load_image(saved(tmp_path, Image.fromarray(values))))
    assert loaded[0, :, 0].tolist() == [0, 0, 1, 1, 127, 255, 255]


def test_transparency_lies_over_the_stated_background(tmp_path: Path) -> None:
    rgba = Image.new("RGBA", (3, 1), (200, 0, 0, 255))
    rgba.putpixel((1, 0), (200, 0, 0, 0))
    rgba.putpixel((2, 0), (0, 0, 0, 128))
    path = saved(tmp_path, rgba)
    assert np.asarray(images.load_image(path))[0].tolist() == [[200, 0, 0], [255, 255, 255], [127, 127, 127]]
    assert np.asarray(images.load_image(path, background=(0, 0, 0)))[0, 1].tolist() == [0, 0, 0]
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    loaded = np.asarray(images.load_image(saved(tmp_path, palette, "p.png", transparency=0)))
    assert loaded[0].tolist() == [[255, 255, 255], [40, 50, 60]]


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    loaded = images.load_image(saved(tmp_path, PICTURE, "a.png", exif=exif))
    assert np.array_equal(loaded, np.rot90(PIXELS, -1))


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    path = saved(tmp_path, frames[0], "a.gif", save_all=True, append_images=frames[1:])
    assert images.load_image(path).getpixel((0, 0)) == (255, 0, 0)


def test_unreadable_files_are_named_in_one_sentence(tmp_path: Path) -> None:
    whole = saved(
        tmp_path, Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), "whole.jpg"
    ).read_bytes()
    broken = {
        "cut.jpg": whole[: len(whole) // 2],
        "empty.png": b"",
        "page.png": b"<!DOCTYPE html><html></html>",
        "header.png": b"\x89PNG\r\n\x1a\n" + b"\0" * 40,
        "vector.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    }
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name) as caught:
            images.load_image(tmp_path / name)
        assert "\n" not in str(caught.value)
    for path, words in ((tmp_path / "none.png", "no such file"), (tmp_path, "cannot be read")):
        with pytest.raises(ValueError, match=words):
            images.load_image(path)
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match=r"float\.tif: 32-bit float"):
        images.load_image(tmp_path / "float.tif")


@pytest.mark.parametrize("side", [9000, 40000])
def test_a_bomb_is_refused_from_its_header(tmp_path: Path, side: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))
    (tmp_path / "bomb.png").write_bytes(content + chunk(b"IEND", b""))
    with pytest.raises(ValueError, match=r"bomb\.png.*more than the 67,108,864"):
        images.load_image(tmp_path / "bomb.png")


def test_fit_crops_evenly_and_does_not_distort() -> None:
    striped = Image.new("RGB", (40, 20), "red")
    striped.paste(Image.new("RGB", (20, 20), "blue"), (10, 0))
    assert np.asarray(images.fit(striped, 20, 20))[:, 1:-1, 2].min() > 250
    assert images.fit(striped, 40, 20) is striped


def test_grid_has_every_picture_in_its_place() -> None:
    tiles = [Image.new("RGB", (4, 6), (i, i, i)) for i in range(5)]
    sheet = images.grid(tiles, columns=2, gap=1)
    assert sheet.size == (2 * 5 + 1, 3 * 7 + 1)
    assert [sheet.getpixel((1 + i % 2 * 5, 1 + i // 2 * 7))[0] for i in range(5)] == [0, 1, 2, 3, 4]
    assert images.grid(tiles).size == (3 * 6 + 2, 2 * 8 + 2)
    with pytest.raises(ValueError, match="at least one"):
        images.grid([])


def test_captions_lie_under_the_picture() -> None:
    out = images.captioned(PICTURE.resize((128, 128)), "step 5/30")
    assert out.width == 128 and out.height > 128
    assert np.asarray(out)[128:].min() < 128
    assert images.captioned(PICTURE, "step 500/1000").width > 60
