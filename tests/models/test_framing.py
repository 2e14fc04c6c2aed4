from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from ldm.config import ConfigError, build
from ldm.models.diffusion.schedule import NoiseSchedule
from ldm.models.framing import EmbeddingAugmentation, Framing, FramingEmbedding, NoiseAugmentation


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


def test_a_folded_picture_keeps_every_pixel_in_its_place() -> None:
    """x2 with an autoencoder of factor 8: channel (c, dy, dx) at (i, j) is the picture's pixel (4i + dy, 4j + dx)."""
    augment = NoiseAugmentation(NoiseSchedule(beta_start=1e-4, beta_end=0.02), max_level=255, fold=4)
    image = torch.randn(1, 3, 8, 12)
    concat, _ = augment(image, 3, torch.zeros_like(image))
    assert concat.shape == (1, 48, 2, 3)
    clean = image * float(augment.schedule.alphas_cumprod[3].sqrt())
    for c, dy, dx in ((0, 0, 0), (1, 2, 3), (2, 3, 1)):
        torch.testing.assert_close(concat[0, 16 * c + 4 * dy + dx], clean[0, c, dy::4, dx::4])
    torch.testing.assert_close(torch.nn.functional.pixel_shuffle(concat, 4), clean)
    with pytest.raises(ValueError, match="fold 0"):
        NoiseAugmentation(augment.schedule, max_level=255, fold=0)


def test_each_picture_may_have_its_own_level() -> None:
    augment = NoiseAugmentation(NoiseSchedule(), max_level=350)
    image, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    concat, y = augment(image, torch.tensor([20, 300]), noise)
    for i, level in enumerate((20, 300)):
        torch.testing.assert_close(concat[i], augment(image, level, noise)[0][i])
    assert y.tolist() == [20, 300]
    with pytest.raises(ValueError, match="noise level 351"):
        augment(image, torch.tensor([0, 351]), noise)


def test_noise_of_the_image_embedding(relative_error: Callable[..., float]) -> None:
    """Whitened, q(x_t | x_0) of the cosine schedule (Nichol & Dhariwal 2021, eq. 17), unwhitened, then the level."""
    augment = EmbeddingAugmentation(NoiseSchedule("cosine"), width=6)
    mean, std = torch.randn(1, 6), torch.rand(1, 6) + 0.5
    augment.load_state_dict({"data_mean": mean, "data_std": std})
    embedding, noise, level = torch.randn(2, 6), torch.randn(2, 6), 400
    concat, y = augment(embedding, level, noise)
    signal = [math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in (0, level + 1)]
    kept = signal[1] / signal[0]
    noisy = ((embedding - mean) / std * kept**0.5 + (1 - kept) ** 0.5 * noise) * std + mean
    wave = [f(level * 10_000 ** (-i / 3)) for f in (math.cos, math.sin) for i in range(3)]
    assert concat is None and y.shape == (2, 12)
    assert relative_error(y[:, :6], noisy) < 1e-5
    torch.testing.assert_close(y[:, 6:], torch.tensor([wave, wave]), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="noise level 1000 .* 0 to 999"):
        augment(embedding, 1000, noise)
