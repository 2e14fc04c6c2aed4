"""A step never waits for the device. The meta device stands for it: nothing there can be read; who tries to, fails."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ldm.models.diffusion import SAMPLERS, SPACINGS, Conditioning, Denoiser, NoiseSchedule, guided, masked, switched
from ldm.models.diffusion.corrections import cfg_pp, rescaled, thresholded, within
from ldm.models.diffusion.guidance import Away
from ldm.models.diffusion.prompted import Scene, prompted
from ldm.models.diffusion.tiles import tiled
from ldm.modules.constants import Constants
from ldm.modules.edits import freeu, identity_attention
from ldm.modules.unet import UNet
from ldm.noise import BrownianNoise

pytestmark = pytest.mark.usefixtures("no_grad")
SCHEDULE = NoiseSchedule()
STEPS = 3


class Waits(TorchDispatchMode):
    """Notes every copy from the CPU to the device that is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        answer = function(*args, **kwargs)
        name = function.overloadpacket.__name__
        if name in ("_to_copy", "copy_"):
            source = args[0] if name == "_to_copy" else args[1]
            waited = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
            if source.is_cpu and answer.is_meta and waited:
                self.found.append(f"{name} {tuple(source.shape)}")
        return answer


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    with torch.device("meta"):
        unet = UNet(
            block_out_channels=(32, 64), layers_per_block=1, attention_levels=True, head_channels=16, context_dim=8
        )
    return Denoiser(unet, SCHEDULE, "v")


class Small(nn.Module):
    """Takes and gives what a UNet does, in two operations: on the meta device a UNet's take half a second."""

    def forward(self, x: Tensor, t: Tensor, context: Tensor, y: Tensor | None = None) -> Tensor:
        return x * t.view(-1, 1, 1, 1) + context.mean()


@pytest.fixture(scope="module")
def small() -> Denoiser:
    return Denoiser(Small(), SCHEDULE, "v")


def cond(tokens: int = 5) -> Conditioning:
    return Conditioning(torch.empty(2, tokens, 8, device="meta"))


def walk(denoise: Any, sampler: str, **options: Any) -> list[str]:
    function, spacing = SAMPLERS[sampler]
    sigmas, waits = SPACINGS[spacing](SCHEDULE, STEPS), Waits()
    if sampler in ("euler", "heun", "dpm_2"):
        options["s_churn"] = 1.0
    with waits:
        for step in function(
            denoise, torch.empty(2, 4, 8, 8, device="meta"), sigmas, noise=BrownianNoise([0, 1]), **options
        ):
            assert step.x.is_meta and step.x.shape == (2, 4, 8, 8)
    return waits.found


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "dpm_adaptive"])
def test_samplers_read_nothing_and_wait_for_nothing(small: Denoiser, sampler: str) -> None:
    assert walk(guided(small, cond(), cond(), 3.0), sampler) == []


def test_neither_does_a_network(denoiser: Denoiser) -> None:
    assert walk(guided(denoiser, cond(), cond(), 3.0), "ddim") == []


def test_who_reads_is_found(small: Denoiser) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        walk(guided(small, cond(), cond(), 3.0), "dpm_adaptive")

    def waits(x: Tensor, sigma: Tensor) -> Tensor:
        return x * sigma.float().to(x.device)

    assert len(walk(waits, "ddim")) == STEPS


@pytest.mark.long
def test_neither_do_guidance_and_what_else_is_around_a_denoiser(denoiser: Denoiser) -> None:
    sigmas = SPACINGS["uniform"](SCHEDULE, STEPS)
    unet = denoiser.unet
    assert isinstance(unet, UNet)
    perturbed = Away(cond(), [1.0, 2.0], edit=lambda rows: identity_attention(unet, rows=rows))
    led = guided(tiled(denoiser, 6, 2), cond(), cond(7), [3.0, 2.0], others=[perturbed], keep_uncond=True)
    led = cfg_pp(within(thresholded(rescaled(led, 0.7), 0.99), guided(denoiser, cond(), None, 1.0), 0.5, 5.0), sigmas)
    z, mask = torch.empty(2, 4, 8, 8, device="meta"), torch.empty(2, 1, 8, 8, device="meta")
    with Constants(unet)(), freeu(unet, 1.3, 1.4, 0.9, 0.2):
        assert walk(masked(switched(led, led, 1.0), z, mask), "ddim") == []


def test_neither_do_prompts_that_change(small: Denoiser) -> None:
    one, two, long = (Conditioning(torch.empty(1, n, 8, device="meta")) for n in (5, 5, 9))
    scripts = [[Scene(5.0, [(1.0, one)]), Scene(0.0, [(0.5, two), (0.5, long)])], [Scene(0.0, [(1.0, two)])]]
    told = Conditioning(y=torch.arange(2))
    assert walk(guided(prompted(small, scripts), told, told, 3.0), "ddim") == []
