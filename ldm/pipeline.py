"""Where all parts meet: a prompt, or a prompt and a picture, to pictures.

`txt2img` and `img2img` yield each picture as it is finished; `generate` is the loop both share, and takes batches that
mix prompts. Progress bars, previews, files and devices belong to the caller.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ldm import images
from ldm.models.diffusion import SAMPLERS
from ldm.models.diffusion.guidance import guided
from ldm.models.diffusion.spacing import SPACINGS
from ldm.models.diffusion.step import Step
from ldm.models.framing import Framing
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.noise import StepNoise, starting_noise
from ldm.request import Item, Settings, make_items, picture_size, resolve


@dataclass(frozen=True)
class Progress:
    """What `on_step` hears after each step of a batch."""

    step: Step  # of the batch: `x` and `x0` are (B, C, h, w)
    steps: int  # how many this batch takes
    batch: tuple[Item, ...]
    done: int  # pictures finished before this batch
    total: int


@dataclass(frozen=True)
class Result:
    """A finished picture, and what it takes, besides the model and the init image, to make its every bit again."""

    image: Image.Image
    settings: Settings
    batch: tuple[Item, ...]  # drawn together: in other company the last bits of a float may differ
    index: int  # place in the batch

    @property
    def item(self) -> Item:
        return self.batch[self.index]

    @property
    def seed(self) -> int:
        return self.item.seed


class NonFiniteError(RuntimeError):
    """NaN or infinity where a picture should be; the message names the stage."""


OnStep = Callable[[Progress], object]


def txt2img(
    model: LatentDiffusion,
    prompt: str | Sequence[str],
    *,
    negative_prompt: str = "",
    height: int | None = None,
    width: int | None = None,
    steps: int = 30,
    sampler: str = "ddim",
    spacing: str | None = None,
    eta: float | None = None,
    guidance_scale: float | None = None,
    seed: int = 0,
    num_images: int = 1,
    batch_size: int = 4,
    on_step: OnStep | None = None,
) -> Iterator[Result]:
    """Draws `num_images` pictures of each prompt, picture i of all with seed + i.

    None stands for the default of the model (size, guidance scale) or of the sampler (spacing, eta). The values are
    checked at once, with ValueError; drawing begins with the first `next`.
    """
    items = make_items(prompt, negative_prompt, seed, num_images)
    settings = resolve(model, height, width, steps, sampler, spacing, eta, guidance_scale)
    return generate(model, items, settings, batch_size=batch_size, on_step=on_step)


def img2img(
    model: LatentDiffusion,
    prompt: str | Sequence[str],
    init_image: Image.Image | str | Path,
    *,
    strength: float = 0.75,
    negative_prompt: str = "",
    height: int | None = None,
    width: int | None = None,
    steps: int = 30,
    sampler: str = "ddim",
    spacing: str | None = None,
    eta: float | None = None,
    guidance_scale: float | None = None,
    seed: int = 0,
    num_images: int = 1,
    batch_size: int = 4,
    on_step: OnStep | None = None,
) -> Iterator[Result]:
    """As `txt2img`, from a picture with noise on it: SDEdit, https://arxiv.org/abs/2108.01073.

    The last `Settings.sampled_steps` of the `steps` noise levels are visited, beginning with exactly the noise of the
    first of them. Strength 0 gives the autoencoder's round trip; 1 what txt2img would, nothing left of the picture.
    `init_image` is scaled and cropped to height x width; by default that is its own size, as `picture_size` says.
    """
    image = images.to_rgb(init_image) if isinstance(init_image, Image.Image) else images.load_image(init_image)
    height, width = picture_size(model, image.size, height, width)
    items = make_items(prompt, negative_prompt, seed, num_images)
    settings = resolve(model, height, width, steps, sampler, spacing, eta, guidance_scale, strength)
    return generate(model, items, settings, init_image=image, batch_size=batch_size, on_step=on_step)


@torch.inference_mode()
def generate(
    model: LatentDiffusion,
    items: Sequence[Item],
    settings: Settings,
    *,
    init_image: Image.Image | None = None,
    batch_size: int = 4,
    on_step: OnStep | None = None,
) -> Iterator[Result]:
    """Draws `items`, `batch_size` at a time, each with its own prompts and seed. NonFiniteError, never a black one."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; draw at least 1 picture at a time")
    z = None if init_image is None else encode(model, init_image, settings)
    for done in range(0, len(items), batch_size):
        batch = tuple(items[done : done + batch_size])
        latents = None if z is None else z.expand(len(batch), -1, -1, -1)
        for step in sample(model, batch, settings, z):
            stage = f"the latent after step {step.i + 1} of {settings.sampled_steps} ({settings.sampler})"
            _check_finite(step.x, stage, model.dtype, batch)
            if on_step is not None:
                on_step(Progress(step, settings.sampled_steps, batch, done, len(items)))
            latents = step.x
        assert latents is not None
        for index in range(len(batch)):  # one by one: less memory, and the first is saved while the others wait
            pixels = model.decode(latents[index : index + 1])  # (1, 3, H, W)
            _check_finite(pixels, "the autoencoder's decoder", pixels.dtype, batch[index : index + 1])
            yield Result(images.to_images(pixels)[0], settings, batch, index)


