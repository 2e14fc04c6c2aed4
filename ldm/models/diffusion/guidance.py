"""Wrappers around a denoiser: each answers like a plain `denoise(x, sigma) -> x0`, so samplers hear of none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ldm.models.diffusion.denoiser import Conditioning
from ldm.models.diffusion.schedule import per_image
from ldm.models.diffusion.step import Denoise

ConditionalDenoise = Callable[[Tensor, Tensor, Conditioning], Tensor]

ROUNDING = 1e-6
"""Relative, of a noise level: a sampler may ask at one that went through float32."""

PerImage = float | Sequence[float]
"""One number for all pictures of a batch, or one for each."""

Edit = Callable[[slice], AbstractContextManager[None]]
"""edit(rows): while it lasts, the network is another for these rows of its batch, and itself for the rest."""


class Estimates(NamedTuple):
    """What a guided denoiser answers, and what that is made of: each like x, (B, C, h, w)."""

    x0: Tensor
    cond: Tensor  # the network's own estimate, told what to draw
    uncond: Tensor | None = None  # and told nothing; None where it was not asked


@dataclass(frozen=True)
class Guided:
    """A denoiser that can also return the estimates that its answer is computed from.

    Rescaling needs the conditional estimate besides the answer, and CFG++ the unconditional one. They are by-products:
    without this second output each of those wrappers would have to call the network again.
    """

    estimates: Callable[[Tensor, Tensor], Estimates]

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.estimates(x, sigma).x0


@dataclass(frozen=True)
class Away:
    """A worse estimate than the conditional one, to be led away from: x0 += weight * (x0_cond - x0_worse).

    With the network perturbed by `edit` this is PAG (Ahn et al. 2024, arXiv:2403.17377), weight its scale s.
    With a smaller or less trained network as `denoiser` it is autoguidance (Karras et al. 2024, arXiv:2406.02507),
    weight its w - 1. Classifier-free guidance is the same for a network that is told nothing.
    """

    cond: Conditioning
    weight: PerImage
    denoiser: ConditionalDenoise | None = None  # None: the one that is guided
    edit: Edit | None = None  # of a network that is given the rows of a batch as they are: all, in their order


def guided(
    denoiser: ConditionalDenoise,
    cond: Conditioning,
    uncond: Conditioning | None,
    scale: PerImage,
    *,
    others: Sequence[Away] = (),
    keep_uncond: bool = False,
) -> Guided:
    """Classifier-free guidance, Ho & Salimans 2022, arXiv:2207.12598: x0 = x0_uncond + scale * (x0_cond - x0_uncond),
    that is x0_cond + (scale - 1) * (x0_cond - x0_uncond), plus what leads away from `others` in the same way.

    scale: one for all pictures, or one for each. At scale 1 the answer is x0_cond: one network call, and `uncond` may
    be None. Otherwise all estimates of one network are one batched call, or several where shapes differ (prompts of
    unequal length): padding would be attended to and change the result. An estimate of weight 0 is not computed, except
    the unconditional one with `keep_uncond`.
    """
    weight = scale - 1 if isinstance(scale, int | float) else [one - 1 for one in scale]
    leading = [away for away in others if _any(away.weight)]
    if _any(weight) or keep_uncond:
        if uncond is None:
            raise ValueError(f"guidance scale {scale} needs an unconditional conditioning; give one, or use scale 1")
        leading.insert(0, Away(uncond, weight))
        keep_uncond = True
    calls = _calls(denoiser, [Away(cond, 0.0), *leading])

    def estimates(x: Tensor, sigma: Tensor) -> Estimates:
        x0_cond, *worse = _answers(calls, x, sigma)
        x0 = x0_cond
        for away, x0_worse in zip(leading, worse, strict=True):
            x0 = x0 + _factor(away.weight, x) * (x0_cond - x0_worse)
        return Estimates(x0, x0_cond, worse[0] if keep_uncond else None)

    return Guided(estimates)


def masked(denoise: Denoise, z: Tensor, mask: Tensor) -> Denoise:
    """Inpainting: paint where mask is 1, keep z where it is 0, blend between.

    z (B, C, h, w) and mask (broadcast to it) in the latent's dtype and device. Start from x = z + sigma * noise. Since
    the estimate *is* z outside the mask, every sampler keeps x on z + sigma * noise there, and ends exactly on z.
    """
    return lambda x, sigma: mask * denoise(x, sigma) + (1 - mask) * z


def switched(first: Denoise, second: Denoise, sigma_switch: float) -> Denoise:
    """Two experts, one for each end of the noise levels: `first` at sigma_switch and above, `second` below it.

    Podell et al. 2023, arXiv:2307.01952, section 2.5. The noise level of each call decides, so a sampler that makes
    two calls in a step may call both.
    """
    return lambda x, sigma: (first if float(sigma.max()) >= sigma_switch else second)(x, sigma)


def edited(denoiser: ConditionalDenoise, edit: Callable[[], AbstractContextManager[None]]) -> ConditionalDenoise:
    """With its network edited for the time of each call, such as by `freeu`; between calls it is as it was."""

    def denoise(x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        with edit():
            return denoiser(x, sigma, cond)

    return denoise


class _Call(NamedTuple):
    """One batched call of one network. `cond` is joined once for all steps, so that it stays the same object: what is
    computed from it alone can be kept (`modules.constants`)."""

    denoiser: ConditionalDenoise
    cond: Conditioning  # of all parts, one after another
    edits: list[Edit | None]  # of each part
    places: list[int]  # of the parts among all that is asked


def _calls(denoiser: ConditionalDenoise, asked: Sequence[Away]) -> list[_Call]:
    """A call for all whose network and shapes are the same."""
    groups: dict[object, list[int]] = {}
    for i, one in enumerate(asked):
        groups.setdefault((id(one.denoiser or denoiser), *_shapes(one.cond)), []).append(i)
    calls = []
    for places in groups.values():
        parts = [asked[i] for i in places]
        cond = Conditioning.cat([one.cond for one in parts]) if len(parts) > 1 else parts[0].cond
        calls.append(_Call(parts[0].denoiser or denoiser, cond, [one.edit for one in parts], places))
    return calls


def _answers(calls: Sequence[_Call], x: Tensor, sigma: Tensor) -> list[Tensor]:
    """The estimates of x that are asked for, in their order."""
    answers: dict[int, Tensor] = {}
    for call in calls:
        n = len(call.places)
        answers |= dict(zip(call.places, _answer(call, n, x, sigma).chunk(n), strict=True))  # each like x
    return [answers[i] for i in range(len(answers))]


def _answer(call: _Call, n: int, x: Tensor, sigma: Tensor) -> Tensor:
    batch = len(x)
    if n > 1:
        x, sigma = torch.cat([x] * n), sigma.repeat(n) if sigma.ndim else sigma  # (n * B, …)
    with ExitStack() as edits:
        for i, edit in enumerate(call.edits):
            if edit is not None:
                edits.enter_context(edit(slice(i * batch, (i + 1) * batch)))
        return call.denoiser(x, sigma, call.cond)


def _any(weight: PerImage) -> bool:
    return weight != 0 if isinstance(weight, int | float) else any(one != 0 for one in weight)


def _factor(weight: PerImage, x: Tensor) -> float | Tensor:
    """What multiplies x (B, C, h, w): a number, or one for each picture, (B, 1, 1, 1)."""
    if isinstance(weight, int | float):
        return weight
    return per_image(torch.tensor(weight, dtype=torch.float64), x)


def _shapes(cond: Conditioning) -> list[torch.Size | None]:
    return [None if value is None else value.shape for value in (cond.context, cond.concat, cond.y)]
