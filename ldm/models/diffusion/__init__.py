"""Noise schedule, denoiser, guidance, spacings and samplers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ldm.models.diffusion.ddim import ddim, ddim_invert
from ldm.models.diffusion.ddpm import ddpm
from ldm.models.diffusion.denoiser import PARAMETERIZATIONS, Conditioning, Denoiser
from ldm.models.diffusion.guidance import guided, masked, switched
from ldm.models.diffusion.schedule import NoiseSchedule
from ldm.models.diffusion.spacing import SPACINGS
from ldm.models.diffusion.step import Denoise, Noise, Step

Sampler = Callable[..., Iterator[Step]]
"""sampler(denoise, x, sigmas, *, noise, eta=…) → one Step after each step; the last one's x is the result."""

SAMPLERS: dict[str, tuple[Sampler, str]] = {
    "ddim": (ddim, "uniform"),
    "ddpm": (ddpm, "trailing"),
}
"""name → (function, default spacing)"""

__all__ = [
    "PARAMETERIZATIONS",
    "SAMPLERS",
    "SPACINGS",
    "Conditioning",
    "Denoise",
    "Denoiser",
    "Noise",
    "NoiseSchedule",
    "Sampler",
    "Step",
    "ddim",
    "ddim_invert",
    "ddpm",
    "guided",
    "masked",
    "switched",
]
