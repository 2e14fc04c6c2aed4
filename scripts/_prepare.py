"""For each command: from its options and the pictures they name, to settings and hints for the model."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

from _guidance import make_guidance
from _options import OPTION_NAMES
from _record import picture_files
from PIL import Image

from ldm import hints, images, masks
from ldm.hints import Hints, check_concat
from ldm.models.encoders import ClassEmbedder, NoText
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.settings import Settings, Wishes, resolve
from ldm.sizes import canvas_size, picture_size

Pictures = Mapping[str, Image.Image]  # by the option that names them


def prepare(options: argparse.Namespace, model: LatentDiffusion, pictures: Pictures) -> tuple[Settings, Hints]:
    settings, drawn_from = COMMANDS[options.command](options, model, pictures)
    check_concat(model, drawn_from)  # before a progress bar begins
    return settings, drawn_from


def settings_of(options: argparse.Namespace, model: LatentDiffusion) -> Settings:
    """As `prepare`'s, but for the size, where a picture tells it; the model may be on the meta device."""
    if options.command in WITHOUT_PICTURES:
        return prepare(options, model, {})[0]
    return _settings(options, model, strength=getattr(options, "strength", None))


def _txt2img(options: argparse.Namespace, model: LatentDiffusion, pictures: Pictures) -> tuple[Settings, Hints]:
    return _settings(options, model), Hints()


def _img2img(options: argparse.Namespace, model: LatentDiffusion, pictures: Pictures) -> tuple[Settings, Hints]:
    image = pictures["init_img"]
    settings = _settings(options, model, _size(options, model, image), options.strength)
    return settings, hints.from_picture(model, image, settings)


def _inpaint(options: argparse.Namespace, model: LatentDiffusion, pictures: Pictures) -> tuple[Settings, Hints]:
    canvas = _canvas(options, pictures)
    w, h = canvas.image.size
    height, width = canvas_size(model, (w, h), options.H, options.W)
    settings = _settings(options, model, (height, width), options.strength)
    drawn_from = hints.from_mask(model, canvas, settings)
    if (width, height) != (w, h):
        is_padded = canvas.sized(width, height, model.autoencoder.downsample_factor).size is not None
        how = f"padded to {width}x{height} while drawn, then cut back" if is_padded else f"resized to {width}x{height}"
        print(f"{options.init_img}: {w}x{h}, {how}")
    return settings, drawn_from


def _canvas(options: argparse.Namespace, pictures: Pictures) -> masks.Canvas:
    return masks.canvas(
        pictures["init_img"],
        pictures.get("mask"),
        mask_blur=options.mask_blur,
        outpaint=options.outpaint,
        fit_mask=options.fit_mask,
    )


def _depth2img(options: argparse.Namespace, model: LatentDiffusion, pictures: Pictures) -> tuple[Settings, Hints]:
    image, depth = pictures.get("init_img"), pictures.get("depth")
    size = _size(options, model, pictures["depth"] if image is None else image)
    settings = _settings(options, model, size, None if image is None else options.strength)
    return settings, hints.from_depth(model, depth, settings, image)


def _upscale(options: argparse.Namespace, model: LatentDiffusion, pictures: Pictures) -> tuple[Settings, Hints]:
    image = pictures["init_img"]
    settings = _settings(options, model, hints.enlarged_size(model, image))
    return settings, hints.to_enlarge(model, image, options.noise_level, options.tile)


def _variations(options: argparse.Namespace, model: LatentDiffusion, pictures: Pictures) -> tuple[Settings, Hints]:
    shown = hints.to_vary(model, pictures["init_img"], options.noise_level)
    return _settings(options, model), shown


def _sample(options: argparse.Namespace, model: LatentDiffusion, pictures: Pictures) -> tuple[Settings, Hints]:
    if not isinstance(model.text_encoder, (NoText, ClassEmbedder)):
        raise ValueError(f"--model {options.model}: this model draws from words; use txt2img.py with --prompt")
    prompts = getattr(options, "prompts", [])  # --reproduce has its own
    if isinstance(model.text_encoder, NoText) and any(prompts):
        raise ValueError(f"--classes {','.join(prompts)}: this model knows no classes; leave the option out")
    model.text_encoder.tokenize(prompts)  # ValueError for a class that it does not know, before anything is drawn
    return _settings(options, model), Hints()


COMMANDS = {
    "txt2img": _txt2img,
    "img2img": _img2img,
    "inpaint": _inpaint,
    "depth2img": _depth2img,
    "upscale": _upscale,
    "variations": _variations,
    "sample": _sample,
}

WITHOUT_PICTURES = ("txt2img", "sample")

READERS: dict[tuple[str, str], Callable[[str], Image.Image]] = {  # of pictures that are more, or less, than RGB
    ("inpaint", "init_img"): masks.load_picture,
    ("inpaint", "mask"): masks.load_mask,
    ("depth2img", "depth"): lambda file: images.load_as(file, images.to_gray),
}


def read_pictures(options: argparse.Namespace) -> Pictures:
    """All pictures that the options name; ValueError for one that cannot be read."""
    pictures = {
        name: READERS.get((options.command, name), images.load_image)(file)
        for name, file in picture_files(options).items()
    }
    if options.command == "inpaint":
        _canvas(options, pictures)  # what is wrong with them is said before a model is loaded
    return pictures


def _size(options: argparse.Namespace, model: LatentDiffusion, image: Image.Image) -> tuple[int, int]:
    """(height, width) to draw from the picture; announces one that is resized."""
    height, width = picture_size(model, image.size, options.H, options.W)
    if (width, height) != image.size:
        was = f"{image.width}x{image.height}"
        print(f"{options.init_img or options.depth}: resized from {was} to {width}x{height} (--W and --H choose)")
    return height, width


def _settings(
    options: argparse.Namespace,
    model: LatentDiffusion,
    size: tuple[int, int] | None = None,
    strength: float | None = None,
) -> Settings:
    """Every wish is an option; `size` (height, width), where a picture tells it, wins over --H and --W."""
    wishes = {name: getattr(options, OPTION_NAMES.get(name, name)) for name in Wishes.__optional_keys__ - {"guidance"}}
    if size is not None:
        wishes["height"], wishes["width"] = size
    return resolve(model, strength, guidance=make_guidance(options), **wishes)
