"""Denoising diffusion probabilistic models: Ho et al. 2020, arXiv:2006.11239."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ldm.models.diffusion.ddim import ddim
from ldm.models.diffusion.step import Denoise, Noise, Step


def ddpm(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise, eta: float = 1.0) -> Iterator[Step]:
    """Draw each next x from the posterior q(x_next | x, z = x0), eq. 6 and 7: DDIM with eta 1.

    The paper's sampler visits all T training levels; with fewer sigmas it is the same posterior over longer strides.
    """
    return ddim(denoise, x, sigmas, noise=noise, eta=eta)
