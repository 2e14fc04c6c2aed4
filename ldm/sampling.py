"""The steps of one batch: the noise they begin with, and what the sampler asks of the models at each level."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from ldm.cuda_graph import constants_of
from ldm.hints import Hints
from ldm.items import Item
from ldm.models.autoencoder import IdentityAutoencoder
from ldm.models.diffusion import SAMPLERS
from ldm.models.diffusion.denoiser import Conditioning
from ldm.models.diffusion.guidance import Away, ConditionalDenoise, edited, guided, masked, switched
from ldm.models.diffusion.step import Denoise, Step
from ldm.models.diffusion.tiles import tiled
from ldm.models.framing import Framing
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.modules.constants import Constants
from ldm.modules.deep_cache import DeepCache
from ldm.modules.edits import freeu, identity_attention
from ldm.noise import BrownianNoise, keyed_noise, starting_noise
from ldm.prompting import Read, Told, reader, tell
from ldm.provenance import Asked
from ldm.refiner import Refiner
from ldm.settings import Settings

Edit = Callable[[], AbstractContextManager[None]]
Readers = dict[LatentDiffusion, Read]
"""What each model of a job has read so far."""
NOTHING = Hints()


def sample(
    model: LatentDiffusion,
    batch: Sequence[Item],
    settings: Settings,
    hints: Hints = NOTHING,
    refiner: Refiner | None = None,
    autoguide: LatentDiffusion | None = None,
    readers: Readers | None = None,
    asked: Asked | None = None,
) -> Iterator[Step]:
    """The steps of one batch: from noise, or at `settings.strength` from `hints.z`. readers: of the whole job.
    asked: remembers what the denoiser is asked.

    Noise alone begins as n * sqrt(sigma^2 + 1), not n * sigma: the network's first input is then n itself, of variance
    1 whichever sigma a spacing begins with, as x_T ~ N(0, 1) in DDPM (algorithm 2) and DDIM. A picture begins as
    z + sigma * n, as in training.
    """
    if settings.sampled_steps == 0:
        return
    sampler, _ = SAMPLERS[settings.sampler]
    sigmas = settings.levels(model.schedule)
    seeds = [item.noise_seed for item in batch]
    n = starting_noise(seeds, model.latent_shape(settings.height, settings.width)).to(model.device)  # (B, C, h, w)
    if hints.z is None or settings.strength in (None, 1):
        x = n * math.sqrt(float(sigmas[0]) ** 2 + 1)
    else:
        x = model.schedule.add_noise(hints.z, n, sigmas[0])
    if hints.z is not None and hints.mask is not None:  # what is kept is kept from the start
        x = hints.mask * x + (1 - hints.mask) * model.schedule.add_noise(hints.z, n, sigmas[0])
    options: dict[str, Any] = dict(settings.sampler_options)
    if "schedule" in inspect.signature(sampler).parameters:  # it is defined on training timesteps
        options["schedule"] = model.schedule
    readers = {} if readers is None else readers
    denoise = led(model, batch, settings, hints, sigmas, refiner, autoguide, readers)
    if asked is not None:
        denoise = asked.remembering(denoise)
    yield from sampler(denoise, x, sigmas, noise=BrownianNoise(seeds), **options)


def led(
    model: LatentDiffusion,
    batch: Sequence[Item],
    settings: Settings,
    hints: Hints,
    sigmas: Tensor,
    refiner: Refiner | None,
    autoguide: LatentDiffusion | None,
    readers: Readers,
) -> Denoise:
    """What the sampler asks: all models that draw, and what is kept of a picture."""
    denoise = _denoise(model, batch, settings, hints, sigmas, readers, autoguide)
    if refiner is not None:  # which is shown nothing: no refiner takes a hint
        finish = _denoise(refiner.model, batch, settings, NOTHING, sigmas, readers)
        denoise = switched(denoise, finish, refiner.sigma_switch(model))
    if hints.mask is not None and hints.z is not None:
        denoise = masked(denoise, hints.z, hints.mask)
    return denoise


def _denoise(
    model: LatentDiffusion,
    batch: Sequence[Item],
    settings: Settings,
    hints: Hints,
    sigmas: Tensor,
    readers: Readers,
    worse: LatentDiffusion | None = None,
) -> Denoise:
    """A model's denoiser with all that it is told and led by."""
    guidance = settings.guidance
    scales = [settings.guidance_scale if item.guidance_scale is None else item.guidance_scale for item in batch]
    is_led = guidance.cfg_pp or any(scale != 1 for scale in scales)
    told = _told(model, batch, settings, hints, sigmas, readers, guided=is_led)
    if told.is_led_from_itself and not guidance.cfg_pp:  # which renoises along what it is led from
        told, scales = told._replace(uncond=None), [1.0] * len(batch)
    edits: list[Edit] = [] if guidance.freeu is None else [partial(freeu, model.unet, *guidance.freeu)]
    if settings.deep_cache > 1:
        edits.append(DeepCache(model.unet, settings.deep_cache))
    cond, network = told.cond, _network(model, hints, edits)
    denoiser = told.heard_by(network)
    perturbed = None if told.scripts is None else told.heard_by(network)  # asked apart: scripts reorder a batch's rows
    others = [Away(cond, guidance.pag, perturbed, partial(identity_attention, model.unet, guidance.pag_layers))]
    if worse is not None:
        lesser = _told(worse, batch, settings, hints, sigmas, readers)
        others.append(Away(lesser.cond, guidance.autoguide - 1, lesser.heard_by(_network(worse, hints))))
    led = guided(denoiser, cond, told.uncond, scales, others=others, keep_uncond=guidance.cfg_pp)
    unguided = guided(denoiser, cond, None, 1.0)
    limit = 1.0 if isinstance(model.autoencoder, IdentityAutoencoder) else None
    return guidance.corrected(led, unguided, sigmas, settings.eta or 0.0, limit)


