"""A NaN at each stage: the error names the module, the step, the level, the dtype and the largest number before it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import ldm
from ldm import generate as room
from ldm.finite import NonFiniteError, Origin, Watch
from ldm.models.diffusion import SAMPLERS
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.provenance import origin_of_step

pytestmark = pytest.mark.fault
PICTURE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8))
Break = Callable[[LatentDiffusion], Any]


@pytest.fixture
def tiny(awake: Callable[[], LatentDiffusion]) -> LatentDiffusion:
    return awake()


def at_call(module: nn.Module, k: int, value: float = math.nan) -> Callable[..., Tensor]:
    """The module's answer to its calls from the k-th on has one such number in it."""
    calls: list[int] = []

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) < k:
            return output
        broken = output.clone()
        broken.view(-1)[3] = value
        return broken

    module.register_forward_hook(hook)
    return hook


def failure(model: LatentDiffusion, **options: Any) -> NonFiniteError:
    with pytest.raises(NonFiniteError) as caught:
        list(ldm.txt2img(model, "a red cube", **{"steps": 3, "seed": 7, "num_images": 2, **options}))
    return caught.value


def origin_of(error: NonFiniteError) -> Origin:
    assert error.origin is not None and str(error.origin) in str(error)
    assert math.isfinite(error.origin.largest) and error.origin.largest > 0
    return error.origin


LATE = [False, True]


