"""A latent diffusion model as its parts. It neither samples nor trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ldm.config import register
from ldm.models.autoencoder import Autoencoder, Gaussian
from ldm.models.diffusion.denoiser import Conditioning, Denoiser
from ldm.models.diffusion.schedule import NoiseSchedule
from ldm.models.text_encoder import TextEncoder
from ldm.modules import unet as _unet  # noqa: F401  (registers the networks a config may name)


@register("LatentDiffusion", "ldm.models.diffusion.ddpm.LatentDiffusion")
class LatentDiffusion(nn.Module):
    """Rombach et al. 2022 (arXiv:2112.10752). `denoiser` is made of `unet`, `schedule` and what the network predicts.

    `image_size` (pixels) and `guidance_scale` are the family's defaults; any size works that is a multiple of the
    autoencoder's downsample factor.
    """

    def __init__(
        self,
        unet: nn.Module,
        autoencoder: Autoencoder,
        text_encoder: TextEncoder,
        schedule: NoiseSchedule,
        parameterization: Literal["eps", "v", "x0"] = "eps",
        image_size: int = 512,
        guidance_scale: float = 7.5,
    ) -> None:
        super().__init__()
        self.unet, self.autoencoder, self.text_encoder = unet, autoencoder, text_encoder
        self.schedule, self.parameterization = schedule, parameterization
        self.image_size, self.guidance_scale = image_size, guidance_scale
        self.denoiser = Denoiser(unet, schedule, parameterization)

    @property
    def device(self) -> torch.device:
        """Where the denoising network is."""
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The denoising network's; the autoencoder has its own."""
        return next(self.unet.parameters()).dtype

    def condition(self, prompts: Sequence[str]) -> Conditioning:
        """One row per prompt; "" is the unconditional one."""
        if isinstance(prompts, str):
            raise ValueError(f"condition takes a list of prompts, not the one string {prompts!r}; write [prompt]")
        features = self.text_encoder(self.text_encoder.tokenize(prompts).to(self.device))
        return Conditioning(features.states)

    def encode(self, image: Tensor) -> Gaussian | Tensor:
        """image (B, 3, H, W) in [-1, 1] -> scaled latents (B, C, h, w): their distribution, or a VQModel's tensor."""
        with torch.autocast(self.device.type, enabled=False):  # the autoencoder has its own dtype, whatever the UNet's
            return self.autoencoder.encode(image.to(next(self.autoencoder.parameters())))

    def decode(self, z: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) -> images (B, 3, H, W) in about [-1, 1], in the autoencoder's dtype."""
        with torch.autocast(self.device.type, enabled=False):
            return self.autoencoder.decode(z.to(next(self.autoencoder.parameters())))

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, h, w) for an image of this size in pixels; ValueError with the nearest size if there is none."""
        factor = self.autoencoder.downsample_factor
        for name, side in (("height", height), ("width", width)):
            if side <= 0 or side % factor:
                nearest = max(factor, round(side / factor) * factor)
                raise ValueError(f"{name} {side} is not a positive multiple of {factor}; the nearest is {nearest}")
        return self.autoencoder.latent_channels, height // factor, width // factor
