"""Gradients of a loss on the picture, through all of the shipped model and its steps, against finite differences."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import ldm
from ldm.models.diffusion import SAMPLERS, SPACINGS, guided
from ldm.models.latent_diffusion import LatentDiffusion

DETERMINISTIC = (
    "ddim plms ipndm euler heun dpm_2 lms dpm_fast dpmpp_2m unipc unipc_bh2 deis res_multistep".split()
)  # but for dpm_adaptive, whose steps are as long as x asks for: no gradient goes through their lengths


@pytest.fixture(scope="module")
def scenes() -> LatentDiffusion:
    return ldm.load("scenes").double().requires_grad_(False)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_gradients_reach_the_starting_latent_and_the_words(name, scenes, normal, last):
    sampler, spacing = SAMPLERS[name]
    sigmas = SPACINGS[spacing](scenes.schedule, 5)
    cond, uncond = scenes.condition(["a red cube"]), scenes.condition([None], negative=True)
    target = normal("target", (1, 3, 32, 32)) / 4

    def losses(x: Tensor, context: Tensor) -> Tensor:
        """(B,): of each start, led to its own words."""
        away = replace(uncond, context=uncond.context.expand_as(context))
        denoise = guided(scenes.denoiser, replace(cond, context=context), away, 3.0)
        z = last(sampler(denoise, x, sigmas, noise=lambda *_: pytest.fail("nothing is random here")))
        return (scenes.decode(z) - target).square().mean((1, 2, 3))

    x = normal("x", scenes.latent_shape(32, 32))[None] * sigmas[0]
    inputs = x.requires_grad_(), cond.context.double().requires_grad_()
    gradients = torch.autograd.grad(losses(*inputs).sum(), inputs)
    with torch.no_grad():
        along = [g / g.norm() * value.norm() for value, g in zip(inputs, gradients, strict=True)]  # of full size there
        moves = torch.tensor([[1e-5, -1e-5, 0, 0], [0, 0, 1e-5, -1e-5]], dtype=torch.float64)  # of x, then of the words
        moved = [
            value + move.reshape(-1, *[1] * (value.ndim - 1)) * step
            for value, move, step in zip(inputs, moves, along, strict=True)
        ]
        measured = losses(*moved).reshape(2, 2) @ torch.tensor([1.0, -1.0]).double() / 2e-5
    for value, gradient, slope in zip(inputs, gradients, measured.tolist(), strict=True):
        assert slope > 1e-3
        assert float(gradient.norm() * value.detach().norm()) == pytest.approx(slope, rel=1e-4)
