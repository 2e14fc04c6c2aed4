"""Memory that runs out at the k-th call: the same pictures come out, of smaller batches, or a sentence does."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ldm
from ldm import memory
from ldm.generate import Result
from ldm.memory import NotEnoughMemoryError, is_out_of_memory
from ldm.models.latent_diffusion import LatentDiffusion

pytestmark = pytest.mark.fault
CPU = "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"
ERRORS = [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), RuntimeError(CPU), MemoryError()]


@pytest.fixture(scope="module")
def made(awake: Callable[[], LatentDiffusion]) -> LatentDiffusion:
    return awake()


@pytest.fixture
def short(made: LatentDiffusion, monkeypatch: pytest.MonkeyPatch) -> Callable[..., LatentDiffusion]:
    """`short(part, fails)`: the model, whose part has no memory at a call for which fails(k, arguments) says so."""

    def make(part: str, fails: Callable[[int, Any], bool], error: BaseException = ERRORS[1]) -> LatentDiffusion:
        module, name = (made.unet, "forward") if part == "unet" else (made.autoencoder, part)
        function, count = getattr(module, name), [0]

        def failing(*args: Any, **options: Any) -> Any:
            count[0] += 1
            if fails(count[0], args):
                raise error
            return function(*args, **options)

        monkeypatch.setattr(module, name, failing)
        return made

    return make


def draw(model: LatentDiffusion, **options: Any) -> list[Result]:
    return list(ldm.txt2img(model, "a", **{"num_images": 5, "batch_size": 4, "steps": 2, "seed": 3, **options}))


def difference(a: list[Result], b: list[Result]) -> float:
    assert [result.seed for result in a] == [result.seed for result in b]
    pairs = zip(a, b, strict=True)
    return max(float(np.abs(np.asarray(x.image, float) - np.asarray(y.image, float)).max()) for x, y in pairs)


@pytest.mark.parametrize("error", ERRORS, ids=["CUDA", "CPU", "Python"])
@pytest.mark.parametrize("k", [1, 2])
def test_a_batch_is_halved_and_the_pictures_are_the_same(made: Any, short: Any, k: int, error: Any) -> None:
    whole = draw(made)
    said: list[str] = []
    found = draw(short("unet", lambda i, _: i == k, error), notice=said.append)
    assert difference(found, whole) <= 1  # the last bits of floats
    assert [len(result.batch) for result in found] == [2, 2, 2, 2, 1]
    assert said == ["out of memory with 4 pictures at once: from here on 2 at once, of the same seeds"]


def test_down_to_one_and_halves_keep_within_their_batch(made: Any, short: Any) -> None:
    whole = draw(made, num_images=7, batch_size=3)
    said: list[str] = []
    model = short("unet", lambda i, args: len(args[0]) > 2)  # with guidance, two rows a picture
    found = draw(model, num_images=7, batch_size=3, notice=said.append)
    assert [(len(result.batch), result.index) for result in found] == [(1, 0)] * 7
    assert len(said) == 2 and difference(found, whole) <= 1
    assert [seed.seed for seed in found] == list(range(3, 10))


def test_what_is_too_large_alone_is_a_sentence_and_what_was_finished_stays(short: Any) -> None:
    found: list[int] = []
    with pytest.raises(NotEnoughMemoryError, match=r"of seed 4, .* draw a smaller picture") as caught:
        for result in ldm.txt2img(short("unet", lambda i, _: i > 2), "a", num_images=3, batch_size=1, steps=2, seed=3):
            found.append(result.seed)
    assert found == [3] and "\n" not in str(caught.value)


@pytest.mark.long
def test_a_decoder_goes_on_in_tiles(made: Any, short: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "SMALLEST_TILE", 2)
    whole, said = draw(made), list[str]()
    found = draw(short("decode", lambda i, args: args[0].shape[-1] > 2), notice=said.append)
    side = 2 * made.autoencoder.downsample_factor
    assert said == [
        f"out of memory in the autoencoder: decoded in tiles of {side} pixels, whose tones may differ a little"
    ]
    assert all(result.image.size == other.image.size for result, other in zip(found, whole, strict=True))
    assert 0 < difference(found, whole)
    means = [
        np.mean(np.asarray(r.image, float) - np.asarray(o.image, float)) for r, o in zip(found, whole, strict=True)
    ]
    assert max(map(abs, means)) < 12  # the same picture, in other tones
    monkeypatch.setattr(memory, "SMALLEST_TILE", 16)
    with pytest.raises(NotEnoughMemoryError, match="decoding one picture of 32x32 pixels"):
        draw(made)


def test_an_encoder_goes_on_in_tiles(made: Any, short: Any, monkeypatch: Any, caplog: Any) -> None:
    """A picture to begin from, at strength 0: its round trip."""
    monkeypatch.setattr(memory, "SMALLEST_TILE", 2)
    picture, options = Image.linear_gradient("L").resize((32, 32)).convert("RGB"), {"strength": 0.0, "seed": 3}
    whole = list(ldm.img2img(made, "a", picture, **options))
    model = short("encode", lambda i, args: args[0].shape[-1] > 16, ERRORS[0])
    with caplog.at_level(logging.WARNING):
        found = list(ldm.img2img(model, "a", picture, **options))
    (said,) = [record.message for record in caplog.records]
    assert said == "out of memory in the autoencoder: encoded in tiles of 16 pixels, whose tones may differ a little"
    assert found[0].image.size == (32, 32) and 0 < difference(found, whole)
    assert abs(np.mean(np.asarray(found[0].image, float) - np.asarray(whole[0].image, float))) < 12
    mask = Image.new("L", (32, 32), 255)
    monkeypatch.setattr(memory, "SMALLEST_TILE", 16)
    with pytest.raises(NotEnoughMemoryError, match="encoding one picture of 32x32 pixels, .* draw a smaller picture"):
        ldm.inpaint(made, "a", picture, mask)


@pytest.mark.parametrize("k", [5, 60])
def test_in_the_middle_of_a_call(made: Any, k: int) -> None:
    """At the k-th module inside of the network, in its second call: half of what it makes is there already."""
    whole, said, count = draw(made), list[str](), [0]
    inner = [module for module in made.unet.modules() if not list(module.children())]

    def failing(*_: Any) -> None:
        count[0] += 1
        if count[0] == len(inner) + k:
            raise ERRORS[1]

    hooks = [module.register_forward_hook(failing) for module in inner]
    try:
        found = draw(made, notice=said.append)
    finally:
        for hook in hooks:
            hook.remove()
    assert difference(found, whole) <= 1 and [len(result.batch) for result in found] == [2, 2, 2, 2, 1]
    assert said == ["out of memory with 4 pictures at once: from here on 2 at once, of the same seeds"]


def test_without_a_listener_it_is_in_the_log(short: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        draw(short("unet", lambda i, _: i == 1))
    assert [record.message[:34] for record in caplog.records] == ["out of memory with 4 pictures at o"]


def test_other_errors_are_not_taken_for_it(short: Any) -> None:
    assert all(map(is_out_of_memory, ERRORS)) and not is_out_of_memory(ValueError("out of memory"))
    with pytest.raises(RuntimeError, match="^mat1 and mat2"):
        draw(short("unet", lambda *_: True, RuntimeError("mat1 and mat2 shapes cannot be multiplied")))