def sample(
    model: LatentDiffusion, batch: Sequence[Item], settings: Settings, z: Tensor | None = None
) -> Iterator[Step]:
    """The steps of one batch: from noise, or at `settings.strength` from z (1, C, h, w).

    Noise alone begins as n * sqrt(sigma^2 + 1), not n * sigma: the network's first input is then n itself, of variance
    1 whichever sigma a spacing begins with, as x_T ~ N(0, 1) in DDPM (algorithm 2) and DDIM. A picture begins as
    z + sigma * n, as in training.
    """
    if settings.sampled_steps == 0:
        return
    sampler, _ = SAMPLERS[settings.sampler]
    sigmas = SPACINGS[settings.spacing](model.schedule, settings.steps)[-settings.sampled_steps - 1 :]
    seeds = [item.seed for item in batch]
    n = starting_noise(seeds, model.latent_shape(settings.height, settings.width)).to(model.device)  # (B, C, h, w)
    if z is None or settings.strength == 1:
        x = n * math.sqrt(float(sigmas[0]) ** 2 + 1)
    else:
        x = model.schedule.add_noise(z, n, sigmas[0])
    framing = Framing.whole(settings.height, settings.width)
    cond, uncond = model.condition([item.prompt for item in batch], framing), None
    if settings.guidance_scale != 1:
        uncond = model.condition([item.negative_prompt for item in batch], framing, negative=True)
    denoise = guided(model.denoiser, cond, uncond, settings.guidance_scale)
    options = {} if settings.eta is None else {"eta": settings.eta}
    yield from sampler(denoise, x, sigmas, noise=StepNoise(seeds), **options)


def encode(model: LatentDiffusion, image: Image.Image, settings: Settings) -> Tensor:
    """The picture, fitted to the settings' size, as a latent (1, C, h, w): the mean, so always the same one."""
    posterior = model.encode(images.to_tensor(images.fit(image, settings.width, settings.height)))
    z = posterior if isinstance(posterior, Tensor) else posterior.mode()
    _check_finite(z, "the autoencoder's encoder", z.dtype)
    return z.float()


def _check_finite(x: Tensor, stage: str, dtype: torch.dtype, batch: Sequence[Item] = ()) -> None:
    if bool(torch.isfinite(x).all()):
        return
    seeds = ", ".join(str(item.seed) for item in batch)
    raise NonFiniteError(
        f"NaN or infinity in {stage}{f' of seed {seeds}' if seeds else ''}, in {str(dtype).removeprefix('torch.')}: "
        "no picture was made of it; try full precision, or a smaller guidance scale"
    )
