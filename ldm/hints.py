"""What a picture is drawn from besides words, as the networks take it; one builder for each way of drawing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ldm import images
from ldm.finite import NonFiniteError as NonFiniteError
from ldm.finite import check_finite
from ldm.masks import Canvas
from ldm.memory import latent_of
from ldm.models.diffusion.tiles import usual_overlap
from ldm.models.framing import check_level
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.provenance import telling
from ldm.settings import Settings


@dataclass(frozen=True)
class Hints:
    """Shared by all pictures of a job, so each tensor is of one picture, (1, …), on the model's device."""

    z: Tensor | None = None  # (1, C, h, w), the latent to begin from, at the settings' strength
    mask: Tensor | None = None  # (1, 1, h, w), 1 where to paint; elsewhere z stays
    concat: Tensor | None = None  # (1, C', h, w), shown to the network beside the latent
    noisy: Tensor | None = None  # shown to the network under noise of `noise_level`, each picture's own
    noise_level: int = 0
    tiles: tuple[int, int] | None = None  # (size, overlap) in latent pixels, where the picture is drawn in tiles
    finish: Callable[[Image.Image], Image.Image] | None = None  # the last touch on a decoded picture


def from_picture(model: LatentDiffusion, image: Image.Image, settings: Settings) -> Hints:
    """To begin from a picture, fitted to the settings' size."""
    return Hints(z=encode(model, images.fit(image, settings.width, settings.height)))


def upscale_factor(model: LatentDiffusion) -> int:
    """How many pixels an upscaler makes of one, along each side. ValueError for another model."""
    if model.low_resolution is None:
        raise ValueError("this model is no upscaler; take one that is, such as the SD x4 upscaler")
    return model.autoencoder.downsample_factor // model.low_resolution.fold


def enlarged_size(model: LatentDiffusion, image: Image.Image) -> tuple[int, int]:
    """(height, width) of what is drawn to enlarge a picture: its own, of four whole latent pixels or more, times the
    factor."""
    factor, step = upscale_factor(model), model.autoencoder.downsample_factor
    height, width = (max(4, math.ceil(side * factor / step)) * step for side in (image.height, image.width))
    if height * width > images.MAX_PIXELS:
        raise ValueError(f"{width}x{height} would be more than {images.MAX_PIXELS:,} pixels; give a smaller picture")
    return height, width


