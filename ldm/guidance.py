"""How a job is guided besides by its scale: what may be asked for, checked, and in which order it is put together."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ldm.models.diffusion.corrections import cfg_pp, rescaled, thresholded, within
from ldm.models.diffusion.guidance import Guided
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.modules.edits import freeu, self_attentions

CFG_PP_SAMPLERS = ("ddim", "ddpm", "euler", "euler_ancestral")  # whose step is one `ancestral_step`
CFG_PP_SCALE = 0.6  # gives about what 7.5 gives without


@dataclass(frozen=True)
class Guidance:
    """Each default changes nothing; ValueError for a number that makes no sense. They combine freely, in this order:

    FreeU changes the network; what it answers, classifier-free guidance, PAG and autoguidance add up; then comes
    rescaling, then thresholding; and CFG++ renoises with the result. Outside of the interval the network is asked once,
    for the condition, and is led by nothing (but FreeU).
    """

    rescale: float = 0.0  # phi of `rescaled`, 0 … 1; 0.7 in the paper
    threshold: float | None = None  # percentile of `thresholded` as a share, 0 … 1; 0.995 in the paper
    interval: tuple[float, float] | None = None  # (lowest, highest) sigma that is guided
    cfg_pp: bool = False  # guidance scales are 0 … 1 then, 0.6 where none is given
    pag: float = 0.0  # PAG's scale s; 3 is usual
    pag_layers: tuple[str, ...] = ("mid_block",)  # see `self_attentions`
    freeu: tuple[float, float, float, float] | None = None  # b1, b2, s1, s2; 1.3, 1.4, 0.9, 0.2 is usual
    autoguide: float = 2.0  # w of autoguidance, where there is a worse model; 1 is none

    def __post_init__(self) -> None:
        _check("rescale", self.rescale, 0, 1)
        if self.threshold is not None:
            _check("threshold", self.threshold, 0, 1)
        if self.interval is not None and not (len(self.interval) == 2 and 0 <= self.interval[0] <= self.interval[1]):
            raise ValueError(f"interval is {self.interval}; give the lowest sigma and then the highest")
        if self.freeu is not None and len(self.freeu) != 4:
            raise ValueError(f"freeu is {self.freeu}; give b1, b2, s1 and s2, such as 1.3, 1.4, 0.9, 0.2")
        for name, value in [
            ("pag", self.pag),
            ("autoguide", self.autoguide),
            *(("interval", end) for end in self.interval or ()),
            *(("freeu", factor) for factor in self.freeu or ()),
        ]:
            _check(name, value, -math.inf, math.inf)

    def check(self, model: LatentDiffusion, sampler: str, churned: bool = False) -> None:
        """ValueError where the model or the sampler cannot be guided so."""
        if self.cfg_pp and sampler not in CFG_PP_SAMPLERS:
            names = ", ".join(CFG_PP_SAMPLERS)
            raise ValueError(f"CFG++ is another step for {names}, and none for {sampler}; take one of these")
        if self.cfg_pp and churned:
            raise ValueError("CFG++ and churn both say where a step begins; leave one of them out")
        if self.pag:
            self_attentions(model.unet, self.pag_layers)
        if self.freeu is not None:
            with freeu(model.unet, *self.freeu):
                pass

    def check_scale(self, scale: float) -> float:
        """The guidance scale, if it can be one."""
        if not math.isfinite(scale):
            raise ValueError(f"guidance_scale is {scale}; it must be a finite number, such as 7.5")
        if self.cfg_pp and not 0 <= scale <= 2:
            raise ValueError(f"guidance_scale is {scale:g}; with CFG++ it is 0 … 1, at most 2; {CFG_PP_SCALE} is usual")
        return float(scale)

    def corrected(
        self, guided: Guided, unguided: Guided, sigmas: Tensor, eta: float, limit: float | None = None
    ) -> Guided:
        """With all that comes after the estimates add up. sigmas, eta: what the sampler is given; limit: of the numbers
        that the model draws, where they have one."""
        if self.rescale:
            guided = rescaled(guided, self.rescale)
        if self.threshold is not None:
            guided = thresholded(guided, self.threshold, limit)
        if self.interval is not None:
            guided = within(guided, unguided, *self.interval)
        return cfg_pp(guided, sigmas, eta) if self.cfg_pp else guided


def _check(name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        span = "a finite number" if math.isinf(high) else f"{low:g} … {high:g}"
        raise ValueError(f"{name} is {value}; it can be {span}")
