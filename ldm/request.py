"""What to draw and how: checked, with a model's defaults filled in, before anything is computed."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ldm.models.diffusion import SAMPLERS
from ldm.models.diffusion.spacing import SPACINGS
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.models.text_encoder import ChunkedTextEncoder

MAX_SEED = 2**32 - 1
MAX_STEPS = 1000


@dataclass(frozen=True)
class Item:
    """One picture to draw: what differs between the pictures of a batch."""

    prompt: str
    negative_prompt: str | None = None  # None: not given, which some models tell from ""
    seed: int = 0


@dataclass(frozen=True)
class Settings:
    """How to draw: what all pictures of a batch share. `resolve` fills in a model's defaults and checks the values."""

    height: int
    width: int
    steps: int
    sampler: str
    spacing: str
    eta: float | None  # None: this sampler has none
    guidance_scale: float
    strength: float | None = None  # None: from noise alone
    original_size: tuple[int, int] | None = None  # (height, width) that SDXL is told, in pixels; None: the size drawn
    crop: tuple[int, int] | None = None  # and where in it, (top, left), the picture was cut out; None: (0, 0)
    clip_skip: int = 1  # which states of the text tower: 1 is the family's own, 2 a layer before, …

    @property
    def sampled_steps(self) -> int:
        """Steps really taken; from a picture the last floor(strength * steps + 1/2), at least 1 above 0."""
        if self.strength is None:
            return self.steps
        if self.strength == 0:
            return 0
        return max(1, math.floor(self.strength * self.steps + 0.5))


def make_items(prompt: str | Sequence[str], negative_prompt: str | None, seed: int, num_images: int = 1) -> list[Item]:
    """`num_images` items for each prompt, item i of all with seed + i."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise ValueError("the list of prompts is empty; give at least one")
    if num_images < 1:
        raise ValueError(f"num_images is {num_images}; ask for at least 1")
    last = seed + len(prompts) * num_images - 1
    if not 0 <= seed <= last <= MAX_SEED:
        raise ValueError(f"seed {seed} with {last - seed + 1} images leaves 0 … {MAX_SEED}; choose one inside")
    repeated = [text for text in prompts for _ in range(num_images)]
    negative = None if negative_prompt is None else clean(negative_prompt)
    return [Item(clean(text), negative, seed + i) for i, text in enumerate(repeated)]


def clean(text: str) -> str:
    """A prompt that can be encoded and stored: no NUL, lone surrogates replaced, ends stripped."""
    return text.replace("\0", " ").encode("utf-8", "replace").decode().strip()


def resolve(
    model: LatentDiffusion,
    height: int | None = None,
    width: int | None = None,
    steps: int = 30,
    sampler: str = "ddim",
    spacing: str | None = None,
    eta: float | None = None,
    guidance_scale: float | None = None,
    strength: float | None = None,
    original_size: Sequence[int] | None = None,
    crop: Sequence[int] | None = None,
    clip_skip: int | None = None,
) -> Settings:
    """Checked settings with the model's and the sampler's defaults where None is given."""
    if sampler not in SAMPLERS:
        raise ValueError(f"there is no sampler {sampler!r}; there are {', '.join(SAMPLERS)}")
    function, default_spacing = SAMPLERS[sampler]
    spacing = default_spacing if spacing is None else spacing
    if spacing not in SPACINGS:
        raise ValueError(f"there is no spacing {spacing!r}; there are {', '.join(SPACINGS)}")
    parameter = inspect.signature(function).parameters.get("eta")  # a sampler without one is never random
    if parameter is None and eta is not None:
        raise ValueError(f"eta is {eta:g}, but sampler {sampler} has none; leave it out or take ddim")
    if parameter is not None and eta is None:
        eta = parameter.default
    most = min(MAX_STEPS, model.schedule.num_timesteps)
    if not 1 <= steps <= most:
        raise ValueError(f"steps is {steps}; it can be 1 … {most}")
    if eta is not None and not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta}; it can be 0 (nothing random in a step) … 1")
    scale = model.guidance_scale if guidance_scale is None else guidance_scale
    if not math.isfinite(scale):
        raise ValueError(f"guidance_scale is {scale}; it must be a finite number, such as {model.guidance_scale:g}")
    if strength is not None and not 0 <= strength <= 1:
        raise ValueError(f"strength is {strength}; it can be 0 (the picture as it is) … 1 (nothing left of it)")
    height, width = (model.image_size if side is None else side for side in (height, width))
    model.latent_shape(height, width)  # ValueError for a size that is not a multiple of the autoencoder's factor
    original_size, crop = _pixels(model, "original_size", original_size, 1), _pixels(model, "crop", crop, 0)
    clip_skip = _clip_skip(model, clip_skip)
    return Settings(height, width, steps, sampler, spacing, eta, float(scale), strength, original_size, crop, clip_skip)


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
