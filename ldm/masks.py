"""Where to paint: a picture and its mask, the canvas they are drawn on, and how the old pixels come back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ldm import images

Sides = tuple[int, int, int, int]  # left, top, right, bottom
MAX_BLUR = 1000


def load_picture(path: str | Path) -> Image.Image:
    """As `images.load_image`, but RGBA where the file has transparency."""
    return images.load_as(path, _with_alpha)


def load_mask(path: str | Path) -> Image.Image:
    """As `images.load_image`, with transparency laid over black: it is not painted."""
    return images.load_image(path, background=(0, 0, 0))


def _with_alpha(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data or image.mode.startswith(("I", "F")):
        return images.to_rgb(image)
    return ImageOps.exif_transpose(image).convert("RGBA")


@dataclass(frozen=True)
class Canvas:
    """A picture and its mask, of one size. `paint` covers `paste`; what `paste` leaves at 0 keeps its pixels.

    Everything in the mask is painted anew; a blur blends outside of it, so that nothing old shines through inside: the
    mask grown by `blur` pixels, then averaged over as many on each side, is 1 in the mask and 0 from 2 * blur on.
    """

    image: Image.Image  # RGB
    mask: Image.Image  # mode L, 255 where the user wants something new, else 0
    blur: int = 0  # pixels: the blend is twice as wide
    size: tuple[int, int] | None = None  # (width, height) of the finished picture, where that is less: at the top left

    @property
    def paste(self) -> Image.Image:
        """Mode L: the share of the painted picture in the finished one."""
        if self.blur == 0:
            return self.mask
        grown = _window_sums(np.asarray(self.mask) // 255, self.blur) > 0
        share = _window_sums(grown, self.blur) / (2 * self.blur + 1) ** 2
        return Image.fromarray(np.rint(255 * share).astype(np.uint8))

    @property
    def paint(self) -> Image.Image:
        """Mode L, 255 where the networks paint, else 0."""
        return self.paste.point(lambda value: 255 if value else 0)

    def sized(self, width: int, height: int, multiple: int) -> Canvas:
        """To draw at width x height: padded where they are its own sides rounded up to the multiple, or else scaled.

        A padded one is cut back when it is finished, so that each old pixel is still itself.
        """
        w, h = self.image.size
        if (width, height) == (rounded_up(w, multiple), rounded_up(h, multiple)):
            sides = (0, 0, width - w, height - h)
            return Canvas(_mirrored(self.image, sides), _padded(self.mask, sides, 0), self.blur, (w, h))
        mask = ImageOps.fit(self.mask, (width, height), Image.Resampling.BOX)  # a pixel that any white touches is white
        if not mask.getbbox():
            raise ValueError(f"there is nothing to paint: the crop to {width}x{height} cuts all of the mask off")
        mask = mask.point(lambda value: 255 if value else 0)
        return Canvas(images.fit(self.image, width, height), mask, self.blur)

    def finish(self, drawn: Image.Image) -> Image.Image:
        """The drawn picture inside, the old one outside."""
        whole = Image.composite(drawn, self.image, self.paste)
        return whole if self.size is None else whole.crop((0, 0, *self.size))


def canvas(
    image: Image.Image,
    mask: Image.Image | None = None,
    *,
    mask_blur: int = 0,
    outpaint: Sides = (0, 0, 0, 0),
    fit_mask: bool = False,
) -> Canvas:
    """From what a user gives, of any mode. Painted is what is white (half or more) in the mask, or without a mask what
    is transparent in the picture, and what `outpaint` adds around, which begins as a mirror of the inside."""
    if len(outpaint) != 4 or min(outpaint) < 0:
        raise ValueError(f"outpaint is {tuple(outpaint)}; give four numbers of pixels: left, top, right, bottom")
    if not (isinstance(mask_blur, int) and 0 <= mask_blur <= MAX_BLUR):
        raise ValueError(f"mask_blur is {mask_blur}; give a whole number of pixels, 0 (a hard edge) … {MAX_BLUR}")
    image = _with_alpha(image)
    hard = _hard(image, mask, fit_mask)
    if hard is None and not any(outpaint):
        raise ValueError("nothing says where to paint: give a mask, a picture with transparent parts, or outpaint")
    picture = images.to_rgb(image)
    width, height = picture.width + outpaint[0] + outpaint[2], picture.height + outpaint[1] + outpaint[3]
    if width * height > images.MAX_PIXELS:
        raise ValueError(f"outpaint {tuple(outpaint)} makes {width}x{height} pixels; ask for less")
    hard = Image.new("L", picture.size, 0) if hard is None else hard
    hard = _padded(hard, outpaint, 255)
    if not hard.getbbox():
        where = "transparent in the picture" if mask is None else "white in the mask"
        raise ValueError(f"there is nothing to paint: nothing is {where}")
    return Canvas(_mirrored(picture, outpaint), hard, mask_blur)


def rounded_up(side: int, multiple: int) -> int:
    return -(-side // multiple) * multiple


def _hard(image: Image.Image, mask: Image.Image | None, fit_mask: bool) -> Image.Image | None:
    """Mode L, 255 where to paint and 0 elsewhere; None where neither the mask nor the picture says."""
    if mask is None:
        if image.mode != "RGBA":
            return None
        return image.getchannel("A").point(lambda value: 255 if value < 128 else 0)
    gray = images.to_rgb(mask, background=(0, 0, 0)).convert("L")
    if gray.size != image.size:
        if not fit_mask:
            of, wanted = (f"{width}x{height}" for width, height in (gray.size, image.size))
            raise ValueError(f"the mask is {of}, the picture {wanted}: give one of that size, or scale it (--fit-mask)")
        gray = gray.resize(image.size, Image.Resampling.BILINEAR)
    return gray.point(lambda value: 255 if value >= 128 else 0)


def _window_sums(values: np.ndarray, radius: int) -> np.ndarray:
    """(H, W): at each place the sum of the square of 2 * radius + 1 around it; the picture's edge goes on outside."""
    for _ in range(2):  # rows, then, turned, columns
        sums = np.pad(values, ((radius + 1, radius), (0, 0)), mode="edge").cumsum(axis=0, dtype=np.int32)
        values = (sums[2 * radius + 1 :] - sums[: -2 * radius - 1]).T
    return values


def _mirrored(image: Image.Image, sides: Sides) -> Image.Image:
    left, top, right, bottom = sides
    return Image.fromarray(np.pad(np.asarray(image), ((top, bottom), (left, right), (0, 0)), mode="symmetric"))


def _padded(mask: Image.Image, sides: Sides, value: int) -> Image.Image:
    left, top, right, bottom = sides
    out = Image.new("L", (left + mask.width + right, top + mask.height + bottom), value)
    out.paste(mask, (left, top))
    return out
