"""The noise levels a model was trained on, and the map between sigma and the training timestep t."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from ldm.config import register

ZERO_SNR_SIGMA = 2.0**16
"""The last sigma of a zero-terminal-SNR schedule: where the signal should vanish, it is kept at 2^-16 of the noise.

The exact value is infinite, and x = z + sigma * noise would be too. At 2^-16 the signal is below the rounding of a
bfloat16, float16 or TF32 network input, while every formula stays an ordinary number in float32.
"""


def _betas(beta_schedule: str, start: float, end: float, n: int) -> Tensor:
    """(n,) float64: the variance that each training step adds, in VP coordinates."""
    grid = partial(torch.linspace, dtype=torch.float64, device="cpu")  # the model may be under construction on `meta`
    match beta_schedule:
        case "scaled_linear":  # linear in sqrt(beta): Rombach et al. 2022, arXiv:2112.10752
            return grid(start**0.5, end**0.5, n) ** 2
        case "linear":  # Ho et al. 2020, arXiv:2006.11239
            return grid(start, end, n)
        case "sqrt":
            return grid(start, end, n).sqrt()
        case "cosine":  # Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17; start and end play no part
            s = 0.008
            signal = torch.cos((grid(0, 1, n + 1) + s) / (1 + s) * math.pi / 2) ** 2
            return (1 - signal[1:] / signal[:-1]).clamp(0, 0.999)
    raise ValueError(f"beta_schedule is {beta_schedule!r}; use scaled_linear, linear, cosine or sqrt")


def _rescale_to_zero_snr(alphas_cumprod: Tensor) -> Tensor:
    """Shift and scale sqrt(alphas_cumprod) to end at (almost) zero. Lin et al. 2023, arXiv:2305.08891, alg. 1."""
    signal = alphas_cumprod.sqrt()
    first, last = signal[0], signal[-1]
    rescaled = ((signal - last) * first / (first - last)) ** 2
    rescaled[-1] = 1 / (1 + ZERO_SNR_SIGMA**2)
    return rescaled


@register("NoiseSchedule")
class NoiseSchedule:
    """Training noise levels, `num_timesteps` of them, as float64 tensors on the CPU.

    betas, alphas_cumprod: (T,) in the variance-preserving notation of Ho et al. 2020.
    sigmas: (T,) ascending, sqrt((1 - alphas_cumprod) / alphas_cumprod): the noise in x = z + sigma * noise.

    With `zero_terminal_snr` the levels are rescaled so that the last one holds (next to) no signal, see
    ZERO_SNR_SIGMA; the network must then predict v or x0, since its noise tells nothing about z at that level.
    """

    def __init__(
        self,
        beta_schedule: str = "scaled_linear",
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        num_timesteps: int = 1000,
        zero_terminal_snr: bool = False,
    ) -> None:
        if num_timesteps < 2:
            raise ValueError(f"num_timesteps is {num_timesteps}; a schedule needs at least 2")
        if not 0 < beta_start <= beta_end < 1:
            raise ValueError(f"beta_start {beta_start}, beta_end {beta_end}: need 0 < beta_start <= beta_end < 1")
        self.num_timesteps = num_timesteps
        self.zero_terminal_snr = zero_terminal_snr
        self.betas = _betas(beta_schedule, beta_start, beta_end, num_timesteps)
        self.alphas_cumprod = (1 - self.betas).cumprod(0)
        if zero_terminal_snr:
            self.alphas_cumprod = _rescale_to_zero_snr(self.alphas_cumprod)
            before = torch.cat([self.alphas_cumprod.new_ones(1), self.alphas_cumprod[:-1]])
            self.betas = 1 - self.alphas_cumprod / before
        self.sigmas = ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt()
        if not (self.sigmas.diff() > 0).all():
            raise ValueError(
                f"the sigmas of {beta_schedule!r} ({beta_start} … {beta_end}) do not ascend to {self.sigmas[-1]:.4g}; "
                "use smaller betas, or zero_terminal_snr=False where the schedule ends in pure noise by itself"
            )

    def t_to_sigma(self, t: Tensor) -> Tensor:
        """Noise level of timestep t in [0, T - 1], log-linear between whole ones and constant outside.

        Any shape and device; float64 for float64 t, else float32.
        """
        t = t.to(torch.promote_types(t.dtype, torch.float32)).clamp(0, self.num_timesteps - 1)
        sigmas, low = _like(self.sigmas, t), t.long()
        above = sigmas[(low + 1).clamp(max=self.num_timesteps - 1)]
        return sigmas[low] * (above / sigmas[low]) ** (t - low)  # exact at whole timesteps

    def sigma_to_t(self, sigma: Tensor) -> Tensor:
        """The inverse of t_to_sigma, fractional; sigma below the first level is t = 0, above the last t = T - 1."""
        sigma = sigma.to(torch.promote_types(sigma.dtype, torch.float32))
        log_sigmas, log_sigma = _like(self.sigmas.log(), sigma), sigma.log()
        low = (torch.searchsorted(log_sigmas, log_sigma.contiguous()) - 1).clamp(0, self.num_timesteps - 2)
        below, above = log_sigmas[low], log_sigmas[low + 1]
        return low + ((log_sigma - below) / (above - below)).clamp(0, 1)

    def add_noise(self, z: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """x = z + sigma * noise, for one sigma or one per image, (B,)."""
        return z + per_image(sigma, z) * noise


def per_image(value: Tensor, x: Tensor) -> Tensor:
    """A scalar, or one number per image (B,), shaped and cast so that it multiplies x (B, C, H, W)."""
    return _like(value, x).reshape(-1, *[1] * (x.ndim - 1)) if value.ndim else _like(value, x)


def sent(value: Tensor, x: Tensor) -> Tensor:
    """On x's device. Nobody waits on the way from the CPU: CUDA has copied such memory when the call returns."""
    return value.to(x.device, non_blocking=value.is_cpu and not x.is_mps)


def _like(value: Tensor, x: Tensor) -> Tensor:
    """Cast before the move: some devices have no float64."""
    return sent(value.to(x.dtype), x)
