"""DeepCache: which calls are whole, what the others see, and that without it nothing is changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldm.generate import sample
from ldm.guidance import Guidance
from ldm.items import Item
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.modules.deep_cache import DeepCache
from ldm.modules.edits import identity_attention
from ldm.settings import resolve

ITEMS = [Item("a cube", None, 3), Item("a cone", None, 4)]


@pytest.fixture
def model(awake: Any) -> LatentDiffusion:
    found = awake()
    assert isinstance(found, LatentDiffusion)
    return found


def draw(model: LatentDiffusion, **wishes: Any) -> Tensor:
    with torch.inference_mode():
        return list(sample(model, ITEMS, resolve(model, **{"steps": 5, **wishes})))[-1].x


def counted(module: nn.Module) -> list[int]:
    calls: list[int] = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_one_is_the_network_itself(model: LatentDiffusion) -> None:
    given = torch.randn(2, 4, 8, 8), torch.tensor([5.0, 5.0]), torch.randn(2, 6, model.unet.context_dim)
    with torch.no_grad():
        expected = model.unet(*given)
        with DeepCache(model.unet, 1)():
            assert all(torch.equal(model.unet(*given), expected) for _ in range(3))
    assert torch.equal(draw(model, deep_cache=1), draw(model))


@pytest.mark.parametrize(("every", "whole"), [(1, 5), (2, 3), (3, 2), (9, 1)])
def test_deep_levels_run_in_one_step_of_n(model: LatentDiffusion, every: int, whole: int) -> None:
    """Seen from inside: a block that is skipped does not call what it is made of."""
    unet = model.unet
    deep = [counted(block.resnets[0]) for block in (*unet.down_blocks[1:], unet.mid_block, *unet.up_blocks[:-1])]
    first = [counted(block.resnets[0]) for block in (unet.down_blocks[0], unet.up_blocks[-1])]
    draw(model, deep_cache=every)
    assert [len(calls) for calls in deep] == [whole] * len(deep)
    assert [len(calls) for calls in first] == [5, 5]


def test_what_is_skipped_answers_as_in_the_call_before(model: LatentDiffusion) -> None:
    """The last block's input of the first call, and in the second all else by hand."""
    unet = model.unet
    seen: list[Tensor] = []
    unet.up_blocks[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    x, later = torch.randn(2, 1, 4, 8, 8)
    t, context = torch.tensor([900.0]), torch.randn(1, 6, unet.context_dim)
    with torch.no_grad():
        plain = unet(later, t - 100, context)
        with DeepCache(unet, 2)():
            unet(x, t, context)
            approximate = unet(later, t - 100, context)
            again = unet(later, t - 100, context)
    _, first, second, third = seen
    assert torch.equal(first, second) and not torch.equal(second, third)
    assert not torch.equal(approximate, plain) and torch.equal(again, plain)


def test_each_condition_and_edit_has_its_own(model: LatentDiffusion) -> None:
    unet, x, t = model.unet, torch.randn(1, 4, 8, 8), torch.tensor([500.0])
    one, other = torch.randn(2, 1, 6, unet.context_dim)
    with torch.no_grad():
        expected = unet(x, t, other)
        with identity_attention(unet):
            perturbed = unet(x, t, one)
        with DeepCache(unet, 2)():
            unet(x, t, one)
            assert torch.equal(unet(x, t, other), expected)
            with identity_attention(unet):
                assert torch.equal(unet(x, t, one), perturbed)


def test_with_all_that_guides(model: LatentDiffusion) -> None:
    """A step that asks more than one thing, twice: the same both times, and otherwise than without."""
    guidance = Guidance(pag=2.0, freeu=(1.2, 1.2, 0.9, 0.5))
    wishes: dict[str, Any] = {"guidance": guidance, "guidance_scale": 3.0, "sampler": "heun"}
    twice = [draw(model, deep_cache=2, **wishes) for _ in range(2)]
    assert torch.equal(*twice) and torch.isfinite(twice[0]).all()
    assert not torch.equal(twice[0], draw(model, **wishes))


def test_what_cannot_be(model: LatentDiffusion) -> None:
    with pytest.raises(ValueError, match="deep_cache is 0; it can be 1"):
        resolve(model, deep_cache=0)
    with pytest.raises(ValueError, match="this is a Linear; leave it out"):
        DeepCache(nn.Linear(1, 1), 2)
