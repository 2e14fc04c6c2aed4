"""How large to draw, from a picture of any size."""

from __future__ import annotations

import math

from ldm.models.latent_diffusion import LatentDiffusion


def nearest(side: float, multiple: int) -> int:
    """The nearest multiple above 0."""
    return max(1, math.floor(side / multiple + 0.5)) * multiple


def picture_size(
    model: LatentDiffusion, size: tuple[int, int], height: int | None = None, width: int | None = None
) -> tuple[int, int]:
    """(height, width) to draw from a picture of `size` (width, height).

    Given sides stay; one that is not given follows the picture's shape. With neither, it is the picture's own size to
    the nearest multiple of the autoencoder's factor, or, where that has over four times the area that the model was
    trained at, the trained area in the picture's shape.
    """
    w, h = size
    if height is not None and width is not None:
        return height, width
    factor = model.autoencoder.downsample_factor
    if height is not None:
        return height, nearest(w * height / h, factor)
    if width is not None:
        return nearest(h * width / w, factor), width
    ratio = min(1.0, model.image_size / math.sqrt(w * h)) if w * h > (2 * model.image_size) ** 2 else 1.0
    return nearest(h * ratio, factor), nearest(w * ratio, factor)


def canvas_size(
    model: LatentDiffusion, size: tuple[int, int], height: int | None = None, width: int | None = None
) -> tuple[int, int]:
    """As `picture_size`, but a picture that need not be scaled has its sides rounded up: it is padded and cut back."""
    factor = model.autoencoder.downsample_factor
    up = [-(-side // factor) * factor for side in size]
    if height is None and width is None and size[0] * size[1] <= (2 * model.image_size) ** 2:
        return up[1], up[0]
    return picture_size(model, size, height, width)
