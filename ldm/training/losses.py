"""What is minimised: functions of (model, batch, random numbers) → scalar."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm.models.autoencoder import AutoencoderKL
from ldm.models.diffusion.denoiser import Conditioning, Denoiser


def autoencoder_loss(
    model: AutoencoderKL, image: Tensor, generator: torch.Generator, *, kl_weight: float, l1_weight: float
) -> Tensor:
    """Squared error, some absolute error for sharp edges, and the KL divergence per pixel value.

    image: (B, 3, H, W) in [-1, 1]. With `kl_weight` twice the squared error it reaches, this is the evidence lower
    bound (Kingma & Welling 2014, eq. 10) of a Gaussian decoder; less keeps more detail.
    """
    posterior = model.posterior(image)
    noise = torch.randn(posterior.mean.shape, generator=generator).to(image.device)
    unscaled = posterior.sample(noise)
    error = model.decoder(model.post_quant_conv(unscaled)) - image
    kl = posterior.kl().mean() / image[0].numel()
    return error.square().mean() + l1_weight * error.abs().mean() + kl_weight * kl


def denoising_loss(
    denoiser: Denoiser, z: Tensor, cond: Conditioning, generator: torch.Generator, *, min_snr: float = 5.0
) -> Tensor:
    """Error of the network's answer at random timesteps, one an image, stratified over the batch.

    z: (B, C, h, w). The weight of the error of x0 is min(1/σ², min_snr) + 1 for v, the "min-SNR" of Hang et al. 2023,
    arXiv:2303.09556, so that nearly clean latents do not crowd out the noisy ones where the layout is decided.
    """
    schedule, number = denoiser.schedule, z.shape[0]
    steps = schedule.num_timesteps
    t = (torch.rand(1, generator=generator) + torch.arange(number) / number) % 1 * steps  # low discrepancy, [0, steps)
    sigma = schedule.sigmas[t.long()].float().to(z.device)  # (B,)
    noise = torch.randn(z.shape, generator=generator).to(z.device)
    x = z + sigma[:, None, None, None] * noise
    parameterization = denoiser.parameterization
    error = denoiser.predict(x, sigma, cond).float() - parameterization.target(z, noise, sigma)
    snr = sigma**-2
    weight = (snr.clamp(max=min_snr) / snr) * (snr + 1) / (snr.clamp(max=min_snr) + 1)  # 1 where noise is strong
    return (weight * error.square().mean(dim=(1, 2, 3))).mean()