def to_enlarge(
    model: LatentDiffusion, image: Image.Image, noise_level: int, tile: int | None = None, overlap: int | None = None
) -> Hints:
    """For an upscaler: drawn in `enlarged_size`, `finish` cuts off what was not in the picture.

    tile, overlap: side of the tiles that a larger picture is drawn in, and what neighbours share, in pixels of the
    result. None is the size that the model was trained at, and a quarter of the tile; tile 0 draws it whole.
    """
    factor, (height, width) = upscale_factor(model), enlarged_size(model, image)
    assert model.low_resolution is not None
    check_level(noise_level, model.low_resolution.max_level)
    missing = ((0, height // factor - image.height), (0, width // factor - image.width), (0, 0))
    whole = Image.fromarray(np.pad(np.array(image), missing, mode="reflect"))
    cut = (0, 0, image.width * factor, image.height * factor)
    return Hints(
        noisy=images.to_tensor(whole).to(model.device),  # (1, 3, H, W)
        noise_level=noise_level,
        tiles=_tiles(model, model.image_size if tile is None else tile, overlap),
        finish=None if whole.size == image.size else lambda picture: picture.crop(cut),
    )


def _tiles(model: LatentDiffusion, tile: int, overlap: int | None) -> tuple[int, int] | None:
    """(size, overlap) in latent pixels, of both in pixels."""
    if tile == 0:
        return None
    step = model.autoencoder.downsample_factor
    overlap = usual_overlap(tile, step) if overlap is None else overlap
    if tile < 0 or tile % step or overlap % step or not 0 <= overlap < tile:
        raise ValueError(f"tile {tile} with overlap {overlap}: give multiples of {step}, and a tile above its overlap")
    return tile // step, overlap // step


@torch.inference_mode()
def to_vary(model: LatentDiffusion, image: Image.Image, noise_level: int) -> Hints:
    """For unCLIP: the picture's CLIP embedding, noised to `noise_level` as each variation is drawn."""
    if model.image_encoder is None or model.image_augmentation is None:
        if getattr(model.unet, "y_dim", None) is not None and model.framing_embedding is None:
            raise ValueError(
                "this model's file holds no image tower, which variations need; "
                "load the complete file or folder, which has it under embedder.model.visual or in image_encoder/"
            )
        raise ValueError("this model does not vary pictures; take one that does, such as SD 2.1 unCLIP")
    check_level(noise_level, model.image_augmentation.max_level)
    pixels = model.image_encoder.preprocess(image)  # (1, 3, S, S)
    embedding = model.image_encoder(pixels.to(next(model.image_encoder.parameters()))).float()  # (1, width)
    check_finite(embedding, "the image tower", embedding.dtype)
    return Hints(noisy=embedding, noise_level=noise_level)


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
def estimated_depth(model: LatentDiffusion, image: Image.Image) -> Image.Image:
    """A picture's inverse depth, brighter being nearer, in mode "F" and of about 384 pixels on a side.

    ValueError for a model whose file holds no network for it.
    """
    if model.depth_estimator is None:
        raise ValueError(
            "--depth: name a picture of the depth, brighter is nearer (depth=…); no network in this model's file "
            "estimates it, as the MiDaS in Stable Diffusion 2's complete depth file does"
        )
    pixels = model.depth_estimator.preprocess(image)  # (1, 3, H, W)
    depth = model.depth_estimator(pixels.to(next(model.depth_estimator.parameters()))).float()  # (1, H, W)
    check_finite(depth, "the depth estimator", depth.dtype)
    return Image.fromarray(depth[0].cpu().numpy())


@torch.inference_mode()
def from_depth(
    model: LatentDiffusion, depth: Image.Image | None, settings: Settings, image: Image.Image | None = None
) -> Hints:
    """To draw what has this depth, from noise or from a picture: depth of any mode, brighter is nearer.

    None is the picture's own, as the model's file estimates it. A map covers the picture, whatever its own size, so it
    is cropped as the picture is. As Stable Diffusion 2 was trained (on the inverse depth of MiDaS) it is brought to the
    latent's size, bicubic, and its span to [-1, 1].
    """
    if depth is None:
        if image is None:
            raise ValueError("there is neither a depth map nor a picture of which one could be made; give one of them")
        image = images.fit(image, settings.width, settings.height)
        depth = estimated_depth(model, image)
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


@torch.inference_mode()
def encode(model: LatentDiffusion, image: Image.Image) -> Tensor:
    """A latent (1, C, h, w) in float32: the mean of its distribution, so always the same one."""
    return _encode(model, images.to_tensor(image))


def _encode(model: LatentDiffusion, pixels: Tensor) -> Tensor:
    """pixels (1, 3, H, W) in [-1, 1]."""
    return latent_of(model, pixels, "the autoencoder's encoder", telling(None)).float()


def check_concat(model: LatentDiffusion, hints: Hints) -> None:
    """ValueError where the network is to be shown something else beside the latent than what it was trained with."""
    if getattr(model.unet, "y_dim", None) is not None and model.framing_embedding is None and hints.noisy is None:
        raise ValueError(
            "this model's network is told of a picture: vary one with scripts/variations.py (ldm.variations)"
        )
    takes, given = model.concat_channels, 0 if hints.concat is None else hints.concat.shape[1]
    if hints.noisy is not None and model.low_resolution is not None:  # an embedding under noise is no channel
        given += hints.noisy.shape[1] * model.low_resolution.fold**2
    if takes is None or takes == given:
        return
    ways = {
        0: "draw with scripts/txt2img.py or scripts/img2img.py (ldm.txt2img, ldm.img2img)",
        1: "it takes a depth map: draw with scripts/depth2img.py (ldm.depth2img)",
        model.autoencoder.latent_channels + 1: "it takes a mask: draw with scripts/inpaint.py (ldm.inpaint)",
    }
    way = ways.get(takes, "give them as Hints.concat")
    if model.low_resolution is not None:
        way = "it takes a small picture: enlarge with scripts/upscale.py"
    raise ValueError(f"this model's network takes {takes} channels beside the latent, and here are {given}; {way}")
