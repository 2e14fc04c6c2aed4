"""What to draw and how: checked, with a model's defaults filled in, before anything is computed."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ldm.guidance import CFG_PP_SCALE, Guidance
from ldm.models.diffusion import SAMPLERS
from ldm.models.diffusion.levels import of_sigmas, of_timesteps, spaced
from ldm.models.diffusion.schedule import NoiseSchedule
from ldm.models.diffusion.spacing import SPACINGS
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.models.text_encoder import ChunkedTextEncoder
from ldm.names import find_sampler, find_spacing
from ldm.noise import Seed, Variation

CHURNING = ("s_churn", "s_tmin", "s_tmax", "s_noise")  # settings of stochastic samplers, by k-diffusion's names
MAX_SEED = 2**32 - 1
MAX_STEPS = 1000


@dataclass(frozen=True)
class Item:
    """One picture to draw: what differs between the pictures of a batch."""

    prompt: str
    negative_prompt: str | None = None  # None: not given, which some models tell from ""
    seed: int = 0
    variation_seed: int | None = None
    variation_strength: float = 0.0  # how far its noise is turned from that of seed to that of variation_seed, 0 … 1
    guidance_scale: float | None = None  # None: that of the settings

    @property
    def noise_seed(self) -> Seed:
        """What all noise of the picture is drawn from."""
        if self.variation_seed is None or self.variation_strength == 0:
            return self.seed
        return Variation(self.seed, self.variation_seed, self.variation_strength)


@dataclass(frozen=True)
class Settings:
    """How to draw: what all pictures of a batch share. `resolve` fills in a model's defaults and checks the values."""

    height: int
    width: int
    steps: int
    sampler: str
    spacing: str | None  # None: there are `sigmas`
    eta: float | None  # None: this sampler has none
    guidance_scale: float
    strength: float | None = None  # None: from noise alone
    original_size: tuple[int, int] | None = None  # (height, width) that SDXL is told, in pixels; None: the size drawn
    crop: tuple[int, int] | None = None  # and where in it, (top, left), the picture was cut out; None: (0, 0)
    s_churn: float | None = None  # Karras et al. 2022, algorithm 2: how much noise is added on the way; None: none
    s_tmin: float | None = None  # at which sigmas; None: all
    s_tmax: float | None = None
    s_noise: float | None = None  # a factor of the noise that a sampler adds; None: 1
    sigma_min: float | None = None  # of the spacing, None: its own
    sigma_max: float | None = None
    rho: float | None = None
    sigmas: tuple[float, ...] | None = None  # noise levels of one's own, `steps` of them, without the final 0
    guidance: Guidance = Guidance()
    clip_skip: int = 1  # which states of the text tower: 1 is the family's own, 2 a layer before, …

    @property
    def sampler_options(self) -> dict[str, float]:
        """Keyword arguments for the sampler."""
        return {name: value for name in ("eta", *CHURNING) if (value := getattr(self, name)) is not None}

    @property
    def sampled_steps(self) -> int:
        """Steps really taken; from a picture the last floor(strength * steps + 1/2), at least 1 above 0."""
        if self.strength is None:
            return self.steps
        if self.strength == 0:
            return 0
        return max(1, math.floor(self.strength * self.steps + 0.5))

    def levels(self, schedule: NoiseSchedule) -> Tensor:
        """The noise levels that are visited, (sampled_steps + 1,): the last part of all, and a 0."""
        if self.spacing is None:
            assert self.sigmas is not None
            sigmas = of_sigmas(schedule, self.sigmas)
        else:
            shape = {"sigma_min": self.sigma_min, "sigma_max": self.sigma_max, "rho": self.rho}
            sigmas = spaced(schedule, self.steps, self.spacing, **shape)
        return sigmas[-self.sampled_steps - 1 :]


