"""Edits of a network: what they change, and that nothing is left of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.utils.torch_utils import fourier_filter
from torch import Tensor, nn

from ldm.modules.attention import Attention, attention
from ldm.modules.edits import amplified, damped, freeu, identity_attention, self_attentions
from ldm.modules.unet import UNet

pytestmark = pytest.mark.usefixtures("no_grad")
SHAPE = {"block_out_channels": (32, 64, 96), "layers_per_block": 1, "head_channels": 16, "context_dim": 8}


@pytest.fixture
def unet(filled: Callable[[nn.Module], nn.Module]) -> Any:
    return filled(UNet(attention_levels=(True, True, False), **SHAPE)).double()


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    x, context = torch.randn(2, 4, 16, 16).double(), torch.randn(2, 5, 8).double()
    return x, torch.tensor([10.0, 500.0]), context


def state(network: nn.Module) -> list[Any]:
    """All that an edit could have left: attention functions and hooks."""
    layers = [module for module in network.modules() if isinstance(module, Attention)]
    hooks = [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in network.modules()]
    return [[layer.attention for layer in layers], [dict(vars(layer)).keys() for layer in layers], hooks]


def test_identity_attention_gives_each_place_its_own_value() -> None:
    torch.manual_seed(0)
    network = UNet(**SHAPE | {"transformer_depth": 0, "context_dim": None}, attention_levels=False).double()
    (layer,) = self_attentions(network, ["mid_block"])
    x = torch.randn(3, 96, 4, 4).double()
    tokens = layer.group_norm(x).flatten(2).transpose(1, 2)  # (3, 16, 96)
    nn.init.normal_(layer.to_out[0].weight)
    wanted = x + layer.to_out(layer.to_v(tokens)).transpose(1, 2).reshape(x.shape)
    plain = layer(x)
    with identity_attention(network):
        torch.testing.assert_close(layer(x), wanted)
    with identity_attention(network, rows=slice(1, 2)):
        some = layer(x)
    assert torch.equal(some[0], plain[0]) and torch.equal(some[2], plain[2])
    torch.testing.assert_close(some[1], wanted[1])
    assert (plain - wanted).abs().max() > 0.1


def test_two_edits_of_different_rows_go_together(unet: Any, inputs: tuple[Tensor, ...]) -> None:
    with identity_attention(unet, rows=slice(0, 1)), identity_attention(unet, ["up_blocks"], slice(1, 2)):
        both = unet(*inputs)
    with identity_attention(unet):
        torch.testing.assert_close(both[:1], unet(*inputs)[:1])
    with identity_attention(unet, ["up_blocks"]):
        torch.testing.assert_close(both[1:], unet(*inputs)[1:])


def test_which_layers_attend_to_themselves(unet: Any) -> None:
    (mid,) = self_attentions(unet, ["mid_block"])
    assert mid is unet.mid_block.attentions[0].transformer_blocks[0].attn1
    all_ = self_attentions(unet)
    assert all_ == [m for name, m in unet.named_modules() if name.endswith("attn1")] and len(all_) == 7
    assert len(self_attentions(unet, ["up_blocks.1", "up_blocks.1.attentions.0", "mid_block"])) == 3
    with pytest.raises(ValueError, match=r"no self-attention in 'up_blocks.0' of this network; it is in down_blocks.0"):
        self_attentions(unet, ["up_blocks.0"])  # this level does not attend
    with pytest.raises(ValueError, match=r"no self-attention in 'mid'"):
        self_attentions(unet, ["mid"])  # whole names, not their beginnings
    crossed = UNet(**SHAPE, attention_levels=True, only_cross_attention=(True, True, False))
    assert len(self_attentions(crossed)) == 4  # three of the deepest level, one of the middle
    with pytest.raises(ValueError, match="it is in nothing"):
        self_attentions(nn.Linear(1, 1))


@pytest.mark.parametrize("edit", [identity_attention, lambda network: freeu(network, 1.3, 1.4, 0.9, 0.2)])
def test_nothing_is_left(unet: Any, inputs: tuple[Tensor, ...], edit: Callable[..., Any]) -> None:
    own = unet.up_blocks[1].attentions[0].transformer_blocks[0].attn1
    own.attention = lambda q, k, v: attention(2 * q, k, v)  # what a user has put there stays
    before, plain = state(unet), unet(*inputs)
    with edit(unet):
        assert state(unet) != before
        other = unet(*inputs)
    assert state(unet) == before and torch.equal(unet(*inputs), plain)
    assert (other - plain).abs().max() > 1e-3
    with pytest.raises(RuntimeError, match="halfway"), edit(unet):
        raise RuntimeError("halfway")
    assert state(unet) == before and torch.equal(unet(*inputs), plain)
    with edit(unet):
        assert torch.equal(unet(*inputs), other)  # the second time as the first


def test_freeu_of_ones_is_nothing_and_each_number_is_something(unet: Any, inputs: tuple[Tensor, ...]) -> None:
    plain = unet(*inputs)
    with freeu(unet, 1, 1, 1, 1):
        assert torch.equal(unet(*inputs), plain)
    for i in range(4):
        with freeu(unet, *(1.2 if j == i else 1 for j in range(4))):
            assert (unet(*inputs) - plain).abs().max() > 1e-4


def test_freeu_tells_below_from_across(unet: Any, inputs: tuple[Tensor, ...]) -> None:
    """What a res-block gets is what torch.cat was given, each part changed on its own."""
    seen: dict[int, Tensor] = {}
    blocks = {i: unet.up_blocks[i].resnets[j] for i, j in ((0, 0), (1, 1), (2, 0))}
    hooks = [r.register_forward_pre_hook(lambda _, args, i=i: seen.update({i: args[0]})) for i, r in blocks.items()]
    unet(*inputs)
    plain = dict(seen)
    for hook in hooks:
        hook.remove()
    with freeu(unet, 1.5, 1.5, 0.2, 0.2):
        hooks = [r.register_forward_pre_hook(lambda _, args, i=i: seen.update({i: args[0]})) for i, r in blocks.items()]
        unet(*inputs)
    for i, below in ((0, 96), (2, 64)):
        unchanged = torch.allclose(seen[i][:, below:], plain[i][:, below:])
        assert unchanged == (i == 2)  # the third level's skips are as the way down made them
    torch.testing.assert_close(seen[0][:, :96], amplified(plain[0][:, :96], 1.5))
    torch.testing.assert_close(seen[0][:, 96:], damped(plain[0][:, 96:], 0.2))
    torch.testing.assert_close(seen[1][:, 64:], damped(plain[1][:, 64:], 0.2))


def test_freeu_is_for_unets() -> None:
    with (
        pytest.raises(ValueError, match="FreeU changes the way up of a UNet, and this is a Linear"),
        freeu(nn.Linear(1, 1), 1, 1, 1, 1),
    ):
        pass


@pytest.mark.parametrize("size", [(8, 8), (5, 8), (16, 6), (2, 2)])
def test_the_lowest_frequencies_are_damped_as_published(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size)
    torch.testing.assert_close(damped(x, 0.2), fourier_filter(x, threshold=1, scale=0.2), atol=1e-6, rtol=1e-5)
    flat = torch.full((1, 1, *size), 3.0)
    torch.testing.assert_close(damped(flat, 0.2), 0.2 * flat)
    assert damped(x.bfloat16(), 0.2).dtype == torch.bfloat16


def test_half_the_channels_are_amplified_by_place() -> None:
    x = torch.zeros(2, 4, 2, 2)
    x[0] = torch.tensor([[0.0, 1.0], [2.0, 4.0]])
    x[1] = 1.0  # the same everywhere: there is no place to amplify
    wanted = x.clone()
    wanted[0, :2] = torch.tensor([[0.0, 1.0 * (1 + 0.5 / 4)], [2.0 * (1 + 0.5 / 2), 4.0 * 1.5]])
    torch.testing.assert_close(amplified(x, 1.5), wanted)


def test_gradients_flow_through_edits(unet: Any, inputs: tuple[Tensor, ...]) -> None:
    x, t, context = inputs
    torch.manual_seed(1)
    towards, weights = torch.randn_like(x), torch.randn_like(x)

    def loss(x: Tensor) -> Tensor:
        with identity_attention(unet, rows=slice(1, 2)), freeu(unet, 1.3, 1.4, 0.9, 0.2):
            return (unet(x, t, context) * weights).sum()

    with torch.enable_grad():
        x = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(x), x)
    step = 1e-6
    slope = (loss(x + step * towards) - loss(x - step * towards)) / (2 * step)
    torch.testing.assert_close((gradient * towards).sum(), slope, rtol=1e-5, atol=1e-6)
