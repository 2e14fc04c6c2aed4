from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from ldm.config import ConfigError, build
from ldm.models.diffusion.schedule import NoiseSchedule
from ldm.models.framing import Framing, FramingEmbedding, NoiseAugmentation


def test_y_is_pooled_text_then_a_wave_for_each_number() -> None:
    embed = FramingEmbedding(["original_height", "crop_left", "aesthetic_score"], dim=4)
    framing = Framing(8, 6, 4, 4, crop_top=1, crop_left=2, aesthetic_score=2.5)
    pooled = torch.tensor([[5.0, 7.0], [6.0, 8.0]])
    y = embed(pooled, framing)
    waves = [f(v * frequency) for v in (8, 2, 2.5) for f in (math.cos, math.sin) for frequency in (1, 0.01)]
    assert y.shape == (2, 2 + 3 * 4) and torch.equal(y[:, :2], pooled)
    torch.testing.assert_close(y[:, 2:], torch.tensor([waves, waves]))
    assert embed(pooled.bfloat16(), framing).dtype == torch.bfloat16


def test_large_numbers_are_exact_in_half_precision() -> None:
    embed, framing = FramingEmbedding(["original_height"]), Framing.whole(4099, 1024)
    exact = embed(torch.zeros(1, 0), framing)
    torch.testing.assert_close(embed(torch.zeros(1, 0).bfloat16(), framing).float(), exact, atol=4e-3, rtol=0)


def test_unknown_numbers_are_refused_by_the_config() -> None:
    with pytest.raises(ConfigError, match=r"numbers\[0\].*'original_height'"):
        build({"target": "FramingEmbedding", "params": {"numbers": ["original_hight"]}})


def test_noise_of_the_low_resolution_picture(relative_error: Callable[..., float]) -> None:
    schedule = NoiseSchedule(beta_start=1e-4, beta_end=0.02)
    augment = NoiseAugmentation(schedule, max_level=350)
    image, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    concat, y = augment(image, 20, noise)
    signal = float(schedule.alphas_cumprod[20].sqrt())  # x = z + sigma n, times the signal that is left
    assert relative_error(concat, signal * schedule.add_noise(image, noise, schedule.sigmas[20])) < 1e-6
    assert y.tolist() == [20, 20] and y.dtype == torch.int64
    with pytest.raises(ValueError, match="noise level 351 .* 0 to 350"):
        augment(image, 351, noise)
    with pytest.raises(ValueError, match="max_level 1000 .* 0 to 999"):
        NoiseAugmentation(schedule, max_level=1000)
