"""A convolution by Winograd's tiles is the convolution, whatever is cut into bands and parts, and loses few digits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from ldm.modules import winograd as module
from ldm.modules.winograd import winograd

SIDES = pytest.mark.parametrize("side", [2, 4])
pytestmark = pytest.mark.usefixtures("no_grad")


@SIDES
@pytest.mark.parametrize("shape", [(1, 5, 4, 4), (3, 5, 8, 12), (2, 5, 12, 4)])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("band", [1, 800], ids=["a row of tiles, a channel", "some of each"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_it_is_the_convolution(
    side: int,
    shape: tuple[int, ...],
    biased: bool,
    band: int,
    layout: torch.memory_format,
    monkeypatch: pytest.MonkeyPatch,
    relative_error: Callable[..., float],
) -> None:
    monkeypatch.setattr(module, "BAND", band)
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=layout)
    weight = torch.randn(7, 5, 3, 3, dtype=torch.float64).contiguous(memory_format=layout)
    bias = torch.randn(7, dtype=torch.float64) if biased else None
    found = winograd(x, weight, bias, side)
    assert relative_error(found, F.conv2d(x, weight, bias, padding=1)) <= 1e-14
    assert found.is_contiguous(memory_format=torch.channels_last)


@SIDES
def test_few_digits_are_lost(side: int, relative_error: Callable[..., float]) -> None:
    """In float32: a mean that is far from zero too, as activations have."""
    torch.manual_seed(0)
    x, weight = torch.randn(1, 128, 16, 16) + 2, torch.randn(64, 128, 3, 3) / 34
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    assert relative_error(winograd(x, weight, None, side), exact) <= (1e-6 if side == 2 else 1e-5)
