"""What some networks are told besides a prompt: a picture's sizes and crop, or a noisy hint and how noisy it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.config import register
from ldm.models.diffusion.schedule import NoiseSchedule, per_image
from ldm.modules.blocks import timestep_embedding

AESTHETIC, NEGATIVE_AESTHETIC = 6.0, 2.5  # scores of 0 to 10 that SDXL's refiner is led to, and away from

Number = Literal[
    "original_height", "original_width", "crop_top", "crop_left", "target_height", "target_width", "aesthetic_score"
]


@dataclass(frozen=True)
class Framing:
    """Where a picture comes from, in pixels: cut at (crop_top, crop_left) out of one of the original size."""

    original_height: int
    original_width: int
    target_height: int
    target_width: int
    crop_top: int = 0
    crop_left: int = 0
    aesthetic_score: float = AESTHETIC

    @staticmethod
    def whole(height: int, width: int) -> Framing:
        """Of a picture that was not cut."""
        return Framing(height, width, height, width)


@register("FramingEmbedding")
class FramingEmbedding:
    """SDXL's `y`: pooled text, then `dim` sinusoids of each of `numbers` (Podell et al. 2023, arXiv:2307.01952)."""

    def __init__(self, numbers: Sequence[Number], dim: int = 256) -> None:
        self.numbers, self.dim = tuple(numbers), dim

    def __call__(self, pooled: Tensor, framing: Framing) -> Tensor:
        """pooled (B, width) -> (B, width + dim * len(numbers)), like pooled."""
        values = torch.tensor([float(getattr(framing, name)) for name in self.numbers], device=pooled.device)
        waves = timestep_embedding(values, self.dim).flatten()  # (numbers * dim,)
        return torch.cat([pooled, waves.to(pooled.dtype).expand(len(pooled), -1)], dim=1)


@register("NoiseAugmentation")
class NoiseAugmentation:
    """Noise on the low-resolution picture that an upscaler enlarges; its level, 0 to `max_level`, is the UNet's `y`.

    Ho et al. 2021, arXiv:2106.15282, section 4.2. The schedule is the picture's own, not the latents'.
    fold: pixels of the picture along each side of one pixel of the latent, in whose channels they are stacked. So an
    autoencoder of downsample factor f makes an upscaler of factor f / fold.
    """

    def __init__(self, schedule: NoiseSchedule, max_level: int, fold: int = 1) -> None:
        if not 0 <= max_level < schedule.num_timesteps:
            raise ValueError(
                f"max_level {max_level} is not a timestep of the schedule, 0 to {schedule.num_timesteps - 1}"
            )
        if fold < 1:
            raise ValueError(f"fold {fold} is not a number of pixels; give 1 for a picture of the latent's size")
        self.schedule, self.max_level, self.fold = schedule, max_level, fold

    def __call__(self, image: Tensor, level: int | Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """image (B, 3, h * fold, w * fold) in [-1, 1], noise of its shape, one level or (B,) of them.

        Gives `concat` (B, 3 * fold^2, h, w) and `y` (B,) int64.
        """
        noisy, levels = _noised(self.schedule, self.max_level, image, level, noise)
        return F.pixel_unshuffle(noisy, self.fold), levels


@register("EmbeddingAugmentation")
class EmbeddingAugmentation(nn.Module):
    """Noise on the CLIP embedding of the picture that unCLIP varies, and what it makes of both: the UNet's `y`.

    The embedding is whitened by the data's mean and deviation, noised (Ramesh et al. 2022, arXiv:2204.06125, section
    2.1, after Ho et al. 2021), and unwhitened; `width` sinusoids of the level follow it.
    measured: the family measured these statistics, so its files hold them; otherwise they are 0 and 1.
    """

    data_mean: Tensor
    data_std: Tensor

    def __init__(self, schedule: NoiseSchedule, width: int, measured: bool = False) -> None:
        super().__init__()
        self.schedule, self.width, self.measured = schedule, width, measured
        self.max_level = schedule.num_timesteps - 1
        self.register_buffer("data_mean", torch.zeros(1, width))
        self.register_buffer("data_std", torch.ones(1, width))

    def forward(self, embedding: Tensor, level: int | Tensor, noise: Tensor) -> tuple[None, Tensor]:
        """embedding (B, width), noise of its shape, one level or (B,) of them -> no `concat`, and `y` (B, 2 width)."""
        mean, std = self.data_mean.to(embedding), self.data_std.to(embedding)
        noisy, levels = _noised(self.schedule, self.max_level, (embedding - mean) / std, level, noise)
        return None, torch.cat([noisy * std + mean, timestep_embedding(levels, self.width).to(noisy)], dim=1)


def check_level(level: int, max_level: int) -> None:
    if not 0 <= level <= max_level:
        raise ValueError(f"noise level {level} is outside of what this model was trained on, 0 to {max_level}")


def _noised(
    schedule: NoiseSchedule, max_level: int, x: Tensor, level: int | Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """x (B, ...) under variance-preserving noise of its levels, and these, (B,) int64 on x's device."""
    levels = torch.as_tensor(level, device="cpu").expand(len(x))
    check_level(int(levels.min()), max_level)
    check_level(int(levels.max()), max_level)
    kept = schedule.alphas_cumprod[levels]  # (B,)
    noisy = per_image(kept.sqrt(), x) * x + per_image((1 - kept).sqrt(), x) * noise
    return noisy, levels.to(x.device)
