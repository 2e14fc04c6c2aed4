"""How to draw: checked, with a model's defaults filled in, before anything is computed."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict, Unpack

from torch import Tensor

from ldm.guidance import CFG_PP_SCALE, Guidance
from ldm.models.diffusion import SAMPLERS
from ldm.models.diffusion.levels import of_sigmas, of_timesteps, spaced
from ldm.models.diffusion.schedule import NoiseSchedule
from ldm.models.diffusion.spacing import SPACINGS
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.models.text_encoder import ChunkedTextEncoder
from ldm.modules.deep_cache import DeepCache
from ldm.names import find_sampler, find_spacing

CHURNING = ("s_churn", "s_tmin", "s_tmax", "s_noise")  # settings of stochastic samplers, by k-diffusion's names
ALONE = ("dpm_adaptive",)  # samplers whose steps are those that the worst picture of a batch needs
MAX_STEPS = 1000


class Wishes(TypedDict, total=False):
    """What may be asked for. Not given, or None: the default of the model (size, guidance scale, sampler with its eta),
    of a sampler that is given (eta), of either (spacing), or what is written beside it."""

    height: int | None  # pixels
    width: int | None
    steps: int | None  # 30
    sampler: str | None  # names of other programs do too, also with a spacing: "DPM++ 2M Karras"
    spacing: str | None  # wins over that of the sampler's name
    sigma_min: float | None  # where the spacing ends and begins, and its shape; not all have these
    sigma_max: float | None
    rho: float | None
    sigmas: Sequence[float] | None  # the noise levels themselves, or
    timesteps: Sequence[float] | None  # the training timesteps, instead of spacing and steps; falling
    eta: float | None
    guidance_scale: float | Sequence[float] | None  # several: picture i has the i-th, and they begin again
    guidance: Guidance | None  # what else it is guided by: rescaling, an interval, PAG, …
    original_size: Sequence[int] | None  # (height, width) that SDXL is told the picture had: height and width
    crop: Sequence[int] | None  # (top, left) where it was cut out of that: (0, 0)
    s_churn: float | None  # of samplers that add noise (euler, heun, …), as in k-diffusion: 0
    s_tmin: float | None  # 0
    s_tmax: float | None  # infinity
    s_noise: float | None  # 1
    deep_cache: int | None  # the network's deep levels run in one call of this many: 1, every; more is approximate
    clip_skip: int | None  # which states of the text tower: 1 the family's own, 2 those one layer before, …


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
    deep_cache: int = 1  # one call of this many is whole (DeepCache)
    clip_skip: int = 1  # which states of the text tower: 1 is the family's own, 2 a layer before, …

    @property
    def method(self) -> str:
        """The sampler, in words."""
        return f"{self.sampler} at eta {self.eta:g}" if self.eta else self.sampler

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

    def at_once(self, count: int) -> int:
        """How many of so many pictures may be drawn together, so that each is the same in company as alone."""
        return 1 if self.sampler in ALONE else count

    def levels(self, schedule: NoiseSchedule) -> Tensor:
        """The noise levels that are visited, (sampled_steps + 1,): the last part of all, and a 0."""
        if self.spacing is None:
            assert self.sigmas is not None
            sigmas = of_sigmas(schedule, self.sigmas)
        else:
            shape = {"sigma_min": self.sigma_min, "sigma_max": self.sigma_max, "rho": self.rho}
            sigmas = spaced(schedule, self.steps, self.spacing, **shape)
        return sigmas[-self.sampled_steps - 1 :]


def resolve(model: LatentDiffusion, strength: float | None = None, **wishes: Unpack[Wishes]) -> Settings:
    """Checked settings; ValueError for what cannot be. strength: of the noise on a picture to begin from, if any."""
    if unknown := wishes.keys() - Wishes.__optional_keys__:
        raise TypeError(f"there is no setting {', '.join(sorted(unknown))}")
    own = _own_levels(model.schedule, wishes)
    sampler, spacing = chosen(wishes.get("sampler") or model.sampler, wishes.get("spacing"))
    guidance = _guidance(model, sampler, wishes)
    if strength is not None and not 0 <= strength <= 1:
        raise ValueError(f"strength is {strength}; it can be 0 (the picture as it is) … 1 (nothing left of it)")
    height, width = _size(model, wishes.get("height"), wishes.get("width"))
    settings = Settings(
        height=height,
        width=width,
        steps=_steps(model, wishes.get("steps") if own is None else len(own)),
        sampler=sampler,
        spacing=spacing if own is None else None,
        eta=_eta(sampler, wishes.get("eta"), own=None if wishes.get("sampler") else model.eta),
        guidance_scale=_scale(model, guidance, wishes.get("guidance_scale")),
        strength=strength,
        original_size=_pixels(model, "original_size", wishes.get("original_size"), 1),
        crop=_pixels(model, "crop", wishes.get("crop"), 0),
        s_churn=_churn(sampler, "s_churn", wishes.get("s_churn")),
        s_tmin=_churn(sampler, "s_tmin", wishes.get("s_tmin")),
        s_tmax=_churn(sampler, "s_tmax", wishes.get("s_tmax")),
        s_noise=_churn(sampler, "s_noise", wishes.get("s_noise")),
        sigma_min=wishes.get("sigma_min"),
        sigma_max=wishes.get("sigma_max"),
        rho=wishes.get("rho"),
        sigmas=own,
        guidance=guidance,
        deep_cache=_deep_cache(model, wishes.get("deep_cache")),
        clip_skip=_clip_skip(model, wishes.get("clip_skip")),
    )
    settings.levels(model.schedule)  # ValueError for what the spacing does not have, or cannot do
    return settings


def check_second(settings: Settings, second: LatentDiffusion, role: str) -> None:
    """ValueError where a refiner cannot draw as the settings say, which were resolved for the first model."""
    try:
        settings.guidance.check(second, settings.sampler)
        _clip_skip(second, settings.clip_skip)
        _deep_cache(second, settings.deep_cache)
    except ValueError as error:
        raise ValueError(f"the {role} cannot: {error}") from error


def _size(model: LatentDiffusion, height: int | None, width: int | None) -> tuple[int, int]:
    height, width = (model.image_size if side is None else side for side in (height, width))
    model.latent_shape(height, width)  # ValueError for a size that is not a multiple of the autoencoder's factor
    return height, width


def _steps(model: LatentDiffusion, steps: int | None) -> int:
    steps = 30 if steps is None else steps
    most = min(MAX_STEPS, model.schedule.num_timesteps)
    if not 1 <= steps <= most:
        raise ValueError(f"steps is {steps}; it can be 1 … {most}")
    return steps


def _eta(sampler: str, eta: float | None, own: float | None) -> float | None:
    """None is the model's own, or else the sampler's; only one without, which is never random, keeps it."""
    parameter = inspect.signature(SAMPLERS[sampler][0]).parameters.get("eta")
    if parameter is None:
        if eta is not None:
            raise ValueError(f"eta is {eta:g}, but sampler {sampler} has none; leave it out or take ddim")
        return None
    eta = next(value for value in (eta, own, parameter.default) if value is not None)
    if sampler == "tcd" and eta > 1:
        raise ValueError(f"eta is {eta:g}; of tcd it is the paper's gamma, 0 … 1")
    if not 0 <= eta < math.inf:
        raise ValueError(f"eta is {eta}; it can be 0 (nothing random in a step), 1 (the noise of the process) or more")
    return eta


def _guidance(model: LatentDiffusion, sampler: str, wishes: Wishes) -> Guidance:
    guidance = wishes.get("guidance")
    guidance = Guidance() if guidance is None else guidance
    guidance.check(model, sampler, churned=bool(wishes.get("s_churn")))
    return guidance


def _scale(model: LatentDiffusion, guidance: Guidance, scale: float | Sequence[float] | None) -> float:
    """The first of several."""
    if isinstance(scale, Sequence):
        scale = next(iter(scale), None)
    if scale is None:
        scale = CFG_PP_SCALE if guidance.cfg_pp else model.guidance_scale
    return guidance.check_scale(scale)


def _churn(sampler: str, name: str, value: float | None) -> float | None:
    if value is None:
        return None
    have = [other for other, (function, _) in SAMPLERS.items() if name in inspect.signature(function).parameters]
    if sampler not in have:
        raise ValueError(f"{name} is {value:g}, but sampler {sampler} has none; leave it out or take {', '.join(have)}")
    if name == "s_tmax" and value == math.inf:
        return None
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} is {value}; it can be 0 or any number above")
    return value


def chosen(sampler: str, spacing: str | None = None) -> tuple[str, str]:
    """Both by their names here; the spacing is the given one, else that of the sampler's name, else the sampler's.

    ValueError for an unknown name. What a plugin has put into `SAMPLERS` and `SPACINGS` is known by its own name.
    """
    name, named = (sampler, None) if sampler in SAMPLERS else find_sampler(sampler)
    given = spacing if spacing is None or spacing in SPACINGS else find_spacing(spacing)
    return name, next(one for one in (given, named, SAMPLERS[name][1]) if one is not None)


def _own_levels(schedule: NoiseSchedule, wishes: Wishes) -> tuple[float, ...] | None:
    """The sigmas of a list, which takes the place of a spacing, its shape and steps; None without one."""
    sigmas, timesteps = wishes.get("sigmas"), wishes.get("timesteps")
    if sigmas is not None and timesteps is not None:
        raise ValueError("sigmas and timesteps are both given; leave one of the lists out")
    if sigmas is not None:
        levels = of_sigmas(schedule, sigmas)
    elif timesteps is not None:
        levels = of_timesteps(schedule, timesteps)
    else:
        return None
    own = tuple(levels[:-1].tolist())
    for name in ("spacing", "sigma_min", "sigma_max", "rho", "steps"):
        value = wishes.get(name)
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


def _deep_cache(model: LatentDiffusion, every: int | None) -> int:
    if every in (None, 1):
        return 1
    if every < 1:
        raise ValueError(f"deep_cache is {every}; it can be 1, which changes nothing, or more, such as 2")
    DeepCache(model.unet, every)  # ValueError for a network that has no such levels
    return every


def _clip_skip(model: LatentDiffusion, clip_skip: int | None) -> int:
    if clip_skip in (None, 1):
        return 1
    encoder = model.text_encoder
    if not isinstance(encoder, ChunkedTextEncoder):
        raise ValueError(f"clip_skip is {clip_skip}, but this model's text encoder is not CLIP's; leave it out")
    encoder.check_skip(clip_skip)
    return clip_skip
