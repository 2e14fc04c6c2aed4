"""What is minimised: functions of (model, batch, random numbers) → scalar."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ldm.models.autoencoder import AutoencoderKL
from ldm.models.diffusion.denoiser import Conditioning, Denoiser, per_image


def autoencoder_loss(
    model: AutoencoderKL,
    image: Tensor,
    generator: torch.Generator,
    *,
    kl_weight: float,
    l1_weight: float,
    edge_weight: float,
) -> Tensor:
    """Squared error, absolute error of pixels and of their differences for sharp edges, KL divergence a pixel value.

    image: (B, 3, H, W) in [-1, 1]. Squared error alone with `kl_weight` twice what it reaches would be the evidence
    lower bound (Kingma & Welling 2014, eq. 10) of a Gaussian decoder; a smaller weight keeps more detail.
    """
    posterior = model.posterior(image)
    noise = torch.randn(posterior.mean.shape, generator=generator).to(image.device)
    unscaled = posterior.sample(noise)
    error = model.decoder(model.post_quant_conv(unscaled)) - image
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    kl = posterior.kl().mean() / image[0].numel()
    return error.square().mean() + l1_weight * error.abs().mean() + edge_weight * edges + kl_weight * kl


MENDED_SIGMAS = 0.7, 9.0  # below, a mistake is too plain to be taken back; above, it cannot be seen


def denoising_loss(
    denoiser: Denoiser, z: Tensor, cond: Conditioning, generator: torch.Generator, mistakes: Tensor | None = None
) -> Tensor:
    """Squared error of what the network answers, at one timestep an image, spread evenly over the batch.

    z: (B, C, h, w). With v-prediction this weighs the error of x0 by 1/σ² + 1 (Salimans & Ho 2022, section 4).
    mistakes: (M, C, h, w), M < B: latents near the last M of z that cond is not true of. There noise is added not to z
    but to a point between z and the mistake, and the answer is z all the same. A sampler comes to such points by its
    own errors, and plain training never shows them (exposure bias, Ning et al. 2023, arXiv:2301.11706).
    """
    mended = 0 if mistakes is None else len(mistakes)
    sigma = _spread_sigmas(denoiser, len(z) - mended, generator).to(z.device)  # (B - M,)
    noise = torch.randn(z.shape, generator=generator).to(z.device)
    if mistakes is not None:
        near = _mended_sigmas(mended, generator).to(z.device)  # (M,)
        share = torch.rand(mended, 1, 1, 1, generator=generator).to(z.device)
        noise[-mended:] += share * (mistakes - z[-mended:]) / per_image(near, z)  # x = z + share * (mistake - z) + ...
        sigma = torch.cat([sigma, near])
    x = denoiser.schedule.add_noise(z, noise, sigma)
    answer = denoiser.predict(x, sigma, cond).float()
    return (answer - denoiser.parameterization.target(z, noise, sigma)).square().mean()


def _spread_sigmas(denoiser: Denoiser, number: int, generator: torch.Generator) -> Tensor:
    """Those of timesteps spread evenly over [0, T), (number,)."""
    t = _spread(number, generator) * denoiser.schedule.num_timesteps
    return denoiser.schedule.sigmas[t.long()].float()


def _mended_sigmas(number: int, generator: torch.Generator) -> Tensor:
    """Spread evenly over the logarithm of σ, (number,)."""
    low, high = map(math.log, MENDED_SIGMAS)
    return (low + _spread(number, generator) * (high - low)).exp()


def _spread(number: int, generator: torch.Generator) -> Tensor:
    """Numbers in [0, 1) at equal distances from a random beginning, (number,): low discrepancy."""
    return (torch.rand(1, generator=generator) + torch.arange(number) / number) % 1
