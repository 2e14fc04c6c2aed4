"""What is done to a guided estimate before a sampler sees it. Each wraps a `Guided` and is one."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm.models.diffusion.guidance import ROUNDING, Estimates, Guided
from ldm.models.diffusion.step import intervals, split


def within(inside: Guided, outside: Guided, low: float, high: float) -> Guided:
    """Guidance in an interval, Kynkäänniemi et al. 2024, arXiv:2404.07724: `inside` where low <= sigma <= high, else
    `outside`, usually the conditional estimate alone. sigma is the noise level at which the network is called."""
    return Guided(lambda x, sigma: (inside if low <= float(sigma.max()) <= high else outside).estimates(x, sigma))


def rescaled(guided: Guided, phi: float) -> Guided:
    """Lin et al. 2023, arXiv:2305.08891, section 3.4. Guidance raises the standard deviation of each picture; this
    moves it back towards that of the conditional estimate by the fraction phi.

    The paper rescales the network's v; here it is x0, which equals -v in the limit of high noise, where guidance raises
    it most. At phi 1 the standard deviation, over a picture's channels and pixels, is the conditional one.
    """

    def estimates(x: Tensor, sigma: Tensor) -> Estimates:
        found = guided.estimates(x, sigma)
        ratio = _std(found.cond) / _above_0(_std(found.x0))  # (B, 1, 1, 1)
        return found._replace(x0=found.x0 * (1 + phi * (ratio - 1)))

    return Guided(estimates)


def thresholded(guided: Guided, percentile: float, limit: float | None = None) -> Guided:
    """Dynamic thresholding, Saharia et al. 2022, arXiv:2205.11487, section 2.3. With s the given percentile of |x0| in
    a picture, where s exceeds the data's range, x0 is clipped to [-s, s] and divided by s / range.

    limit: the data's range is [-limit, limit], 1 for pixels. Latents have no fixed range. With limit None, each
    channel's mean is subtracted first, and the range is the largest absolute value that is then left in the picture's
    conditional estimate; so unguided estimates, and the mean of each channel, stay as they are.
    """

    def estimates(x: Tensor, sigma: Tensor) -> Estimates:
        found = guided.estimates(x, sigma)
        centre = found.x0.mean((2, 3), keepdim=True) if limit is None else torch.zeros_like(found.x0[..., :1, :1])
        spread = found.x0 - centre  # (B, C, h, w)
        most = _largest(found.cond - found.cond.mean((2, 3), keepdim=True)) if limit is None else limit
        reached = spread.abs().flatten(1).quantile(percentile, dim=1).reshape(-1, 1, 1, 1)
        reached = _above_0(reached.clamp(min=most))  # (B, 1, 1, 1)
        return found._replace(x0=centre + spread.clamp(-reached, reached) * (most / reached))

    return Guided(estimates)


def cfg_pp(guided: Guided, sigmas: Tensor, eta: float = 0.0) -> Guided:
    """CFG++, Chung et al. 2024, arXiv:2406.08070, algorithm 2: a step goes to the guided x0 and renoises it along the
    *unconditional* direction (x - x0_uncond) / sigma; guidance scales are 0 … 1 then.

    This changes the sampler's step, yet samplers need not know. From sigma, ancestral_step goes down to
    x0 + r (x - x0), r = sigma_down / sigma, and wants x0_guided + r (x - x0_uncond): which is what it makes of
    x0_uncond + (x0_guided - x0_uncond) / (1 - r). So this is exact for each sampler that takes one such step between
    neighbours in `sigmas` (ddim, ddpm, euler, euler_ancestral), with its eta, and for no other; a `Step.x0` on the way
    shows that exaggerated estimate. ValueError where it is asked at another level, as churn would have it. Where no
    unconditional estimate was asked for, x0 is left alone.
    """
    levels = intervals(sigmas)

    def estimates(x: Tensor, sigma: Tensor) -> Estimates:
        found, level = guided.estimates(x, sigma), float(sigma.max())
        if found.uncond is None:
            return found
        start, end = min(levels, key=lambda pair: abs(pair[0] - level))
        if abs(start - level) > ROUNDING * start:
            raise ValueError(f"CFG++ has no step from sigma {level:g}, which is none of those visited; leave churn out")
        sigma_down, _ = split(start, end, eta)
        return found._replace(x0=found.uncond + (found.x0 - found.uncond) / (1 - sigma_down / start))

    return Guided(estimates)


def _std(x: Tensor) -> Tensor:
    return x.flatten(1).std(dim=1).reshape(-1, 1, 1, 1)


def _largest(x: Tensor) -> Tensor:
    return x.abs().flatten(1).amax(dim=1).reshape(-1, 1, 1, 1)


def _above_0(x: Tensor) -> Tensor:
    return x.clamp(min=torch.finfo(x.dtype).tiny)
