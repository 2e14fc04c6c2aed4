"""From checked options to pictures on the disk: the device, the model, and the loop."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from _device import default_precision, find_device, make_ready
from _guidance import make_guidance
from _options import REFINE_AT
from _output import Bar, Interrupts, Output
from _prepare import prepare, read_pictures
from _record import DTYPES, check_weights, compare, source, take_over

from ldm.checkpoint.load import load
from ldm.config import load_plugin
from ldm.generate import Progress, generate
from ldm.items import Item, clean, make_seeds, with_scales
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.png import Folder
from ldm.refiner import Refiner, check_latents


def draw(options: argparse.Namespace) -> int:
    """Draw what `options` (from `_cli.parse`) ask for. Returns the exit status."""
    original = None if options.reproduce is None else take_over(options)
    folder = Folder(options.outdir)
    pictures = read_pictures(options)
    guidance = make_guidance(options)  # what is wrong with it is said before a model is loaded
    for scale in options.scale or ():
        guidance.check_scale(scale)
    device, precision = choose_device(options)

    if options.plugin is not None:
        load_plugin(options.plugin)
    dtype = DTYPES[precision]
    model = _load(options, device, dtype)
    refiner = _load_refiner(options, model, device, dtype)
    autoguide = _load_autoguide(options, model, device, dtype)
    _check_model(options, model)
    settings, hints = prepare(options, model, pictures)
    for one in (model, refiner and refiner.model, autoguide):
        if one is not None:
            make_ready(one, device, precision)
    made_by = source(options, model, device, precision)
    if original is not None:
        check_weights(options, original, made_by)

    items = make_items(options)
    _tell_what_is_cut(model, items)
    output = Output(options, folder, model, made_by, only=None if original is None else original["index"])
    with Interrupts() as interrupts, Bar(settings, items, options.n_samples) as bar, _autocast(device, precision):

        def on_step(progress: Progress) -> None:
            output.step(progress)
            bar.step(progress)

        drawn = generate(
            model,
            items,
            settings,
            hints,
            batch_size=options.n_samples,
            on_step=on_step,
            refiner=refiner,
            autoguide=autoguide,
        )
        for result in drawn:
            output.picture(result)
            bar.picture()
            if interrupts.asked and result.index == len(result.batch) - 1:
                break
    output.finish()
    if interrupts.asked:
        print(f"stopped after {bar.pictures} of {len(items)} pictures", file=sys.stderr)
        return 130
    return 0 if options.reproduce is None else compare(options.reproduce, output.paths[0])


def _load(options: argparse.Namespace, device: str, dtype: torch.dtype) -> LatentDiffusion:
    """The autoencoder stays in float32, whatever the networks' dtype: SDXL's overflows in float16."""
    return load(
        options.model,
        config=options.config,
        device=device,
        dtype=dtype,
        autoencoder_dtype=torch.float32,
        use_ema=options.ema,
        variant=options.variant,
        parameterization=options.parameterization,
        autoencoder=options.vae,
        text_encoder=options.text_encoder,
        note=print,
    )


def _load_refiner(
    options: argparse.Namespace, model: LatentDiffusion, device: str, dtype: torch.dtype
) -> Refiner | None:
    """Its autoencoder is never used: the first model's decodes."""
    if options.refiner is None:
        return None
    second = load(options.refiner, device=device, dtype=dtype, variant=options.variant, note=print)
    refiner = Refiner(second, REFINE_AT if options.refine_at is None else options.refine_at)
    refiner.check(model)
    return refiner


def _load_autoguide(
    options: argparse.Namespace, model: LatentDiffusion, device: str, dtype: torch.dtype
) -> LatentDiffusion | None:
    if options.autoguide is None:
        return None
    worse = load(options.autoguide, device=device, dtype=dtype, variant=options.variant, note=print)
    check_latents(model, worse, "autoguide")
    return worse


def _autocast(device: str, precision: str) -> AbstractContextManager[Any]:
    if precision != "autocast":
        return nullcontext()
    return torch.autocast(device, torch.bfloat16 if device == "cpu" else torch.float16)


def choose_device(options: argparse.Namespace) -> tuple[str, str]:
    """(device, precision), said aloud; ValueError if the one asked for is not there."""
    device = find_device(options.device)
    precision = options.precision or default_precision(device)
    name = f" ({torch.cuda.get_device_name()})" if device == "cuda" else ""
    by = ", chosen by auto" if options.device == "auto" else ""
    print(f"device: {device}{name}{by}; precision: {precision}")
    return device, precision


def _tell_what_is_cut(model: LatentDiffusion, items: Sequence[Item]) -> None:
    for text in dict.fromkeys(text for item in items for text in (item.prompt, item.negative_prompt)):
        if text is not None and (rest := model.text_encoder.unseen(text)):
            print(f"the prompt is longer than the model reads; not seen: {rest[:200]!r}", file=sys.stderr)


def _check_model(options: argparse.Namespace, model: LatentDiffusion) -> None:
    for option, asked, has in (
        ("C", options.C, model.autoencoder.latent_channels),
        ("f", options.f, model.autoencoder.downsample_factor),
    ):
        if asked is not None and asked != has:
            raise ValueError(f"--{option} {asked}: this model has {has}; leave the option out")


def make_items(options: argparse.Namespace) -> list[Item]:
    """Everything to draw, in order; picture i has seed i, with --fixed-code that of its place in the batch."""
    if options.reproduce is not None:
        return list(options.items)
    prompts = [prompt for _ in range(options.n_iter) for prompt in options.prompts for _ in range(options.repeat)]
    cycle = options.n_samples if options.fixed_code else len(prompts)
    negative = None if options.negative_prompt is None else clean(options.negative_prompt)
    seeds = make_seeds(min(cycle, len(prompts)), options.seed, options.variation_seed, options.variation_strength)
    items = [Item(clean(prompt), negative, *seeds[i % cycle]) for i, prompt in enumerate(prompts)]
    several = options.scale is not None and len(options.scale) > 1
    return with_scales(items, options.scale, make_guidance(options)) if several else items
