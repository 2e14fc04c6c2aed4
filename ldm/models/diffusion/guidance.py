"""Wrappers around a denoiser: each returns a plain `denoise(x, sigma) -> x0`, so samplers hear of neither."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ldm.models.diffusion.denoiser import Conditioning
from ldm.models.diffusion.step import Denoise

ConditionalDenoise = Callable[[Tensor, Tensor, Conditioning], Tensor]


def guided(denoiser: ConditionalDenoise, cond: Conditioning, uncond: Conditioning | None, scale: float) -> Denoise:
    """Classifier-free guidance, Ho & Salimans 2022, arXiv:2207.12598: x0 = x0_uncond + scale * (x0_cond - x0_uncond).

    At scale 1 that is x0_cond: one network call, and `uncond` may be None. Else both are one batched call, or two
    calls where their shapes differ (prompts of unequal length): padding would be attended to and change the result.
    """
    if scale == 1:
        return lambda x, sigma: denoiser(x, sigma, cond)
    if uncond is None:
        raise ValueError(f"guidance scale {scale} needs an unconditional conditioning; give one, or use scale 1")
    both = Conditioning.cat([cond, uncond]) if _shapes(cond) == _shapes(uncond) else None

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        if both is None:
            x0_cond, x0_uncond = denoiser(x, sigma, cond), denoiser(x, sigma, uncond)
        else:
            twice = torch.cat([sigma, sigma]) if sigma.ndim else sigma
            x0_cond, x0_uncond = denoiser(torch.cat([x, x]), twice, both).chunk(2)  # two of (B, C, h, w)
        return x0_uncond + scale * (x0_cond - x0_uncond)

    return denoise


def masked(denoise: Denoise, z: Tensor, mask: Tensor) -> Denoise:
    """Inpainting: paint where mask is 1, keep z where it is 0, blend between.

    z (B, C, h, w) and mask (broadcast to it) in the latent's dtype and device. Start from x = z + sigma * noise. Since
    the estimate *is* z outside the mask, every sampler keeps x on z + sigma * noise there, and ends exactly on z.
    """
    return lambda x, sigma: mask * denoise(x, sigma) + (1 - mask) * z


def switched(first: Denoise, second: Denoise, sigma_switch: float) -> Denoise:
    """Two experts, one for each end of the noise levels: `first` at sigma_switch and above, `second` below it.

    Podell et al. 2023, arXiv:2307.01952, section 2.5. The level where a network is asked decides, so a sampler that
    asks twice in a step may ask both.
    """
    return lambda x, sigma: (first if float(sigma.max()) >= sigma_switch else second)(x, sigma)


def _shapes(cond: Conditioning) -> list[torch.Size | None]:
    return [None if value is None else value.shape for value in (cond.context, cond.concat, cond.y)]
