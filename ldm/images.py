"""Pictures in memory: any file to RGB, RGB to tensors in [-1, 1] and back, sheets of pictures.

torch is imported only where a tensor is made, so a script can look at a picture before it pays for torch.
"""

from __future__ import annotations

import math
import mmap
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ldm.files import regular_size

if TYPE_CHECKING:
    import torch

BACKGROUND = (255, 255, 255)  # what shows through transparent parts
MAX_PIXELS = 8192 * 8192
# Formats that are pixels and nothing else: no EPS or PDF, which would start an interpreter.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA", "JPEG2000", "AVIF", "QOI")
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)


def load_image(path: str | Path, *, background: tuple[int, int, int] = BACKGROUND) -> Image.Image:
    """The picture in a file as 8-bit RGB, upright.

    EXIF rotation is applied, transparency laid over `background`, 16-bit gray divided by 257 and rounded, and of an
    animation the first frame taken. Raises ValueError, one sentence that names the file, for anything else than a whole
    picture of at most MAX_PIXELS pixels; the size is read from the header, before anything is decoded.
    """
    return load_as(path, lambda image: to_rgb(image, background))


class Refused(ValueError):
    """A whole picture of a kind that cannot be meant."""


def load_as(path: str | Path, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """What `convert` makes of the decoded picture in a file; it gives a copy. Raises as `load_image`."""
    with open_image(path) as image:
        if image.width * image.height > MAX_PIXELS:
            size = f"{image.width}x{image.height}"
            raise ValueError(f"{path}: {size} pixels are more than the {MAX_PIXELS:,} that are read; scale it down")
        try:
            image.load()
            check_whole(image, path)
            return convert(image)
        except Refused as error:
            raise ValueError(f"{path}: {error}") from error
        except _UNREADABLE as error:
            raise ValueError(f"{path}: the picture is broken or cut off ({error}); save or copy it again") from error


def check_whole(image: Image.Image, path: str | Path) -> None:
    """ValueError for a PNG without its end, which Pillow does not miss: pixels or texts may be gone with it."""
    if image.format == "PNG":
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data.find(b"IEND\xaeB`\x82") < 0:
                raise ValueError("its end is missing")


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) as stored, from the header alone. Raises as `load_image`."""
    with open_image(path) as image:
        return image.size


def open_image(path: str | Path) -> Image.Image:
    """The file's header as a Pillow picture, not yet decoded. ValueError names the file where it is none of FORMATS."""
    Image.init()
    try:
        regular_size(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's warning about large pictures: our limit is lower
            return Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN])
    except FileNotFoundError as error:
        raise ValueError(f"{path}: there is no such file; give the path of a picture") from error
    except (IsADirectoryError, PermissionError) as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); give the path of a picture") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: more than the {MAX_PIXELS:,} pixels that are read; scale it down") from error
    except _UNREADABLE as error:
        raise ValueError(f"{path}: not a picture that can be read here; save it as PNG or JPEG") from error


def to_rgb(image: Image.Image, background: tuple[int, int, int] = BACKGROUND) -> Image.Image:
    """Any Pillow mode but float to 8-bit RGB, upright, transparency laid over `background`."""
    if image.mode == "F":
        raise Refused("32-bit float has no agreed white; save it with 8 or 16 bits a channel")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit gray; Pillow also calls it "I", 32 bits wide
        gray = np.asarray(image).astype(np.float64) / 257  # 65535 / 257 = 255
        return Image.fromarray(np.rint(gray).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (*background, 255)), rgba).convert("RGB")
    return image.convert("RGB")


def to_gray(image: Image.Image) -> Image.Image:
    """Any Pillow mode to mode "F", float32, upright, in the file's own units: nothing of 16 bits is lost."""
    image = ImageOps.exif_transpose(image)
    if not image.mode.startswith(("I", "F")):
        return image.convert("L").convert("F")
    gray = np.array(image).astype(np.float32)
    if not np.isfinite(gray).all():
        raise Refused("NaN or infinity is in it; save it with finite numbers only")
    return Image.fromarray(gray)


def to_tensor(image: Image.Image) -> torch.Tensor:
    """RGB picture to (1, 3, H, W) float32 in [-1, 1]."""
    import torch

    pixels = torch.from_numpy(np.array(image.convert("RGB")))  # (H, W, 3) uint8
    return (pixels.permute(2, 0, 1).float() / 127.5 - 1).unsqueeze(0)


def to_images(x: torch.Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in [-1, 1] to RGB pictures: clamped and *rounded*, so that a picture survives there and back."""
    pixels = x.detach().float().add(1).mul(127.5).clamp(0, 255).round().byte()
    return [Image.fromarray(array) for array in pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()]


def fit(image: Image.Image, width: int, height: int) -> Image.Image:
    """Scaled to cover width x height without distortion, what sticks out cut off evenly on both sides."""
    if image.size == (width, height):
        return image
    return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)


def grid(images: Sequence[Image.Image], columns: int | None = None, *, gap: int = 2) -> Image.Image:
    """Pictures side by side, row by row, each cell as large as the largest; `columns` None makes it about square."""
    if not images:
        raise ValueError("a grid needs at least one picture")
    columns = math.ceil(math.sqrt(len(images))) if columns is None else min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    cell_w, cell_h = max(image.width for image in images), max(image.height for image in images)
    sheet = Image.new("RGB", (columns * (cell_w + gap) + gap, rows * (cell_h + gap) + gap), BACKGROUND)
    for i, image in enumerate(images):
        sheet.paste(image, (gap + i % columns * (cell_w + gap), gap + i // columns * (cell_h + gap)))
    return sheet


def captioned(image: Image.Image, text: str) -> Image.Image:
    """The picture with one line of text under it, on a wider sheet if the text needs it."""
    font = ImageFont.load_default(size=max(10, min(24, image.width // 11)))
    strip, width = math.ceil(font.getbbox("Ag")[3] * 1.3), max(image.width, math.ceil(font.getlength(text)) + 4)
    out = Image.new("RGB", (width, image.height + strip), BACKGROUND)
    out.paste(image, ((width - image.width) // 2, 0))
    ImageDraw.Draw(out).text((2, image.height), text, font=font, fill=(40, 40, 40))
    return out
