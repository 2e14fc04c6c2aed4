"""However a 3 × 3 convolution is computed, it is that convolution; each way is only taken where it pays."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from ldm.modules import conv3x3
from ldm.modules.conv3x3 import Conv3x3, choose_convolutions


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(5, 7, 3, padding=1), nn.Conv2d(7, 6, 3, padding=1, bias=False))


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("shape", [(1, 5, 6, 7), (3, 5, 4, 4), (2, 5, 1, 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_product_is_the_convolution(
    shape: tuple[int, ...],
    layout: torch.memory_format,
    monkeypatch: pytest.MonkeyPatch,
    relative_error: Callable[..., float],
) -> None:
    monkeypatch.setattr(conv3x3, "LEAST_WEIGHTS", 0)
    x, net = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=layout), network().double()
    expected, kept = net(x), net.state_dict()
    choose_convolutions(net)
    assert relative_error(net(x), expected) <= 1e-14
    assert all(torch.equal(kept[name], value) for name, value in net.state_dict().items())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("band", [1, 600, 1 << 22], ids=["a row", "some rows", "all rows"])
def test_gradients_are_those_of_the_convolution(
    layout: torch.memory_format, band: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conv3x3, "LEAST_CHANNELS", 5)
    monkeypatch.setattr(conv3x3, "BAND", band)
    x = torch.randn(2, 5, 6, 4, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    net = network().double()
    expected = torch.autograd.grad(net(x).square().sum(), [x, *net.parameters()])
    choose_convolutions(net)
    found = torch.autograd.grad(net(x).square().sum(), [x, *net.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(found, expected, strict=True))


def test_tiles_have_the_gradients_of_the_convolution() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(128, 130, 3, padding=1, dtype=torch.float64)
    x = torch.randn(2, 128, 32, 36, dtype=torch.float64, requires_grad=True)
    given = [x, *conv.parameters()]
    expected = torch.autograd.grad(conv(x).square().sum(), given)
    choose_convolutions(conv)
    out = conv(x)
    assert "_Convolution" in type(out.grad_fn).__name__
    found = torch.autograd.grad(out.square().sum(), given)
    assert all(torch.allclose(a, b, rtol=1e-9) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("grad", [True, False])
def test_autocast_and_another_dtype_are_the_convolution_s(grad: bool) -> None:
    """Where a tile would be taken otherwise."""
    torch.manual_seed(0)
    conv, x = nn.Conv2d(128, 128, 3, padding=1), torch.randn(1, 128, 64, 64)

    def answer() -> torch.Tensor:
        with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16):
            return conv(x.contiguous(memory_format=torch.channels_last))

    conv.to(memory_format=torch.channels_last)
    expected = answer()
    choose_convolutions(conv)
    assert answer().dtype == torch.bfloat16 and torch.equal(answer(), expected)
    with torch.set_grad_enabled(grad), pytest.raises(RuntimeError, match="dtype|type"):
        conv(x.double())


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize(
    ("shape", "side"),
    [
        ((2, 1280, 8, 8), None),
        ((2, 1280, 16, 16), 2),
        ((2, 640, 32, 32), 4),
        ((1, 128, 256, 256), 4),
        ((1, 128, 250, 256), 2),  # which 4 does not divide
        ((1, 128, 251, 256), None),
        ((16, 64, 16, 16), None),
        ((1, 64, 128, 128), None),
    ],
)
def test_a_tile_is_chosen_for_many_channels_and_places(shape: tuple[int, ...], side: int | None) -> None:
    conv = Conv3x3(shape[1], shape[1], 3, padding=1, device="meta")
    assert conv.tile_side(*shape[2:]) == side


@pytest.mark.usefixtures("no_grad")
def test_the_product_is_chosen_for_few_places_and_large_weights() -> None:
    large, small = Conv3x3(1024, 512, 3, padding=1, device="meta"), Conv3x3(64, 64, 3, padding=1, device="meta")
    assert large.is_product(torch.empty(2, 1024, 8, 8)) and not large.is_product(torch.empty(2, 1024, 32, 32))
    assert not small.is_product(torch.empty(2, 64, 8, 8))


def test_other_convolutions_keep_their_ways() -> None:
    others = [
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 3, stride=2, padding=1),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
    ]
    net = nn.ModuleList([*others, nn.Conv2d(4, 4, 3, padding=1)])
    choose_convolutions(net)
    assert [type(module) is Conv3x3 for module in net] == [False] * len(others) + [True]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_it_is_the_convolution_s(dtype: torch.dtype) -> None:
    """Tiles would be off by several hundredths."""
    torch.manual_seed(0)
    conv = nn.Conv2d(128, 128, 3, padding=1).to(dtype, memory_format=torch.channels_last)
    x = torch.randn(1, 128, 64, 64).to(dtype).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = conv(x)
        choose_convolutions(conv)
        assert type(conv) is Conv3x3 and conv.tile_side(64, 64) == 4
        assert torch.equal(conv(x), expected)