def _network(model: LatentDiffusion, hints: Hints, edits: Sequence[Edit] = ()) -> ConditionalDenoise:
    """A model's network as it is asked: edited, and tile by tile. A CUDA graph has no calls of two kinds."""
    denoiser: ConditionalDenoise = model.denoiser
    is_replayable = not any(isinstance(edit, DeepCache) for edit in edits)
    for edit in (constants_of(model.unet) if is_replayable else Constants(model.unet), *edits):
        denoiser = edited(denoiser, edit)
    return denoiser if hints.tiles is None else tiled(denoiser, *hints.tiles)


def _told(
    model: LatentDiffusion,
    batch: Sequence[Item],
    settings: Settings,
    hints: Hints,
    sigmas: Tensor,
    readers: Readers,
    guided: bool = False,
) -> Told:
    """What a network is told of each picture, in words or by their absence, and with the hints it is shown."""
    size = (settings.height, settings.width)
    framing = Framing(*(settings.original_size or size), *size, *(settings.crop or (0, 0)))
    return tell(
        model,
        batch,
        sigmas,
        read=readers.setdefault(model, reader(model, framing, settings.clip_skip)),
        guided=guided,
        shown=lambda cond, items, negative: _shown(model, cond, items, hints, negative),
    )


def _shown(
    model: LatentDiffusion, cond: Conditioning, batch: Sequence[Item], hints: Hints, negative: bool = False
) -> Conditioning:
    """With the hints that go into the network itself, and as it takes them: in no step they need to be moved."""
    if hints.concat is not None:
        cond = replace(cond, concat=hints.concat.expand(len(batch), -1, -1, -1))
    if hints.noisy is not None:
        noise = keyed_noise([item.noise_seed for item in batch], hints.noisy.shape[1:], "noise on the hint")
        cond = model.add_hint(cond, hints.noisy, hints.noise_level, noise.to(hints.noisy), negative=negative)
    return cond.to(model.device, model.dtype)