def make_items(
    prompt: str | Sequence[str],
    negative_prompt: str | None,
    seed: int,
    num_images: int = 1,
    variation_seed: int | None = None,
    variation_strength: float | None = None,
) -> list[Item]:
    """`num_images` items for each prompt, item i of all with seed + i.

    With a variation_strength above 0 all have `seed`, and item i has variation_seed + i: variations of one picture.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise ValueError("the list of prompts is empty; give at least one")
    if num_images < 1:
        raise ValueError(f"num_images is {num_images}; ask for at least 1")
    repeated = [text for text in prompts for _ in range(num_images)]
    negative = None if negative_prompt is None else clean(negative_prompt)
    seeds = make_seeds(len(repeated), seed, variation_seed, variation_strength)
    return [Item(clean(text), negative, *own) for text, own in zip(repeated, seeds, strict=True)]


def make_seeds(
    count: int, seed: int, variation_seed: int | None = None, variation_strength: float | None = None
) -> list[tuple[int, int | None, float]]:
    """(seed, variation_seed, variation_strength) of each of `count` items, checked."""
    strength = 0.0 if variation_strength is None else variation_strength
    if not 0 <= strength <= 1:
        raise ValueError(f"variation_strength is {strength}; it can be 0 (the picture of seed) … 1 (of variation_seed)")
    if variation_seed is not None and variation_strength is None:
        raise ValueError(f"variation_seed is {variation_seed}, and nothing says how far; give variation_strength too")
    if variation_seed is None and strength > 0:
        raise ValueError(f"variation_strength is {strength}, and nothing says where to; give variation_seed too")
    if variation_seed is None or strength == 0:
        return [(number, None, 0.0) for number in _numbers("seed", seed, count)]
    _numbers("seed", seed, 1)
    return [(seed, number, strength) for number in _numbers("variation_seed", variation_seed, count)]


def _numbers(name: str, first: int, count: int) -> range:
    if not 0 <= first <= first + count - 1 <= MAX_SEED:
        raise ValueError(f"{name} {first} with {count} images leaves 0 … {MAX_SEED}; choose one inside")
    return range(first, first + count)


def with_scales(items: Sequence[Item], scales: Sequence[float], guidance: Guidance | None = None) -> list[Item]:
    """Item i with guidance scale i of `scales`, which begin again where they end. ValueError for one left over."""
    if not 0 < len(scales) <= len(items):
        raise ValueError(f"{len(scales)} guidance scales for {len(items)} pictures; draw as many pictures, or more")
    checked = [(guidance or Guidance()).check_scale(scale) for scale in scales]
    return [replace(item, guidance_scale=checked[i % len(checked)]) for i, item in enumerate(items)]


def clean(text: str) -> str:
    """A prompt that can be encoded and stored: no NUL, lone surrogates replaced, ends stripped."""
    return text.replace("\0", " ").encode("utf-8", "replace").decode().strip()


def resolve(
    model: LatentDiffusion,
    height: int | None = None,
    width: int | None = None,
    steps: int | None = None,
    sampler: str = "ddim",
    spacing: str | None = None,
    eta: float | None = None,
    guidance_scale: float | None = None,
    strength: float | None = None,
    original_size: Sequence[int] | None = None,
    crop: Sequence[int] | None = None,
    s_churn: float | None = None,
    s_tmin: float | None = None,
    s_tmax: float | None = None,
    s_noise: float | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float | None = None,
    sigmas: Sequence[float] | None = None,
    timesteps: Sequence[float] | None = None,
    guidance: Guidance | None = None,
    clip_skip: int | None = None,
) -> Settings:
    """Checked settings with the model's and the sampler's defaults where None is given.

    sampler, spacing: by any name that `ldm.names` knows; a spacing wins over that of the sampler's name. sigmas or
    timesteps, a list of either, take the place of a spacing and of steps (else 30).
    """
    shape = {"sigma_min": sigma_min, "sigma_max": sigma_max, "rho": rho}
    own = _own_levels(model.schedule, sigmas, timesteps, {"spacing": spacing, **shape, "steps": steps})
    steps = len(own) if own is not None else steps
    steps = 30 if steps is None else steps
    sampler, spacing = _chosen(sampler, spacing)
    parameter = inspect.signature(SAMPLERS[sampler][0]).parameters.get("eta")  # without one it is never random
    if parameter is None and eta is not None:
        raise ValueError(f"eta is {eta:g}, but sampler {sampler} has none; leave it out or take ddim")
    if parameter is not None and eta is None:
        eta = parameter.default
    most = min(MAX_STEPS, model.schedule.num_timesteps)
    if not 1 <= steps <= most:
        raise ValueError(f"steps is {steps}; it can be 1 … {most}")
    if eta is not None and not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta}; it can be 0 (nothing random in a step) … 1")
    guidance = Guidance() if guidance is None else guidance
    guidance.check(model, sampler, churned=bool(s_churn))
    default_scale = CFG_PP_SCALE if guidance.cfg_pp else model.guidance_scale
    scale = guidance.check_scale(default_scale if guidance_scale is None else guidance_scale)
    if strength is not None and not 0 <= strength <= 1:
        raise ValueError(f"strength is {strength}; it can be 0 (the picture as it is) … 1 (nothing left of it)")
    height, width = (model.image_size if side is None else side for side in (height, width))
    model.latent_shape(height, width)  # ValueError for a size that is not a multiple of the autoencoder's factor
    original_size, crop = _pixels(model, "original_size", original_size, 1), _pixels(model, "crop", crop, 0)
    chosen = (height, width, steps, sampler, None if own else spacing, eta, scale, strength, original_size, crop)
    churn = (s_churn, s_tmin, s_tmax, s_noise)
    _check_churn(sampler, churn)
    settings = Settings(
        *chosen,
        *churn,
        sigma_min=sigma_min,
        sigma_max=sigma_max,
        rho=rho,
        sigmas=own,
        guidance=guidance,
        clip_skip=_clip_skip(model, clip_skip),
    )
    settings.levels(model.schedule)  # ValueError for what the spacing does not have, or cannot do
    return settings


def _check_churn(sampler: str, churn: Sequence[float | None]) -> None:
    for name, value in zip(CHURNING, churn, strict=True):
        if value is None:
            continue
        have = [other for other, (function, _) in SAMPLERS.items() if name in inspect.signature(function).parameters]
        if sampler not in have:
            raise ValueError(
                f"{name} is {value:g}, but sampler {sampler} has none; leave it out or take {', '.join(have)}"
            )
        if not math.isfinite(value) or value < 0:
            raise ValueError(f"{name} is {value}; it can be 0 or any number above")


def _chosen(sampler: str, spacing: str | None) -> tuple[str, str]:
    """Both by their names here; the spacing is the given one, else that of the sampler's name, else the sampler's."""
    name, named = (sampler, None) if sampler in SAMPLERS else find_sampler(sampler)
    if name not in SAMPLERS:
        raise ValueError(f"there is no sampler {sampler!r}; there are {', '.join(SAMPLERS)}")
    given = spacing if spacing is None or spacing in SPACINGS else find_spacing(spacing)
    return name, next(one for one in (given, named, SAMPLERS[name][1]) if one is not None)


def _own_levels(
    schedule: NoiseSchedule,
    sigmas: Sequence[float] | None,
    timesteps: Sequence[float] | None,
    beside: dict[str, str | float | None],
) -> tuple[float, ...] | None:
    """The sigmas of a list, which takes the place of what is `beside` it; None without one."""
    if sigmas is not None and timesteps is not None:
        raise ValueError("sigmas and timesteps are both given; leave one of the lists out")
    if sigmas is not None:
        levels = of_sigmas(schedule, sigmas)
    elif timesteps is not None:
        levels = of_timesteps(schedule, timesteps)
    else:
        return None
    own = tuple(levels[:-1].tolist())
    for name, value in beside.items():
        if value is not None and (name, value) != ("steps", len(own)):
            raise ValueError(
                f"{name} is {value}, but a list of {len(own)} noise levels is given; leave one of them out"
            )
    return own


def _pixels(model: LatentDiffusion, name: str, pair: Sequence[int] | None, least: int) -> tuple[int, int] | None:
    if pair is None:
        return None
    if model.framing_embedding is None:
        raise ValueError(f"{name} is {tuple(pair)}, but this model is not told of it (SDXL's are); leave it out")
    if len(pair) != 2 or not all(isinstance(side, int) and side >= least for side in pair):
        raise ValueError(f"{name} is {tuple(pair)}; give two whole numbers of pixels, {least} or more")
    return pair[0], pair[1]


def _clip_skip(model: LatentDiffusion, clip_skip: int | None) -> int:
    if clip_skip in (None, 1):
        return 1
    encoder = model.text_encoder
    if not isinstance(encoder, ChunkedTextEncoder):
        raise ValueError(f"clip_skip is {clip_skip}, but this model's text encoder is not CLIP's; leave it out")
    encoder.check_skip(clip_skip)
    return clip_skip


def nearest(side: float, multiple: int) -> int:
    """The nearest multiple above 0."""
    return max(1, math.floor(side / multiple + 0.5)) * multiple


def picture_size(
    model: LatentDiffusion, size: tuple[int, int], height: int | None = None, width: int | None = None
) -> tuple[int, int]:
    """(height, width) to draw from a picture of `size` (width, height).

    Given sides stay; one that is not given follows the picture's shape. With neither, it is the picture's own size to
    the nearest multiple of the autoencoder's factor, or, where that has over four times the area that the model was
    trained at, the trained area in the picture's shape.
    """
    w, h = size
    if height is not None and width is not None:
        return height, width
    factor = model.autoencoder.downsample_factor
    if height is not None:
        return height, nearest(w * height / h, factor)
    if width is not None:
        return nearest(h * width / w, factor), width
    ratio = min(1.0, model.image_size / math.sqrt(w * h)) if w * h > (2 * model.image_size) ** 2 else 1.0
    return nearest(h * ratio, factor), nearest(w * ratio, factor)


def canvas_size(
    model: LatentDiffusion, size: tuple[int, int], height: int | None = None, width: int | None = None
) -> tuple[int, int]:
    """As `picture_size`, but a picture that need not be scaled has its sides rounded up: it is padded and cut back."""
    factor = model.autoencoder.downsample_factor
    up = [-(-side // factor) * factor for side in size]
    if height is None and width is None and size[0] * size[1] <= (2 * model.image_size) ** 2:
        return up[1], up[0]
    return picture_size(model, size, height, width)
