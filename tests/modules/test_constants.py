"""What is made of a condition is made once, and is what would have been made again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldm.modules.constants import Constants
from ldm.modules.edits import freeu, identity_attention, instead
from ldm.modules.unet import UNet

SHAPE = {"block_out_channels": (32, 64), "layers_per_block": 1, "head_channels": 16, "context_dim": 8, "y_dim": 6}
SHAPE["attention_levels"] = True


@pytest.fixture
def unet(filled: Callable[[nn.Module], nn.Module]) -> Any:
    return filled(UNet(**SHAPE))


def inputs(seed: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(seed)
    return torch.randn(2, 4, 8, 8), torch.tensor([10.0, 500.0]), torch.randn(2, 5, 8), torch.randn(2, 6)


def calls(unet: nn.Module, run: Callable[[], object]) -> int:
    """How many of the layers that read the condition were really run."""
    ran: list[nn.Module] = []
    layers = Constants(unet).layers
    forwards = {layer: layer.forward for layer in layers}

    def spy(layer: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda x: (ran.append(layer), forwards[layer](x))[1]

    with instead({layer: spy(layer) for layer in layers}):
        run()
    return len(ran)


def test_layers_of_the_condition_run_once_and_answers_are_the_same_bits(unet: Any) -> None:
    constants, (x, t, context, y) = Constants(unet), inputs()
    assert len(constants.layers) == 1 + 2 * 7  # add_embedding, to_k and to_v of 7 transformer blocks

    def run() -> None:
        for step in range(3):
            with torch.inference_mode():
                plain = unet(x + step, t, context, y)
                with constants():
                    assert torch.equal(unet(x + step, t, context, y), plain)

    assert calls(unet, run) == 3 * 15 + 15
    assert not any("forward" in vars(module) for module in unet.modules())


def test_another_tensor_or_other_numbers_in_it_are_another_condition(unet: Any) -> None:
    constants, (x, t, context, y) = Constants(unet), inputs()
    with torch.no_grad():
        with constants():
            unet(x, t, context, y)
        other = inputs(1)[2]
        plain = unet(x, t, other, y)
        with constants():
            assert torch.equal(unet(x, t, other, y), plain)
        context.copy_(other)  # in place: the same object
        with constants():
            assert torch.equal(unet(x, t, context, y), plain)


def test_refresh_writes_the_new_answers_where_the_old_ones_were(unet: Any) -> None:
    constants, (x, t, context, y) = Constants(unet), inputs()
    other = inputs(1)[2]
    with torch.inference_mode():
        place = context.clone()
        with constants():
            before = unet(x, t, place, y)
            kept = {id(made.answer) for made in constants._made[place].values()}
            place.copy_(other)
            assert torch.equal(unet(x, t, place, y), before)  # inference tensors count no writes: one has to say it
            constants.refresh(place)
            refreshed = unet(x, t, place, y)
        assert torch.equal(refreshed, unet(x, t, other, y))
        assert {id(made.answer) for made in constants._made[place].values()} == kept


def test_nothing_is_kept_of_what_is_gone_nor_with_gradients(unet: Any) -> None:
    constants, (x, t, context, y) = Constants(unet), inputs()
    with torch.inference_mode(), constants():
        unet(x, t, context.clone(), y.clone())
    assert len(constants._made) == 0
    weight = unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.weight
    with constants():
        unet(x, t, context, y).sum().backward()
        first, weight.grad = weight.grad.clone(), None
        unet(x, t, context, y).sum().backward()
    assert first.abs().max() > 0 and torch.equal(weight.grad, first)
    assert len(constants._made) == 0


def test_edits_and_attention_functions_go_together_with_it(unet: Any) -> None:
    constants, (x, t, context, y) = Constants(unet), inputs()
    block = unet.mid_block.attentions[0].transformer_blocks[0]
    attention, seen = block.attn2.attention, []
    with torch.inference_mode():
        with identity_attention(unet, rows=slice(1, 2)), freeu(unet, 1.3, 1.4, 0.9, 0.2):
            plain = unet(x, t, context, y)
            with constants():
                unet(x, t, context, y)
                assert torch.equal(unet(x, t, context, y), plain)
        block.attn2.attention = lambda q, k, v: (seen.append((k, v)), attention(q, k, v))[1]
        with constants():
            unet(x, t, context, y), unet(x, t, context, y)
    assert len(seen) == 2 and seen[0][0].data_ptr() == seen[1][0].data_ptr()
    assert torch.equal(seen[0][1], block.attn2.split_heads(block.attn2.to_v(context)))


def test_forwards_are_given_back_in_whatever_order_and_after_an_error(unet: Any) -> None:
    layer = unet.conv_in
    plain = layer.forward
    with instead({layer: lambda x: x + 1}):
        with pytest.raises(KeyError), instead({layer: lambda x: x + 2}):
            assert layer(1) == 3
            raise KeyError
        assert layer(1) == 2
    assert "forward" not in vars(layer) and layer.forward == plain