@pytest.fixture(params=LATE, ids=["a CPU", "a GPU"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """As on a GPU the failure is heard of only when the steps are over."""

    class Late(Watch):
        def see(self, x: Any, stage: str) -> None:
            self._seen.append((stage, torch.isfinite(x).all()))
            if self.at_once:
                self.report()

    if request.param:
        monkeypatch.setattr(room, "Watch", Late)
    return bool(request.param)


def test_a_block_of_the_network(tiny: Any, device: bool) -> None:
    block = tiny.unet.mid_block.resnets[0].conv2
    block.register_forward_hook(lambda m, args, y: y * math.inf if float(tiny.level) < 1 else None)
    tiny.unet.register_forward_pre_hook(lambda m, args: setattr(tiny, "level", args[1].max() / 500))
    error = failure(tiny)
    origin = origin_of(error)
    assert origin.place == "unet.mid_block.resnets.0.conv2 (Conv2d)" and origin.dtype == torch.float32
    assert origin.weight is None and origin.sigma is not None
    step = int(re.search(r"after step (\d) of 3 \(ddim\) of seed 7, 8", str(error))[1])  # type: ignore[index]
    sigmas = ldm.pipeline._settings(tiny, {"steps": 3}).levels(tiny.schedule)
    assert step == 2 and origin.sigma == pytest.approx(float(sigmas[step - 1]))
    assert "no picture was made" in str(error) and str(error).count("\n") == 0


def test_the_largest_number_before(tiny: Any) -> None:
    tiny.unet.conv_in.register_forward_hook(lambda m, args, y: torch.full_like(y, -4321.0))
    at_call(tiny.unet.down_blocks[0].resnets[0].norm1, 1, math.inf)
    origin = origin_of(failure(tiny))
    assert origin.place.startswith("unet.down_blocks.0.resnets.0.norm1 ") and origin.largest == 4321


def test_a_weight(tiny: Any, device: bool) -> None:
    nn.init.constant_(tiny.unet.conv_out.bias, math.nan)
    error = failure(tiny)
    assert origin_of(error).place == "unet.conv_out (Conv2d)" and origin_of(error).weight == "bias"
    assert "after step 1 of 3" in str(error) and "its bias is not finite, so take another file" in str(error)


def test_the_text_encoder(tiny: Any, device: bool) -> None:
    name, layer = [(n, m) for n, m in tiny.text_encoder.named_modules() if isinstance(m, nn.LayerNorm)][0]
    at_call(layer, 1)
    origin = origin_of(failure(tiny))
    assert origin.place == f"text_encoder.{name} (LayerNorm)" and origin.sigma is None


def test_arithmetic_between_modules(tiny: Any) -> None:
    tiny.unet.mid_block.register_forward_pre_hook(lambda m, args: (args[0] * math.nan, *args[1:]))
    place = origin_of(failure(tiny)).place
    assert place.startswith("the input of unet.mid_block")


def test_guidance(tiny: Any) -> None:
    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return tiny.unet.conv_in(x) * math.inf

    x = torch.ones(1, 4, 4, 4)
    origin = origin_of_step({"": tiny}, lambda: denoise, [(x, torch.tensor(2.0))])
    assert (origin.place, origin.sigma) == ("guidance, of finite answers", 2.0) and origin.largest >= 1


def test_a_step_of_the_sampler(tiny: Any, device: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, name = SAMPLERS["ddim"]

    def broken(denoise: Any, x: Tensor, sigmas: Tensor, **options: Any) -> Iterator[Any]:
        for step in sampler(denoise, x, sigmas, noise=options["noise"]):
            yield step._replace(x=step.x / 0) if step.i >= 1 else step

    monkeypatch.setitem(SAMPLERS, "ddim", (broken, name))  # type: ignore[arg-type]
    error = failure(tiny)
    assert origin_of(error).place == "the sampler, of finite estimates" and "after step 2 of 3" in str(error)


def test_the_decoder_and_what_was_finished_before(tiny: Any) -> None:
    at_call(tiny.autoencoder.decoder.conv_out, 2)
    drawn = ldm.txt2img(tiny, "a", num_images=2, steps=1, seed=7)
    assert next(drawn).seed == 7
    with pytest.raises(NonFiniteError, match="the autoencoder's decoder of seed 8, in float32") as caught:
        next(drawn)
    assert origin_of(caught.value).place == "autoencoder.decoder.conv_out (Conv2d)"


def test_the_encoder(tiny: Any) -> None:
    at_call(tiny.autoencoder.encoder.conv_in, 1, -math.inf)
    with pytest.raises(NonFiniteError, match="the autoencoder's encoder, in float32") as caught:
        list(ldm.img2img(tiny, "a", PICTURE))
    assert origin_of(caught.value).place == "autoencoder.encoder.conv_in (Conv2d)"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_autoencoder_is_asked_again_in_float32(tiny: Any, dtype: torch.dtype) -> None:
    wanted = [result.image for result in ldm.txt2img(tiny, "a", num_images=2, steps=1)]
    tiny.autoencoder.decoder.conv_in.register_forward_hook(lambda m, args, y: y * math.inf if y.dtype == dtype else y)
    tiny.autoencoder.to(dtype)
    own, said = tiny.autoencoder, list[str]()
    found = [result.image for result in ldm.txt2img(tiny, "a", num_images=2, steps=1, notice=said.append)]
    name = str(dtype).removeprefix("torch.")
    assert said == [f"NaN or infinity in the autoencoder in {name}: done again in float32"]  # once
    assert tiny.autoencoder is own and next(own.parameters()).dtype == dtype
    for a, b in zip(found, wanted, strict=True):  # its weights were rounded
        assert np.abs(np.asarray(a, float) - np.asarray(b, float)).max() <= 8 and np.asarray(a).std() > 0


def test_where_float32_does_not_help_the_first_dtype_is_named(tiny: Any) -> None:
    nn.init.constant_(tiny.autoencoder.decoder.conv_out.bias, math.nan)
    tiny.autoencoder.half()
    said: list[str] = []
    error = failure(tiny, notice=said.append)
    assert said == [] and origin_of(error).dtype == torch.float16 and origin_of(error).weight == "bias"


def test_hooks_are_there_after_a_failure_only(tiny: Any) -> None:
    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in tiny.modules())

    seen: list[int] = []
    list(ldm.txt2img(tiny, "a", steps=2, on_step=lambda progress: seen.append(hooks())))
    nn.init.constant_(tiny.unet.conv_out.bias, math.nan)
    failure(tiny)
    assert seen == [0, 0] and hooks() == 0
