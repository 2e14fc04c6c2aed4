"""Numbers about a picture that some networks are told besides its prompt: sizes and crop, or how noisy a hint is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ldm.config import register
from ldm.models.diffusion.schedule import NoiseSchedule
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
    """

    def __init__(self, schedule: NoiseSchedule, max_level: int) -> None:
        if not 0 <= max_level < schedule.num_timesteps:
            raise ValueError(
                f"max_level {max_level} is not a timestep of the schedule, 0 to {schedule.num_timesteps - 1}"
            )
        self.schedule, self.max_level = schedule, max_level

    def __call__(self, image: Tensor, level: int, noise: Tensor) -> tuple[Tensor, Tensor]:
        """image (B, 3, h, w) in [-1, 1], noise of its shape -> `concat` like image, `y` (B,) int64."""
        if not 0 <= level <= self.max_level:
            raise ValueError(f"noise level {level} is outside of what this model was trained on, 0 to {self.max_level}")
        kept = float(self.schedule.alphas_cumprod[level])
        noisy = kept**0.5 * image + (1 - kept) ** 0.5 * noise
        return noisy, torch.full((len(image),), level, device=image.device)
