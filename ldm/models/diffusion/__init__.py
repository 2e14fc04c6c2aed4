"""Noise schedule, denoiser, guidance, spacings and samplers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ldm.models.diffusion.ancestral import dpm_2_ancestral, dpmpp_2s_ancestral, euler_ancestral
from ldm.models.diffusion.consistency import lcm, tcd
from ldm.models.diffusion.ddim import ddim, ddim_invert
from ldm.models.diffusion.ddpm import ddpm
from ldm.models.diffusion.denoiser import PARAMETERIZATIONS, Conditioning, Denoiser
from ldm.models.diffusion.dpm_solver import dpm_adaptive, dpm_fast
from ldm.models.diffusion.dpmpp_sde import dpmpp_2m_sde, dpmpp_2m_sde_heun, dpmpp_3m_sde, dpmpp_sde
from ldm.models.diffusion.euler import dpm_2, euler, heun
from ldm.models.diffusion.exponential import dpmpp_2m, res_multistep, unipc, unipc_bh2
from ldm.models.diffusion.guidance import guided, masked, switched
from ldm.models.diffusion.multistep import deis, ipndm, lms, plms
from ldm.models.diffusion.restart import restart
from ldm.models.diffusion.schedule import NoiseSchedule
from ldm.models.diffusion.spacing import SPACINGS
from ldm.models.diffusion.step import Denoise, Noise, Step

Sampler = Callable[..., Iterator[Step]]
"""sampler(denoise, x, sigmas, *, noise, eta=…) → one Step after each step; the last one's x is the result."""

SAMPLERS: dict[str, tuple[Sampler, str]] = {
    "ddim": (ddim, "uniform"),
    "ddpm": (ddpm, "trailing"),
    "plms": (plms, "uniform"),
    "ipndm": (ipndm, "linspace"),
    "euler": (euler, "linspace"),
    "euler_ancestral": (euler_ancestral, "linspace"),
    "heun": (heun, "linspace"),
    "dpm_2": (dpm_2, "karras"),
    "dpm_2_ancestral": (dpm_2_ancestral, "karras"),
    "lms": (lms, "linspace"),
    "dpm_fast": (dpm_fast, "linspace"),
    "dpm_adaptive": (dpm_adaptive, "linspace"),
    "dpmpp_2s_ancestral": (dpmpp_2s_ancestral, "karras"),
    "dpmpp_sde": (dpmpp_sde, "karras"),
    "dpmpp_2m": (dpmpp_2m, "karras"),
    "dpmpp_2m_sde": (dpmpp_2m_sde, "exponential"),
    "dpmpp_2m_sde_heun": (dpmpp_2m_sde_heun, "exponential"),
    "dpmpp_3m_sde": (dpmpp_3m_sde, "exponential"),
    "unipc": (unipc, "karras"),
    "unipc_bh2": (unipc_bh2, "karras"),
    "deis": (deis, "karras"),
    "lcm": (lcm, "trailing"),
    "tcd": (tcd, "trailing"),
    "restart": (restart, "karras"),
    "res_multistep": (res_multistep, "karras"),
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
    "deis",
    "dpm_2",
    "dpm_2_ancestral",
    "dpm_adaptive",
    "dpm_fast",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2m_sde_heun",
    "dpmpp_2s_ancestral",
    "dpmpp_3m_sde",
    "dpmpp_sde",
    "euler",
    "euler_ancestral",
    "guided",
    "heun",
    "ipndm",
    "lcm",
    "lms",
    "masked",
    "plms",
    "res_multistep",
    "restart",
    "switched",
    "tcd",
    "unipc",
    "unipc_bh2",
]
