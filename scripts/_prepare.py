"""For each command: from its options and the pictures they name, to settings and hints for the model."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from PIL import Image

from ldm import hints
from ldm.hints import Hints
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.models.text_encoder import ClassEmbedder, NoText
from ldm.request import Settings, picture_size, resolve

Pictures = Mapping[str, Image.Image]  # by the option that names them


def prepare(options: argparse.Namespace, model: LatentDiffusion, pictures: Pictures) -> tuple[Settings, Hints]:
    return COMMANDS[options.command](options, model, pictures)


def _txt2img(options: argparse.Namespace, model: LatentDiffusion, pictures: Pictures) -> tuple[Settings, Hints]:
    return _settings(options, model, options.H, options.W), Hints()


def _img2img(options: argparse.Namespace, model: LatentDiffusion, pictures: Pictures) -> tuple[Settings, Hints]:
    image = pictures["init_img"]
    settings = _settings(options, model, *_size(options, model, image), options.strength)
    return settings, hints.from_picture(model, image, settings)


def _sample(options: argparse.Namespace, model: LatentDiffusion, pictures: Pictures) -> tuple[Settings, Hints]:
    if not isinstance(model.text_encoder, (NoText, ClassEmbedder)):
        raise ValueError(f"--model {options.model}: this model draws from words; use txt2img.py with --prompt")
    prompts = getattr(options, "prompts", [])  # --reproduce has its own
    if isinstance(model.text_encoder, NoText) and any(prompts):
        raise ValueError(f"--classes {','.join(prompts)}: this model knows no classes; leave the option out")
    model.text_encoder.tokenize(prompts)  # ValueError for a class that it does not know, before anything is drawn
    return _settings(options, model, options.H, options.W), Hints()


COMMANDS = {"txt2img": _txt2img, "img2img": _img2img, "sample": _sample}


def _size(options: argparse.Namespace, model: LatentDiffusion, image: Image.Image) -> tuple[int, int]:
    """(height, width) to draw from the picture; announces one that is resized."""
    height, width = picture_size(model, image.size, options.H, options.W)
    if (width, height) != image.size:
        was = f"{image.width}x{image.height}"
        print(f"{options.init_img}: resized from {was} to {width}x{height} (--W and --H choose)")
    return height, width


def _settings(
    options: argparse.Namespace,
    model: LatentDiffusion,
    height: int | None,
    width: int | None,
    strength: float | None = None,
) -> Settings:
    return resolve(
        model,
        height=height,
        width=width,
        steps=options.steps,
        sampler=options.sampler,
        spacing=options.spacing,
        eta=options.eta,
        guidance_scale=options.scale,
        strength=strength,
        original_size=options.original_size,
        crop=options.crop,
    )
