"""A convolution as a product of matrices is that convolution, and only taken where it pays."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from ldm.modules import unrolled
from ldm.modules.unrolled import UnrolledConv2d, unroll


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
    monkeypatch.setattr(unrolled, "LEAST_WEIGHTS", 0)
    x, net = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=layout), network().double()
    expected, kept = net(x), net.state_dict()
    unroll(net)
    assert relative_error(net(x), expected) <= 1e-14
    assert all(torch.equal(kept[name], value) for name, value in net.state_dict().items())


def test_gradients_are_those_of_the_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unrolled, "LEAST_WEIGHTS", 0)
    x, net = torch.randn(2, 5, 4, 4, dtype=torch.float64), network().double()
    expected = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
    unroll(net)
    found = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
    assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(found, expected, strict=True))


def test_it_is_chosen_for_few_places_and_large_weights() -> None:
    large, small = UnrolledConv2d(1024, 512, 3, padding=1), UnrolledConv2d(64, 64, 3, padding=1)
    assert large.takes(torch.empty(2, 1024, 16, 16)) and not large.takes(torch.empty(2, 1024, 32, 32))
    assert not small.takes(torch.empty(2, 64, 8, 8))


def test_other_convolutions_keep_their_ways() -> None:
    others = [
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 3, stride=2, padding=1),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
    ]
    net = nn.ModuleList([*others, nn.Conv2d(4, 4, 3, padding=1)])
    unroll(net)
    assert [type(module) is UnrolledConv2d for module in net] == [False] * len(others) + [True]
