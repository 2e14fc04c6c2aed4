"""What is computed band by band is what is computed one after the other; somebody who watches a part sees it called."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ldm.modules import banded, winograd
from ldm.modules.banded import affine, in_bands, in_bands_doubled
from ldm.modules.blocks import ResnetBlock, Upsample
from ldm.modules.conv3x3 import Conv3x3, choose_convolutions
from ldm.modules.edits import instead

RelativeError = Callable[..., float]
BANDS = pytest.mark.parametrize("band", [1, 1 << 14, 1 << 24], ids=["a row", "some rows", "all rows"])


@pytest.fixture(autouse=True)
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(banded, "LEAST", 0)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, band: int, no_grad: None) -> None:
    for module in (banded, winograd):
        monkeypatch.setattr(module, "BAND", band)


def picture(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(*shape, dtype=dtype).add_(2).contiguous(memory_format=torch.channels_last)


@pytest.fixture
def conv() -> Conv3x3:
    torch.manual_seed(1)
    conv = nn.Conv2d(128, 130, 3, padding=1, dtype=torch.float64).eval()
    choose_convolutions(conv)
    assert isinstance(conv, Conv3x3)
    return conv


@pytest.fixture
def norm() -> nn.GroupNorm:
    torch.manual_seed(2)
    norm = nn.GroupNorm(32, 128, dtype=torch.float64).eval()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


@BANDS
@pytest.mark.parametrize("size", [(36, 40), (34, 36)], ids=["tiles of 4", "tiles of 2"])
@pytest.mark.usefixtures("small")
def test_norm_and_silu(conv: Conv3x3, norm: nn.GroupNorm, size: tuple[int, int], relative_error: RelativeError) -> None:
    x = picture(2, 128, *size)
    found = in_bands(conv, norm, x)
    assert found is not None
    assert relative_error(found, F.conv2d(F.silu(norm(x)), conv.weight, conv.bias, padding=1)) <= 1e-13


@BANDS
@pytest.mark.parametrize("size", [(18, 20), (17, 19)], ids=["tiles of 4", "tiles of 2"])
@pytest.mark.usefixtures("small")
def test_doubling(conv: Conv3x3, size: tuple[int, int], relative_error: RelativeError) -> None:
    x = picture(2, 128, *size)
    found = in_bands_doubled(conv, x, [2 * side for side in size])
    assert found is not None
    doubled = F.interpolate(x, scale_factor=2.0)
    assert relative_error(found, F.conv2d(doubled, conv.weight, conv.bias, padding=1)) <= 1e-13


@BANDS
@pytest.mark.usefixtures("small")
def test_a_norm_s_gain_and_shift_lose_few_digits(norm: nn.GroupNorm, relative_error: RelativeError) -> None:
    """Where the mean is a hundred deviations away too, and torch's own, in channels_last, is off by 3e-3."""
    x = picture(2, 128, 32, 32, dtype=torch.float32) + 100
    exact = norm(x.double())
    gain, shift = affine(norm.float(), x)
    found = torch.addcmul(shift, x.permute(0, 2, 3, 1), gain).permute(0, 3, 1, 2)
    assert relative_error(found, exact) <= 3e-5


@pytest.mark.parametrize("emb_channels", [None, 6])
def test_a_res_block_and_an_upsampler_take_them(emb_channels: int | None, relative_error: RelativeError) -> None:
    """With no gradient on, and the tensor that a caller gave is as it was."""
    torch.manual_seed(0)
    block = nn.ModuleList([ResnetBlock(128, 160, emb_channels, eps=1e-6), Upsample(160)]).double().eval()
    x = picture(2, 128, 36, 36)
    emb = None if emb_channels is None else torch.randn(2, emb_channels, dtype=torch.float64)
    with torch.no_grad():
        before, kept = block[1](block[0](x, emb)), x.clone()
    choose_convolutions(block)
    calls: list[int] = []
    own = winograd.winograd

    def counted(*args: object, **options: object) -> torch.Tensor:
        calls.append(1)
        return own(*args, **options)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(banded, "winograd", counted)
        after = block[1](block[0](x, emb))
    assert len(calls) == 3 and torch.equal(x, kept)
    assert relative_error(after, before) <= 1e-13


@pytest.mark.usefixtures("no_grad")
def test_who_watches_a_part_sees_it_called(conv: Conv3x3, norm: nn.GroupNorm) -> None:
    x = picture(1, 128, 36, 36)
    assert in_bands(conv, norm, x) is not None
    for module in (conv, norm):
        hook = module.register_forward_hook(lambda *_: None)
        assert in_bands(conv, norm, x) is None
        hook.remove()
    with instead({norm: lambda x: x}):
        assert in_bands(conv, norm, x) is None
    assert in_bands_doubled(conv.train(), x) is None
    with torch.enable_grad():
        assert in_bands(conv.eval(), norm, x) is None


@pytest.mark.usefixtures("no_grad")
def test_what_takes_no_tiles_is_left(conv: Conv3x3, norm: nn.GroupNorm) -> None:
    x = picture(1, 128, 36, 36)
    plain = nn.Conv2d(128, 130, 3, padding=1, dtype=torch.float64).eval()
    assert in_bands(plain, norm, x) is None and in_bands_doubled(plain, x) is None
    assert in_bands(conv, nn.Identity(), x) is None
    assert in_bands(conv, norm, picture(1, 128, 8, 8)) is None
    assert in_bands(conv, norm, x.float()) is None
    assert in_bands_doubled(conv, x, (71, 72)) is None


@pytest.mark.usefixtures("no_grad")
def test_small_pictures_are_left(conv: Conv3x3, norm: nn.GroupNorm, monkeypatch: pytest.MonkeyPatch) -> None:
    x = picture(1, 128, 36, 36)
    for least, taken in ((x.numel(), True), (x.numel() + 1, False)):
        monkeypatch.setattr(banded, "LEAST", least)
        assert (in_bands(conv, norm, x) is not None) is taken
        monkeypatch.setattr(banded, "LEAST", 4 * least)
        assert (in_bands_doubled(conv, x) is not None) is taken
