"""A second model that finishes what the first began: SDXL's ensemble of experts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ldm.models.diffusion.guidance import ROUNDING
from ldm.models.latent_diffusion import LatentDiffusion


@dataclass(frozen=True)
class Refiner:
    """`model` takes over after the share `at` of the noise levels, 0 (draws it all) to 1 (never asked).

    In timesteps: the first model keeps t >= round(T * (1 - at)), which is 200 of 1000 for 0.8. It is the rule of
    diffusers' `denoising_end` and `denoising_start`, and of the published refiner, which was trained on t < 200.
    """

    model: LatentDiffusion
    at: float = 0.8

    def __post_init__(self) -> None:
        if not 0 <= self.at <= 1:
            raise ValueError(
                f"the refiner is to begin at {self.at}; it can at 0 (draws it all) … 1 (never), such as 0.8"
            )

    def sigma_switch(self, base: LatentDiffusion) -> float:
        """The lowest noise level that is still the base's, less a rounding error; infinity where none is."""
        timesteps = base.schedule.num_timesteps
        t = round(timesteps - self.at * timesteps)
        return float(base.schedule.sigmas[t]) * (1 - ROUNDING) if t < timesteps else math.inf

    def check(self, base: LatentDiffusion) -> None:
        """ValueError unless both walk the same latents, and this one is shown nothing but words."""
        check_latents(base, self.model, "refiner")
        if shown := self.model.concat_channels:
            raise ValueError(
                f"the refiner's network takes {shown} channels beside the latent, and a refiner is shown none; "
                "give one that draws from words alone"
            )


def check_latents(model: LatentDiffusion, other: LatentDiffusion, role: str) -> None:
    """ValueError unless both walk the same latents; `role` is what the other is to the model."""
    ours, theirs = _latents(model), _latents(other)
    if differing := [f"{name} {ours[name]} and {theirs[name]}" for name in ours if ours[name] != theirs[name]]:
        raise ValueError(
            f"the model and its {role} have different latents ({', '.join(differing)}); "
            f"give a {role} of the same autoencoder"
        )


def check_autoguide(model: LatentDiffusion, worse: LatentDiffusion) -> None:
    """ValueError unless both walk the same latents, and are shown the same beside them."""
    check_latents(model, worse, "autoguide")
    ours, theirs = model.concat_channels, worse.concat_channels
    if ours != theirs:
        raise ValueError(
            f"the model's network takes {ours} channels beside the latent, its autoguide's {theirs}; "
            "give an autoguide that is shown the same"
        )


def _latents(model: LatentDiffusion) -> dict[str, float]:
    names = ("latent_channels", "downsample_factor", "scaling_factor", "shift_factor")
    return {name: getattr(model.autoencoder, name) for name in names}
