"""What a picture is drawn from besides words, as the networks take it; one builder for each way of drawing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from ldm import images
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.request import Settings


@dataclass(frozen=True)
class Hints:
    """Shared by all pictures of a job, so each tensor is of one picture, (1, …), on the model's device."""

    z: Tensor | None = None  # (1, C, h, w), the latent to begin from, at the settings' strength
    mask: Tensor | None = None  # (1, 1, h, w), 1 where to paint; elsewhere z stays
    concat: Tensor | None = None  # (1, C', h, w), shown to the network beside the latent
    noisy: Tensor | None = None  # shown to the network under noise of `noise_level`, each picture's own
    noise_level: int = 0
    finish: Callable[[Image.Image], Image.Image] | None = None  # the last touch on a decoded picture


def from_picture(model: LatentDiffusion, image: Image.Image, settings: Settings) -> Hints:
    """To begin from a picture, fitted to the settings' size."""
    return Hints(z=encode(model, images.fit(image, settings.width, settings.height)))


@torch.inference_mode()
def encode(model: LatentDiffusion, image: Image.Image) -> Tensor:
    """A latent (1, C, h, w) in float32: the mean of its distribution, so always the same one."""
    posterior = model.encode(images.to_tensor(image))
    z = posterior if isinstance(posterior, Tensor) else posterior.mode()
    check_finite(z, "the autoencoder's encoder", z.dtype)
    return z.float()


class NonFiniteError(RuntimeError):
    """NaN or infinity where a picture should be; the message names the stage."""


def check_finite(x: Tensor, stage: str, dtype: torch.dtype) -> None:
    if not bool(torch.isfinite(x).all()):
        raise NonFiniteError(
            f"NaN or infinity in {stage}, in {str(dtype).removeprefix('torch.')}: "
            "no picture was made of it; try full precision, or a smaller guidance scale"
        )
