"""Denoising diffusion implicit models: Song et al. 2020, arXiv:2010.02502."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ldm.models.diffusion.step import Denoise, Noise, Step, ancestral_step, intervals, level


def ddim(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise, eta: float = 0.0, s_noise: float = 1.0
) -> Iterator[Step]:
    """Walk x down the sigmas, one call of denoise a step. eta 0 is deterministic, eta 1 is DDPM.

    In the coordinates x = z + sigma * noise this is Euler's method for the probability-flow ODE, and with eta the
    ancestral Euler sampler: the same numbers. x: (B, C, h, w) at noise level sigmas[0]; s_noise scales all noise.
    """
    for i, (sigma, sigma_next) in enumerate(intervals(sigmas)):
        x0 = denoise(x, level(sigma))
        x = ancestral_step(x, x0, sigma, sigma_next, eta, noise, s_noise)
        yield Step(i, sigma_next, x, x0)


def ddim_invert(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Iterator[Step]:
    """Walk a clean latent up the same sigmas, to the noise from which ddim (eta 0) draws it again.

    x: (B, C, h, w) at noise level sigmas[-1], mostly 0. Each step takes the direction (x - x0) / sigma where it starts,
    ddim where it ends: a round trip errs by O(1/n) for n steps. At sigma = 0, where the direction is 0/0, it is the one
    at the next level.
    """
    for i, (sigma_next, sigma) in enumerate(reversed(intervals(sigmas))):
        asked = sigma if sigma > 0 else sigma_next
        x0 = denoise(x, level(asked))
        x = x + (sigma_next - sigma) / asked * (x - x0)
        yield Step(i, sigma_next, x, x0)
