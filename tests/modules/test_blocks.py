from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ldm.modules.blocks import Downsample, ResnetBlock, doubled, halved, timestep_embedding

SCHEDULES = load_file(Path(__file__).parents[1] / "golden" / "schedules.safetensors")
EMBEDDINGS = sorted(key for key in SCHEDULES if key.startswith("timestep_embedding"))


@pytest.mark.parametrize("key", EMBEDDINGS)
def test_timestep_embedding_agrees_with_the_original(key: str) -> None:
    dim = int(key.rsplit("_", 1)[1])
    found = timestep_embedding(torch.tensor([0, 1, 500, 999]), dim)
    # one unit in the last place of a frequency, times 999, is 6e-5
    torch.testing.assert_close(found, SCHEDULES[key].to(found.dtype), rtol=0, atol=6e-5)


def test_timestep_embedding_options() -> None:
    assert EMBEDDINGS
    t = torch.tensor([7.5])
    cos_first = timestep_embedding(t, 8)
    assert cos_first.dtype == torch.float32
    assert torch.equal(timestep_embedding(t, 8, flip_sin_to_cos=False), cos_first.roll(4, dims=1))
    assert timestep_embedding(t.half(), 8).dtype == torch.float32
    last = timestep_embedding(t, 8, freq_shift=1)[0, 3]  # the slowest cosine, of period 2 pi max_period
    torch.testing.assert_close(last, torch.cos(t[0] / 10_000))
    assert not torch.equal(timestep_embedding(t, 8, max_period=100), cos_first)


def test_sizes() -> None:
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert torch.equal(halved(doubled(x, None), None), x)
    assert torch.equal(doubled(x, (8, 8)), doubled(x, None))
    assert torch.equal(doubled(x, (7, 8)), doubled(x, None)[:, :, :7])  # the odd size loses the last row


def test_downsample_padding() -> None:
    """Padding 0 puts the first window at the first pixel, padding 1 one pixel before it."""
    x = torch.randn(1, 2, 6, 6)
    both, right = Downsample(2, padding=1), Downsample(2, padding=0)
    right.load_state_dict(both.state_dict())
    shifted = torch.nn.functional.pad(x, (1, 0, 1, 0))[:, :, :6, :6]
    assert right(x).shape == both(x).shape == (1, 2, 3, 3)
    torch.testing.assert_close(right(shifted)[:, :, :2, :2], both(x)[:, :, :2, :2])


def test_scale_shift_norm_is_the_formula() -> None:
    block = ResnetBlock(8, 8, emb_channels=6, groups=4, eps=1e-5, scale_shift_norm=True)
    h, emb = torch.randn(2, 8, 3, 3), torch.randn(2, 16, 1, 1)
    scale, shift = emb.chunk(2, dim=1)
    torch.testing.assert_close(block.scaled_and_shifted(h, emb), block.norm2(h) * (1 + scale) + shift)
