"""What a picture is drawn from besides words, as the networks take it; one builder for each way of drawing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ldm import images
from ldm.masks import Canvas
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.request import Settings


@dataclass(frozen=True)
class Hints:
    """Shared by all pictures of a job, so each tensor is of one picture, (1, …), on the model's device."""

    z: Tensor | None = None  # (1, C, h, w), the latent to begin from, at the settings' strength
    mask: Tensor | None = None  # (1, 1, h, w), 1 where to paint; elsewhere z stays
    concat: Tensor | None = None  # (1, C', h, w), shown to the network beside the latent
    noisy: Tensor | None = None  # shown to the network under noise of `noise_level`, each picture's own
    noise_level: int = 0
    finish: Callable[[Image.Image], Image.Image] | None = None  # the last touch on a decoded picture


def from_picture(model: LatentDiffusion, image: Image.Image, settings: Settings) -> Hints:
    """To begin from a picture, fitted to the settings' size."""
    return Hints(z=encode(model, images.fit(image, settings.width, settings.height)))


@torch.inference_mode()
def encode(model: LatentDiffusion, image: Image.Image) -> Tensor:
    """A latent (1, C, h, w) in float32: the mean of its distribution, so always the same one."""
    return _encode(model, images.to_tensor(image))


def _encode(model: LatentDiffusion, pixels: Tensor) -> Tensor:
    """pixels (1, 3, H, W) in [-1, 1]."""
    posterior = model.encode(pixels)
    z = posterior if isinstance(posterior, Tensor) else posterior.mode()
    check_finite(z, "the autoencoder's encoder", z.dtype)
    return z.float()


class NonFiniteError(RuntimeError):
    """NaN or infinity where a picture should be; the message names the stage."""


def check_finite(x: Tensor, stage: str, dtype: torch.dtype) -> None:
    if not bool(torch.isfinite(x).all()):
        raise NonFiniteError(
            f"NaN or infinity in {stage}, in {str(dtype).removeprefix('torch.')}: "
            "no picture was made of it; try full precision, or a smaller guidance scale"
        )


@torch.inference_mode()
def from_mask(model: LatentDiffusion, canvas: Canvas, settings: Settings) -> Hints:
    """To paint a canvas where its mask says, at the settings' size; the other pixels are those of the canvas again.

    A model made for it is shown what to paint and the picture without it, as Rombach et al. 2022 (arXiv:2112.10752,
    section 4.5) trained theirs: the mask at the nearest pixel of each cell, and the latent of the picture with 0
    (middle gray) inside. Any other model is held to the old latent in all cells that no painted pixel touches.
    """
    factor = model.autoencoder.downsample_factor
    canvas = canvas.sized(settings.width, settings.height, factor)
    paint = torch.from_numpy(np.array(canvas.paint) > 0).float()[None, None]  # (1, 1, H, W)
    touched = F.max_pool2d(paint, factor)  # (1, 1, h, w)
    z = encode(model, canvas.image)
    if not model.concat_channels:
        return Hints(z, mask=touched.to(z), finish=canvas.finish)
    mask = F.interpolate(paint, size=z.shape[2:], mode="nearest")
    mask = mask if mask.any() else touched  # a dab that lies between those pixels
    known = _encode(model, images.to_tensor(canvas.image) * (1 - paint))
    return Hints(z, concat=torch.cat([mask.to(z), known], dim=1), finish=canvas.finish)


@torch.inference_mode()
def from_depth(
    model: LatentDiffusion, depth: Image.Image, settings: Settings, image: Image.Image | None = None
) -> Hints:
    """To draw what has this depth, from noise or from a picture: depth of any mode, brighter is nearer.

    The map covers the picture, whatever its own size, so it is cropped as the picture is. As Stable Diffusion 2 was
    trained (on the inverse depth of MiDaS) it is brought to the latent's size, bicubic, and its span to [-1, 1].
    """
    depth = images.to_gray(depth)
    size = depth.size if image is None else image.size
    values = torch.from_numpy(np.array(_cropped(depth, size, settings)))[None, None]  # (1, 1, H, W)
    _, h, w = model.latent_shape(settings.height, settings.width)
    values = F.interpolate(values, size=(h, w), mode="bicubic", align_corners=False)
    low, high = values.aminmax()
    if not low < high:
        raise ValueError(f"the depth map is {low:g} everywhere; give one in which near is brighter than far")
    concat = (2 * (values - low) / (high - low) - 1).to(model.device)
    return replace(Hints() if image is None else from_picture(model, image, settings), concat=concat)


def _cropped(depth: Image.Image, size: tuple[int, int], settings: Settings) -> Image.Image:
    """What of the map is left when a picture of this (width, height) is cropped as `images.fit` does."""
    scale = max(settings.width / size[0], settings.height / size[1])
    kept = (settings.width / (size[0] * scale), settings.height / (size[1] * scale))  # of each side, at most 1
    x, y = (round(side * (1 - part) / 2) for side, part in zip(depth.size, kept, strict=True))
    return depth.crop((x, y, max(x + 1, depth.width - x), max(y + 1, depth.height - y)))
