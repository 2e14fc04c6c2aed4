"""What is minimised: functions of (model, batch, random numbers) → scalar."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm.models.autoencoder import AutoencoderKL
from ldm.models.diffusion.denoiser import Conditioning, Denoiser


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


def denoising_loss(denoiser: Denoiser, z: Tensor, cond: Conditioning, generator: torch.Generator) -> Tensor:
    """Squared error of what the network answers, at one timestep an image, spread evenly over the batch.

    z: (B, C, h, w). With v-prediction this weighs the error of x0 by 1/σ² + 1 (Salimans & Ho 2022, section 4).
    """
    number, steps = z.shape[0], denoiser.schedule.num_timesteps
    t = (torch.rand(1, generator=generator) + torch.arange(number) / number) % 1 * steps  # low discrepancy, [0, T)
    sigma = denoiser.schedule.sigmas[t.long()].float().to(z.device)  # (B,)
    noise = torch.randn(z.shape, generator=generator).to(z.device)
    x = denoiser.schedule.add_noise(z, noise, sigma)
    answer = denoiser.predict(x, sigma, cond).float()
    return (answer - denoiser.parameterization.target(z, noise, sigma)).square().mean()
