"""Noise schedule, denoiser, guidance, spacings and samplers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ldm.models.diffusion.ancestral import dpm_2_ancestral, dpmpp_2s_ancestral, euler_ancestral
from ldm.models.diffusion.consistency import lcm, tcd
from ldm.models.diffusion.ddim import ddim, ddim_invert
from ldm.models.diffusion.ddpm import ddpm
from ldm.models.diffusion.denoiser import PARAMETERIZATIONS, Conditioning, Denoiser
from ldm.models.diffusion.dpmpp_sde import dpmpp_2m_sde, dpmpp_2m_sde_heun, dpmpp_3m_sde, dpmpp_sde
from ldm.models.diffusion.guidance import guided, masked, switched
from ldm.models.diffusion.schedule import NoiseSchedule
from ldm.models.diffusion.spacing import SPACINGS
from ldm.models.diffusion.step import Denoise, Noise, Step

Sampler = Callable[..., Iterator[Step]]
"""sampler(denoise, x, sigmas, *, noise, eta=…) → one Step after each step; the last one's x is the result."""

SAMPLERS: dict[str, tuple[Sampler, str]] = {
    "ddim": (ddim, "uniform"),
    "ddpm": (ddpm, "trailing"),
    "euler_ancestral": (euler_ancestral, "linspace"),
    "dpm_2_ancestral": (dpm_2_ancestral, "karras"),
    "dpmpp_2s_ancestral": (dpmpp_2s_ancestral, "karras"),
    "dpmpp_sde": (dpmpp_sde, "karras"),
    "dpmpp_2m_sde": (dpmpp_2m_sde, "exponential"),
    "dpmpp_2m_sde_heun": (dpmpp_2m_sde_heun, "exponential"),
    "dpmpp_3m_sde": (dpmpp_3m_sde, "exponential"),
    "lcm": (lcm, "trailing"),
    "tcd": (tcd, "trailing"),
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
    "dpm_2_ancestral",
    "dpmpp_2m_sde",
    "dpmpp_2m_sde_heun",
    "dpmpp_2s_ancestral",
    "dpmpp_3m_sde",
    "dpmpp_sde",
    "euler_ancestral",
    "guided",
    "lcm",
    "masked",
    "switched",
    "tcd",
]
