"""Ways to draw: each takes a model, a prompt and what else it draws from, and yields pictures as they are finished."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypedDict, Unpack

from PIL import Image

from ldm import hints, images
from ldm.generate import OnStep, Result, generate
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.refiner import Refiner
from ldm.request import Item, Settings, make_items, picture_size, resolve

Picture = Image.Image | str | Path


class Options(TypedDict, total=False):
    """What every way of drawing takes. The values are checked at once, with ValueError; drawing begins with the first
    `next`. Not given, or None: the default of the model (size, guidance scale) or of the sampler (spacing, eta)."""

    negative_prompt: str | None  # None is "not given", which for SDXL is not the same as ""
    height: int | None  # pixels
    width: int | None
    steps: int  # 30
    sampler: str  # ddim
    spacing: str | None
    eta: float | None
    guidance_scale: float | None
    seed: int  # 0; picture i of all has seed + i
    num_images: int  # of each prompt: 1
    batch_size: int  # drawn together: 4
    on_step: OnStep | None  # called after each step
    refiner: Refiner | None  # a second model for the last of the noise levels
    original_size: tuple[int, int] | None  # (height, width) that SDXL is told the picture had: height and width
    crop: tuple[int, int] | None  # (top, left) where it was cut out of that: (0, 0)


def txt2img(model: LatentDiffusion, prompt: str | Sequence[str], **options: Unpack[Options]) -> Iterator[Result]:
    """Draws pictures of each prompt."""
    settings = _settings(model, options)
    return generate(model, _items(prompt, options), settings, **_loop(model, options))


def img2img(
    model: LatentDiffusion,
    prompt: str | Sequence[str],
    init_image: Picture,
    *,
    strength: float = 0.75,
    **options: Unpack[Options],
) -> Iterator[Result]:
    """As `txt2img`, from a picture with noise on it: SDEdit, https://arxiv.org/abs/2108.01073.

    The last `Settings.sampled_steps` of the `steps` noise levels are visited, beginning with exactly the noise of the
    first of them. Strength 0 gives the autoencoder's round trip; 1 what txt2img would, nothing left of the picture.
    `init_image` is scaled and cropped to height x width; by default that is its own size, as `picture_size` says.
    """
    image = _picture(init_image)
    settings = _settings(model, options, image, strength)
    items = _items(prompt, options)
    return generate(model, items, settings, hints.from_picture(model, image, settings), **_loop(model, options))


def _picture(picture: Picture) -> Image.Image:
    return images.to_rgb(picture) if isinstance(picture, Image.Image) else images.load_image(picture)


def _settings(
    model: LatentDiffusion, options: Options, like: Image.Image | None = None, strength: float | None = None
) -> Settings:
    """Checked; the size follows the picture `like`, where there is one."""
    height, width = options.get("height"), options.get("width")
    if like is not None:
        height, width = picture_size(model, like.size, height, width)
    return resolve(
        model,
        height,
        width,
        options.get("steps", 30),
        options.get("sampler", "ddim"),
        options.get("spacing"),
        options.get("eta"),
        options.get("guidance_scale"),
        strength,
        options.get("original_size"),
        options.get("crop"),
    )


def _items(prompt: str | Sequence[str], options: Options) -> list[Item]:
    return make_items(prompt, options.get("negative_prompt"), options.get("seed", 0), options.get("num_images", 1))


class Loop(TypedDict):
    batch_size: int
    on_step: OnStep | None
    refiner: Refiner | None


def _loop(model: LatentDiffusion, options: Options) -> Loop:
    refiner = options.get("refiner")
    if refiner is not None:
        refiner.check(model)
    return {"batch_size": options.get("batch_size", 4), "on_step": options.get("on_step"), "refiner": refiner}
