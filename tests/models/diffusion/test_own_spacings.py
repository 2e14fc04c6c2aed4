"""Which noise levels a sampler visits where nobody says: those with which it comes nearer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ldm.models.diffusion import SAMPLERS, SPACINGS, NoiseSchedule

SCHEDULE = NoiseSchedule()


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("name", ["dpmpp_2m", "unipc", "unipc_bh2", "deis", "res_multistep"])
def test_methods_of_higher_order_come_nearer_at_their_own_than_at_linspace(
    name: str, guidance: float, mixture: Callable[..., Tensor], normal: Callable[..., Tensor]
) -> None:
    """With 20 and with 30 steps, 30 being the default: on the mixture, and led towards one of its Gaussians."""
    mean = normal("mixture.mean.0", (4, 8, 8))

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        uncond = mixture(x, sigma)
        cond = (0.25 * x + sigma**2 * mean) / (0.25 + sigma**2)
        return uncond + guidance * (cond - uncond) if guidance != 1 else uncond

    x = normal("x", (4, 4, 8, 8)) * SCHEDULE.sigmas[-1]

    def draw(sampler: str, spacing: str, steps: int) -> Tensor:
        levels = SPACINGS[spacing](SCHEDULE, steps)
        return list(SAMPLERS[sampler][0](denoise, x, levels, noise=lambda x, a, b: torch.zeros_like(x)))[-1].x

    solution = draw("dpm_2", "karras", 300)
    for steps in (20, 30):
        own, plain = ((draw(name, one, steps) - solution).norm() for one in (SAMPLERS[name][1], "linspace"))
        assert own < 0.5 * plain
