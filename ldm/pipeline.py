"""Ways to draw: each takes a model, a prompt and what else it draws from, and yields pictures as they are finished."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypedDict, Unpack, cast

from PIL import Image

from ldm import hints, images, masks
from ldm.generate import OnStep, Result, generate
from ldm.items import Item, make_items, with_scales
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.provenance import Tell
from ldm.refiner import Refiner, check_autoguide
from ldm.settings import Settings, Wishes, check_second, resolve
from ldm.sizes import canvas_size, picture_size

Picture = Image.Image | str | Path


class Options(Wishes, total=False):
    """What every way of drawing takes. The values are checked at once, with ValueError; drawing begins with the first
    `next`. Not given, or None: the default of the model (size, guidance scale, sampler with its eta) or of the
    sampler (spacing; eta too, of one that is given)."""

    negative_prompt: str | None  # None is "not given", which for SDXL is not the same as ""
    autoguide: LatentDiffusion | None  # a worse model, to lead away from
    seed: int  # 0; picture i of all has seed + i
    variation_seed: int | None  # at a strength above 0 all have `seed`, and picture i varies it by variation_seed + i
    variation_strength: float | None  # 0 is the picture of seed, 1 that of the variation seed
    num_images: int  # of each prompt: 1
    batch_size: int  # drawn together: 4
    on_step: OnStep | None  # called after each step
    refiner: Refiner | None  # a second model for the last of the noise levels
    notice: Tell | None  # hears, in a sentence, of what was done in another way than asked for; None: the log of `ldm`


def txt2img(model: LatentDiffusion, prompt: str | Sequence[str], **options: Unpack[Options]) -> Iterator[Result]:
    """Draws pictures of each prompt."""
    settings = _settings(model, options)
    return generate(model, _items(prompt, options), settings, **_loop(options))


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
    return generate(model, items, settings, hints.from_picture(model, image, settings), **_loop(options))


def inpaint(
    model: LatentDiffusion,
    prompt: str | Sequence[str],
    init_image: Picture,
    mask: Picture | None = None,
    *,
    strength: float = 1.0,
    mask_blur: int = 0,
    outpaint: masks.Sides = (0, 0, 0, 0),
    fit_mask: bool = False,
    **options: Unpack[Options],
) -> Iterator[Result]:
    """Paints what is white in `mask` anew, and keeps every other pixel bit for bit; with any model of pictures.

    mask: of the picture's size, or scaled to it with `fit_mask`; None paints what is transparent in `init_image`.
    mask_blur: pixels; the result blends into the picture over twice as many, from the mask's edge outward.
    outpaint: pixels to add on the left, top, right and bottom, and to paint.
    strength: as in `img2img`; 1 leaves nothing of what was inside.
    By default pictures have the size of `init_image`, any, with what is added; one of over four times the area that the
    model was trained at, or one for which height or width is given, is scaled and cropped first.
    """
    picture = masks.load_picture(init_image) if isinstance(init_image, str | Path) else init_image
    white = masks.load_mask(mask) if isinstance(mask, str | Path) else mask
    canvas = masks.canvas(picture, white, mask_blur=mask_blur, outpaint=outpaint, fit_mask=fit_mask)
    given = options.get("height"), options.get("width")
    options["height"], options["width"] = canvas_size(model, canvas.image.size, *given)
    settings = _settings(model, options, strength=strength)
    items = _items(prompt, options)
    return generate(model, items, settings, hints.from_mask(model, canvas, settings), **_loop(options))


def depth2img(
    model: LatentDiffusion,
    prompt: str | Sequence[str],
    depth: Picture | None = None,
    init_image: Picture | None = None,
    *,
    strength: float = 0.8,
    **options: Unpack[Options],
) -> Iterator[Result]:
    """Draws what has this depth, brighter being nearer, with a model made for it (Stable Diffusion 2 depth).

    depth: None is that of `init_image`, where the model's file holds the network that estimates it.
    From noise, or from `init_image` as `img2img` does; only then `strength` says anything. The map, of any size, covers
    the picture. The size drawn is that of `init_image`, or else of the map, as `picture_size` says.
    """
    map_ = images.load_as(depth, images.to_gray) if isinstance(depth, str | Path) else depth
    image = None if init_image is None else _picture(init_image)
    settings = _settings(model, options, map_ if image is None else image, None if image is None else strength)
    items = _items(prompt, options)
    return generate(model, items, settings, hints.from_depth(model, map_, settings, image), **_loop(options))


def upscale(
    model: LatentDiffusion,
    prompt: str | Sequence[str],
    image: Picture,
    *,
    noise_level: int = 20,
    tile: int | None = None,
    overlap: int | None = None,
    **options: Unpack[Options],
) -> Iterator[Result]:
    """A picture of any size, enlarged by an upscaler: by its factor, exactly (Rombach et al. 2022, section 4.4).

    noise_level: noise on the picture before the model sees it; more leaves more to be invented. tile, overlap: see
    `hints.to_enlarge`. height and width follow the picture and cannot be given.
    """
    if options.get("height") is not None or options.get("width") is not None:
        raise ValueError("an upscaler draws the picture's size times its factor; leave height and width out")
    picture = _picture(image)
    height, width = hints.enlarged_size(model, picture)
    options = {**options, "height": height, "width": width}
    settings, items = _settings(model, options), _items(prompt, options)
    shown = hints.to_enlarge(model, picture, noise_level, tile, overlap)
    return generate(model, items, settings, shown, **_loop(options))


def variations(
    model: LatentDiffusion,
    image: Picture,
    prompt: str | Sequence[str] = "",
    *,
    noise_level: int = 0,
    **options: Unpack[Options],
) -> Iterator[Result]:
    """Pictures that mean what a picture means, and what the prompt adds, by unCLIP (Ramesh et al. 2022,
    arXiv:2204.06125). noise_level: noise on its CLIP embedding; more lets them stray further."""
    settings, items = _settings(model, options), _items(prompt, options)
    shown = hints.to_vary(model, _picture(image), noise_level)
    return generate(model, items, settings, shown, **_loop(options))


def _picture(picture: Picture) -> Image.Image:
    return images.to_rgb(picture) if isinstance(picture, Image.Image) else images.load_image(picture)


def _settings(
    model: LatentDiffusion, options: Options, like: Image.Image | None = None, strength: float | None = None
) -> Settings:
    """Checked, with the other models there are; the size follows the picture `like`. TypeError for an option that is
    none."""
    for name in options.keys() - Options.__optional_keys__:
        near = difflib.get_close_matches(name, Options.__optional_keys__, 1)
        raise TypeError(f"there is no option {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    wishes = cast(Wishes, {name: value for name, value in options.items() if name in Wishes.__optional_keys__})
    if like is not None:
        given = options.get("height"), options.get("width")
        wishes["height"], wishes["width"] = picture_size(model, like.size, *given)
    settings = resolve(model, strength, **wishes)
    if (refiner := options.get("refiner")) is not None:
        refiner.check(model)
        check_second(settings, refiner.model, "refiner")
    if (autoguide := options.get("autoguide")) is not None:
        check_autoguide(model, autoguide)
    return settings


def _items(prompt: str | Sequence[str], options: Options) -> list[Item]:
    items = make_items(
        prompt,
        options.get("negative_prompt"),
        options.get("seed", 0),
        options.get("num_images", 1),
        options.get("variation_seed"),
        options.get("variation_strength"),
    )
    scales = options.get("guidance_scale")
    return with_scales(items, scales, options.get("guidance")) if isinstance(scales, Sequence) else items


class Loop(TypedDict):
    batch_size: int
    on_step: OnStep | None
    refiner: Refiner | None
    autoguide: LatentDiffusion | None
    notice: Tell | None


def _loop(options: Options) -> Loop:
    return {
        "batch_size": options.get("batch_size", 4),
        "on_step": options.get("on_step"),
        "refiner": options.get("refiner"),
        "autoguide": options.get("autoguide"),
        "notice": options.get("notice"),
    }
