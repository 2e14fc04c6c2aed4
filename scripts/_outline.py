"""What a job is drawn with, on the meta device: what is wrong with it is found before a weight is read."""

from __future__ import annotations

import argparse
from typing import NamedTuple

from _options import REFINE_AT
from _prepare import settings_of

from ldm.checkpoint.load import outline
from ldm.checkpoint.onnx_folder import outline_onnx
from ldm.config import load_plugin
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.refiner import Refiner, check_autoguide
from ldm.settings import Settings, check_second, chosen


class Outlines(NamedTuple):
    model: LatentDiffusion
    settings: Settings  # of the model's own size, where a picture tells it
    refiner: Refiner | None
    autoguide: LatentDiffusion | None


def outlines(options: argparse.Namespace) -> Outlines:
    """Runs the plugin. ValueError for models that do not go together, and for what they cannot be asked for."""
    if options.plugin is not None:
        load_plugin(options.plugin)
    if options.sampler is not None:
        chosen(options.sampler, options.spacing)
    model = _outline(options)
    check_latent_size(options, model)
    settings = settings_of(options, model)
    refiner, worse = (
        None if file is None else outline(file, variant=options.variant)
        for file in (options.refiner, options.autoguide)
    )
    if worse is not None:
        check_autoguide(model, worse)
    if refiner is None:
        return Outlines(model, settings, None, worse)
    finishing = Refiner(refiner, REFINE_AT if options.refine_at is None else options.refine_at)
    finishing.check(model)
    check_second(settings, refiner, "refiner")
    return Outlines(model, settings, finishing, worse)


def _outline(options: argparse.Namespace) -> LatentDiffusion:
    if options.backend != "torch":
        return outline_onnx(options.model)
    return outline(
        options.model,
        config=options.config,
        variant=options.variant,
        parameterization=options.parameterization,
        text_encoder=options.text_encoder,
    )


def check_latent_size(options: argparse.Namespace, model: LatentDiffusion) -> None:
    for option, asked, has in (
        ("C", options.C, model.autoencoder.latent_channels),
        ("f", options.f, model.autoencoder.downsample_factor),
    ):
        if asked is not None and asked != has:
            raise ValueError(f"--{option} {asked}: this model has {has}; leave the option out")
