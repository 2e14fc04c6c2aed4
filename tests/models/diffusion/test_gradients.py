"""Gradients of a loss on the picture, through the shipped model's every part and step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import ldm
from ldm.models.diffusion import SAMPLERS, SPACINGS, guided
from ldm.models.latent_diffusion import LatentDiffusion


@pytest.fixture(scope="module")
def scenes() -> LatentDiffusion:
    return ldm.load("scenes").double().requires_grad_(False)


@pytest.mark.parametrize("name", ["ddim", "lms", "unipc"])
def test_gradients_reach_the_starting_latent_and_the_words(name, scenes, normal, last):
    sampler, spacing = SAMPLERS[name]
    sigmas = SPACINGS[spacing](scenes.schedule, 5)
    cond, uncond = scenes.condition(["a red cube"]), scenes.condition([None], negative=True)
    target = normal("target", (1, 3, 64, 64)) / 4

    def loss(x: Tensor, context: Tensor) -> Tensor:
        denoise = guided(scenes.denoiser, replace(cond, context=context), uncond, 3.0)
        z = last(sampler(denoise, x, sigmas, noise=lambda *_: pytest.fail("nothing is random here")))
        return (scenes.decode(z) - target).square().mean()

    x = normal("x", scenes.latent_shape(64, 64))[None] * sigmas[0]
    context = cond.context.double()
    inputs = x.requires_grad_(), context.clone().requires_grad_()
    gradients = torch.autograd.grad(loss(*inputs), inputs)
    with torch.no_grad():
        for i, (value, gradient) in enumerate(zip(inputs, gradients, strict=True)):
            step = 1e-5 * gradient / gradient.norm() * value.norm()  # along it, a derivative is of full size
            ahead, behind = ([*inputs[:i], value + sign * step, *inputs[i + 1 :]] for sign in (1, -1))
            measured = (loss(*ahead) - loss(*behind)) / (2 * step.norm())
            assert float(gradient.norm()) == pytest.approx(float(measured), rel=1e-4)
            assert measured * value.norm() > 1e-3
