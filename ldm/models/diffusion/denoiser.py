"""From a network's prediction (eps, v or x0, at timestep t) to an estimate of the clean latent (at noise sigma)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from ldm.models.diffusion.schedule import NoiseSchedule, per_image, sent


@dataclass(frozen=True)
class Conditioning:
    """What to draw. Each field has the batch in its first dimension, or is None where the network takes none."""

    context: Tensor | None = None  # (B, L, width), read by cross-attention
    concat: Tensor | None = None  # (B, C', H, W), joined to the latent's channels: mask, depth, low-resolution image
    y: Tensor | None = None  # (B,) class labels or (B, width) vectors, added to the timestep embedding

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Conditioning:
        """Move every field; the dtype is for floating-point fields only, class labels stay integers."""

        def move(value: Tensor | None) -> Tensor | None:
            if value is None:
                return None
            return value.to(device=device, dtype=dtype if value.is_floating_point() else None)

        return Conditioning(*(move(getattr(self, field.name)) for field in fields(self)))

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Join along the batch. ValueError if a field is set in some parts only, or shapes differ beyond the batch."""
        joined: list[Tensor | None] = []
        for field in fields(Conditioning):
            values = [getattr(part, field.name) for part in parts]
            present = [value for value in values if value is not None]
            if present and (len(present) < len(values) or len({value.shape[1:] for value in present}) > 1):
                shapes = [None if value is None else tuple(value.shape) for value in values]
                raise ValueError(f"conditionings cannot be joined: {field.name} is {shapes}; give them one shape")
            joined.append(torch.cat(present) if present else None)
        return Conditioning(*joined)


@dataclass(frozen=True)
class Parameterization:
    """What the network's output F means, as in Karras et al. 2022, arXiv:2206.00364, eq. 7:

        x0 = c_skip(sigma) * x + c_out(sigma) * F(c_in(sigma) * x, t(sigma)),    x = z + sigma * noise

    and, for training, the F that makes x0 = z: target = noise_part(sigma) * noise + z_part(sigma) * z.
    A loss weight w on the error of x0 is w * c_out(sigma)^2 on the error of F.
    """

    c_skip: Callable[[Tensor], Tensor]
    c_out: Callable[[Tensor], Tensor]
    noise_part: Callable[[Tensor], Tensor]
    z_part: Callable[[Tensor], Tensor]

    def target(self, z: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """What the network should answer for x = z + sigma * noise; sigma is a scalar or one per image, (B,)."""
        return per_image(self.noise_part(sigma), z) * noise + per_image(self.z_part(sigma), z) * z


def c_in(sigma: Tensor) -> Tensor:
    """Scales x to unit variance, where z has unit variance: the network's input is sqrt(alphas_cumprod) * x."""
    return (sigma**2 + 1).rsqrt()


PARAMETERIZATIONS = {
    "eps": Parameterization(
        c_skip=torch.ones_like,
        c_out=lambda sigma: -sigma,
        noise_part=torch.ones_like,
        z_part=torch.zeros_like,
    ),
    "v": Parameterization(  # Salimans & Ho 2022, arXiv:2202.00512, section 4: v = sqrt(a) noise - sqrt(1 - a) z
        c_skip=lambda sigma: c_in(sigma) ** 2,
        c_out=lambda sigma: -sigma * c_in(sigma),
        noise_part=c_in,
        z_part=lambda sigma: -sigma * c_in(sigma),
    ),
    "x0": Parameterization(
        c_skip=torch.zeros_like,
        c_out=torch.ones_like,
        noise_part=torch.zeros_like,
        z_part=torch.ones_like,
    ),
}


class Denoiser:
    """(x, sigma, cond) → x0, an estimate of the clean latent z in x = z + sigma * noise.

    The one place that knows what the network predicts and what its timesteps mean. It owns no parameters (the network
    does), so the trainer, the EMA copy and the sampler each make one around the network they have.

    clip_x0: keep the estimate within [-1, 1], where pictures are but latents are not (Ho et al. 2020, their code).
    """

    def __init__(self, unet: nn.Module, schedule: NoiseSchedule, parameterization: str, clip_x0: bool = False) -> None:
        if parameterization not in PARAMETERIZATIONS:
            raise ValueError(f"parameterization is {parameterization!r}; use one of {', '.join(PARAMETERIZATIONS)}")
        if schedule.zero_terminal_snr and parameterization == "eps":
            raise ValueError("eps-prediction cannot find z in pure noise; with zero_terminal_snr use v or x0")
        self.unet = unet
        self.schedule, self.clip_x0 = schedule, clip_x0
        self.parameterization = PARAMETERIZATIONS[parameterization]

    def predict(self, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """F, the network's raw answer, in the network's dtype: what `parameterization.target` is for. (B, C, H, W)"""
        dtype = next((p.dtype for p in self.unet.parameters()), x.dtype)
        cond = cond.to(x.device, dtype)
        scaled = per_image(c_in(sigma), x) * x
        if cond.concat is not None:
            scaled = torch.cat([scaled, cond.concat.to(x.dtype)], dim=1)  # (B, C + C', H, W)
        t = sent(self.schedule.sigma_to_t(sigma).to(torch.float32), x).expand(x.shape[0])  # (B,)
        prediction: Tensor = self.unet(scaled.to(dtype), t, context=cond.context, y=cond.y)
        return prediction

    def __call__(self, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """x: (B, C, H, W), float32 or float64; sigma: a scalar or (B,), on any device. Returns x0 like x."""
        prediction = self.predict(x, sigma, cond).to(x.dtype)
        c_skip, c_out = self.parameterization.c_skip(sigma), self.parameterization.c_out(sigma)
        x0 = per_image(c_skip, x) * x + per_image(c_out, x) * prediction
        return x0.clamp(-1, 1) if self.clip_x0 else x0
