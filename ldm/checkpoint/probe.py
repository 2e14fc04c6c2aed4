"""What a network predicts, asked of the network itself, where nothing else tells: SD 2's files hold equal shapes."""

from __future__ import annotations

import torch

from ldm.models.latent_diffusion import LatentDiffusion
from ldm.noise import starting_noise

SIDE = 32  # of the latents shown, (C, SIDE, SIDE): enough numbers for a sure answer, in a second or two on a CPU


@torch.inference_mode()
def share_of_noise(model: LatentDiffusion) -> float:
    """<F, n> / <n, n> for the network's answer F to pure noise n at the last timestep, told nothing ("").

    A trained eps-network must find the noise, which is nearly all that is there: about 1. The v of Salimans & Ho 2022
    is sqrt(a) n - sqrt(1 - a) z with a = alphas_cumprod: there the noise counts for sqrt(a), 0.07 in SD 2, and the z
    that the network guesses, a mean of all pictures, has nothing to do with n. It is no different for an x0-network.
    """
    n = starting_noise([0], (model.autoencoder.latent_channels, SIDE, SIDE)).to(model.device)  # (1, C, h, w)
    sigma = model.schedule.sigmas[-1]
    x = n * float((sigma**2 + 1).sqrt())  # of which the network sees n
    answer = model.denoiser.predict(x, sigma, model.condition([""])).to(n.dtype)
    return float((answer * n).sum() / (n * n).sum())


def parameterization(model: LatentDiffusion) -> tuple[str, float]:
    """ "eps" or "v", and the share of noise that says so. One forward pass, of a model with its weights."""
    share = share_of_noise(model)
    return "eps" if share > 0.5 else "v", share
