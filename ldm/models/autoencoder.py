"""Autoencoders between images (B, 3, H, W) in [-1, 1] and scaled latents (B, C, H/f, W/f)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ldm.config import register
from ldm.modules.encoder import Decoder, Encoder, Plan


@dataclass(frozen=True)
class Gaussian:
    """A diagonal Gaussian over latents (B, C, h, w)."""

    mean: Tensor
    logvar: Tensor

    @property
    def std(self) -> Tensor:
        return torch.exp(0.5 * self.logvar)

    def mode(self) -> Tensor:
        return self.mean

    def sample(self, noise: Tensor) -> Tensor:
        """The mean moved by standard-normal noise of its shape."""
        return self.mean + self.std * noise

    def kl(self) -> Tensor:
        """KL divergence to N(0, 1), summed over each latent: (B,), in nats (Kingma & Welling 2014, appendix B)."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar).flatten(1).sum(dim=1)

    def scaled(self, factor: float, shift: float) -> Gaussian:
        """The distribution of (z - shift) * factor."""
        return Gaussian((self.mean - shift) * factor, self.logvar + 2 * math.log(factor))


class Autoencoder(nn.Module):
    """The surface all autoencoders share. Latents outside are (z - shift_factor) * scaling_factor."""

    latent_channels: int
    downsample_factor: int  # pixels of the image along each side of one pixel of the latents
    scaling_factor: float
    shift_factor: float

    def encode(self, image: Tensor) -> Gaussian | Tensor:
        """image (B, 3, H, W) in [-1, 1], sides multiples of `downsample_factor` -> scaled latents (B, C, h, w)."""
        raise NotImplementedError

    def decode(self, z: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) -> images (B, 3, H, W), about [-1, 1], not clamped."""
        raise NotImplementedError


class ConvolutionalAutoencoder(Autoencoder):
    """Encoder, decoder and the scale of the latents.

    Levels count from the image's resolution down, each half the size of the one before; `attention_levels` says which
    attend after each res-block, None that only the mid-block does.
    """

    moments: int  # channels that leave the encoder for each channel of the latents

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        latent_channels: int = 4,
        block_out_channels: Sequence[int] = (128, 256, 512, 512),
        layers_per_block: int = 2,
        attention_levels: Sequence[bool] | None = None,
        mid_attention: bool = True,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-6,
        dropout: float = 0.0,
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
    ) -> None:
        super().__init__()
        widths = tuple(block_out_channels)
        attend = [False] * len(widths) if attention_levels is None else list(attention_levels)
        if len(attend) != len(widths):
            raise ValueError(f"attention_levels has {len(attend)} entries for {len(widths)} levels: give one a level")
        if scaling_factor <= 0:
            raise ValueError(f"scaling_factor {scaling_factor} is not positive: give 1 / (the latents' deviation)")
        plan = Plan(widths, layers_per_block, attend, mid_attention, norm_num_groups, norm_eps, dropout)
        moments = self.moments * latent_channels
        self.latent_channels, self.downsample_factor = latent_channels, 2 ** (len(widths) - 1)
        self.scaling_factor, self.shift_factor = scaling_factor, shift_factor
        self.encoder = Encoder(in_channels, moments, plan)
        self.decoder = Decoder(latent_channels, out_channels, plan)
        self.quant_conv = nn.Conv2d(moments, moments, 1)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z / self.scaling_factor + self.shift_factor))


@register("AutoencoderKL", "ldm.models.autoencoder.AutoencoderKL")
class AutoencoderKL(ConvolutionalAutoencoder):
    """Variational autoencoder (Rombach et al. 2022, section 3.1)."""

    moments = 2

    def encode_moments(self, image: Tensor) -> Tensor:
        """(B, 2C, h, w): the unscaled latents' mean, then log variance, as the network gives them."""
        return self.quant_conv(self.encoder(image))

    def posterior(self, image: Tensor) -> Gaussian:
        """The unscaled latents, whose `.kl()` is the one to train on; log variance within [-30, 20]."""
        mean, logvar = self.encode_moments(image).chunk(2, dim=1)  # (B, C, h, w) each
        return Gaussian(mean, logvar.clamp(-30.0, 20.0))

    def encode(self, image: Tensor) -> Gaussian:
        """As `Autoencoder.encode`: the latents' distribution."""
        return self.posterior(image).scaled(self.scaling_factor, self.shift_factor)


class Codebook(nn.Module):
    """A finite set of latent vectors (van den Oord et al. 2017)."""

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, dim)
        nn.init.uniform_(self.embedding.weight, -1 / size, 1 / size)

    def nearest(self, z: Tensor) -> Tensor:
        """(B, C, h, w) -> indices (B, h, w) of the nearest codes."""
        codes = self.embedding.weight  # (K, C)
        flat = z.permute(0, 2, 3, 1).flatten(0, 2)  # (B*h*w, C)
        distances = codes.square().sum(dim=1) - 2 * flat @ codes.T  # (B*h*w, K), less a constant of each row
        return distances.argmin(dim=1).unflatten(0, (z.shape[0], *z.shape[2:]))

    def forward(self, z: Tensor) -> Tensor:
        """The nearest codes (B, C, h, w); the gradient goes straight through to z (equation 3)."""
        codes = self.embedding(self.nearest(z)).permute(0, 3, 1, 2)
        return z + (codes - z).detach()


@register("VQModel", "ldm.models.autoencoder.VQModel", "ldm.models.autoencoder.VQModelInterface")
class VQModel(ConvolutionalAutoencoder):
    """Autoencoder whose decoder sees codes only (Rombach et al. 2022, section 3.1)."""

    moments = 1

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        latent_channels: int = 3,
        num_codes: int = 8192,
        block_out_channels: Sequence[int] = (128, 256, 512),
        layers_per_block: int = 2,
        attention_levels: Sequence[bool] | None = None,
        mid_attention: bool = True,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-6,
        dropout: float = 0.0,
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            latent_channels,
            block_out_channels,
            layers_per_block,
            attention_levels,
            mid_attention,
            norm_num_groups,
            norm_eps,
            dropout,
            scaling_factor,
            shift_factor,
        )
        self.quantize = Codebook(num_codes, latent_channels)

    def encode(self, image: Tensor) -> Tensor:
        """As `Autoencoder.encode`: the latents before quantisation."""
        return (self.quant_conv(self.encoder(image)) - self.shift_factor) * self.scaling_factor

    def decode(self, z: Tensor) -> Tensor:
        """As `Autoencoder.decode`, of the codes nearest to the latents."""
        return self.decoder(self.post_quant_conv(self.quantize(z / self.scaling_factor + self.shift_factor)))


@register("IdentityAutoencoder")
class IdentityAutoencoder(Autoencoder):
    """For models in pixel space (Ho et al. 2020): the latent is the picture."""

    latent_channels, downsample_factor = 3, 1
    scaling_factor, shift_factor = 1.0, 0.0

    def encode(self, image: Tensor) -> Tensor:
        return image

    def decode(self, z: Tensor) -> Tensor:
        return z
