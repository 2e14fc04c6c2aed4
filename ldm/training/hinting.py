"""What a denoiser is shown besides words while it learns, made from the pictures of each batch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, Protocol, cast

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from ldm import hints, images
from ldm.config import register
from ldm.generate import generate
from ldm.hints import Hints
from ldm.items import Item
from ldm.models.diffusion.denoiser import Conditioning
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.settings import resolve

Scaling = Literal["area", "bilinear", "bicubic"]


class Hint(Protocol):
    def __call__(
        self, model: LatentDiffusion, cond: Conditioning, pictures: Tensor, generator: torch.Generator
    ) -> Conditioning:
        """cond with what is shown of pictures (B, 3, H, W) in [-1, 1], on the model's device."""

    def example(self, model: LatentDiffusion, picture: Tensor, seed: int) -> tuple[Image.Image, Hints]:
        """For a look at the training: what is shown of one picture (1, 3, H, W), for people and for the model."""


@register("LowResolutionHint")
class LowResolutionHint:
    """An upscaler's: the picture made smaller by the model's factor, in a way that varies, under noise of any level."""

    def __call__(
        self, model: LatentDiffusion, cond: Conditioning, pictures: Tensor, generator: torch.Generator
    ) -> Conditioning:
        factor, scalings = hints.upscale_factor(model), ("area", "bilinear", "bicubic")
        assert model.low_resolution is not None
        scaling = cast(Scaling, scalings[int(torch.randint(3, (1,), generator=generator))])
        low = reduced(pictures, factor, scaling)
        levels = torch.randint(model.low_resolution.max_level + 1, (len(low),), generator=generator)
        noise = torch.randn(low.shape, generator=generator).to(low)
        return model.add_hint(cond, low, levels, noise)

    def example(self, model: LatentDiffusion, picture: Tensor, seed: int) -> tuple[Image.Image, Hints]:
        (low,) = images.to_images(reduced(picture, hints.upscale_factor(model), "area"))
        large = low.resize((picture.shape[3], picture.shape[2]), Image.Resampling.BICUBIC)
        return large, hints.to_enlarge(model, low, noise_level=0)


def reduced(pictures: Tensor, factor: int, scaling: Scaling) -> Tensor:
    """(B, 3, H, W) -> (B, 3, H / factor, W / factor), without aliasing."""
    size = (pictures.shape[2] // factor, pictures.shape[3] // factor)
    if scaling == "area":
        return F.interpolate(pictures, size, mode="area")
    return F.interpolate(pictures, size, mode=scaling, antialias=True).clamp(-1, 1)


@register("MaskHint")
class MaskHint:
    """Inpainting's (Rombach et al. 2022, section 4.5): a mask, 1 where to paint, and the latent of the picture that is
    grey there. Masks know nothing of what the picture holds: rectangles, brush strokes, now and then the whole."""

    def __call__(
        self, model: LatentDiffusion, cond: Conditioning, pictures: Tensor, generator: torch.Generator
    ) -> Conditioning:
        height, width = pictures.shape[2:]
        masks = torch.cat([draw_mask(height, width, seed) for seed in _seeds(len(pictures), generator)])
        return replace(cond, concat=masked_concat(model, pictures, masks.to(pictures)))

    def example(self, model: LatentDiffusion, picture: Tensor, seed: int) -> tuple[Image.Image, Hints]:
        mask = draw_mask(picture.shape[2], picture.shape[3], seed).to(picture)
        (shown,) = images.to_images(picture * (1 - mask))
        return shown, Hints(concat=masked_concat(model, picture, mask).float())


@torch.no_grad()
def masked_concat(model: LatentDiffusion, pictures: Tensor, masks: Tensor) -> Tensor:
    """pictures (B, 3, H, W), masks (B, 1, H, W) -> (B, 1 + C, h, w): the mask, and the latent of what is left."""
    posterior = model.encode(pictures * (1 - masks))
    z = posterior if isinstance(posterior, Tensor) else posterior.mode()  # (B, C, h, w)
    return torch.cat([F.interpolate(masks, z.shape[2:], mode="nearest").to(z), z], dim=1)


def draw_mask(height: int, width: int, seed: int) -> Tensor:
    """(1, 1, H, W) of 0 and 1: one to three rectangles, or one to three strokes of a brush, or (1 in 10) all of it."""
    rng, sheet = random.Random(seed), Image.new("L", (width, height))
    draw, kind = ImageDraw.Draw(sheet), rng.random()
    if kind < 0.1:
        sheet.paste(255, (0, 0, width, height))
    for _ in range(rng.randint(1, 3)):
        if kind < 0.55:
            w, h = (round(side * rng.uniform(0.15, 0.7)) for side in (width, height))
            left, top = rng.randint(0, width - w), rng.randint(0, height - h)
            draw.rectangle((left, top, left + w, top + h), fill=255)
        else:
            _stroke(draw, width, height, rng)
    mask = (images.to_tensor(sheet)[:, :1] > 0).float()  # (1, 1, H, W)
    return mask


def show_examples(model: LatentDiffusion, hint: Hint, pictures: Tensor, captions: Sequence[str]) -> Image.Image:
    """A sheet: above, what is shown of each of pictures (B, 3, H, W); below, what the model draws from that."""
    height, width = pictures.shape[2:]
    settings, above, below = resolve(model, height=height, width=width, steps=20), [], []
    for i, caption in enumerate(captions):
        shown, given = hint.example(model, pictures[i : i + 1], seed=i)
        (result,) = generate(model, [Item(caption, None, i)], settings, given)
        above.append(shown)
        below.append(result.image)
    return images.grid([*above, *below], columns=len(above))


def _stroke(draw: ImageDraw.ImageDraw, width: int, height: int, rng: random.Random) -> None:
    thickness = round(min(width, height) * rng.uniform(0.08, 0.3))
    points = [(rng.uniform(0, width), rng.uniform(0, height)) for _ in range(rng.randint(2, 5))]
    draw.line(points, fill=255, width=thickness, joint="curve")
    for x, y in points:
        draw.circle((x, y), thickness / 2, fill=255)


def _seeds(number: int, generator: torch.Generator) -> list[int]:
    seeds: list[int] = torch.randint(2**31, (number,), generator=generator).tolist()
    return seeds
