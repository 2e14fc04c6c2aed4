from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from ldm.models.diffusion import SPACINGS, NoiseSchedule
from ldm.noise import BrownianNoise, Variation, keyed_noise, slerp, starting_noise

SHAPE = (4, 8, 8)


def test_a_seed_means_what_it_means_elsewhere():
    for seed in (0, 42, 2**32 - 1):
        expected = torch.randn((1, *SHAPE), generator=torch.Generator("cpu").manual_seed(seed))
        assert torch.equal(starting_noise([seed], SHAPE), expected)


def test_known_answer():
    expected = torch.tensor([1.9269, 1.4873, 0.9007, -2.1055])
    torch.testing.assert_close(starting_noise([42], SHAPE)[0, 0, 0, :4], expected, rtol=0, atol=1e-4)


def test_an_image_is_the_same_alone_and_in_a_batch():
    batch, x = [7, 8, 9], torch.zeros(3, *SHAPE)
    for i, seed in enumerate(batch):
        assert torch.equal(starting_noise(batch, SHAPE)[i : i + 1], starting_noise([seed], SHAPE))
        assert torch.equal(BrownianNoise(batch)(x, 2.0, 1.0)[i : i + 1], BrownianNoise([seed])(x[:1], 2.0, 1.0))


def test_a_pure_function_of_seed_purpose_and_interval():
    x, noise = torch.zeros(1, *SHAPE), BrownianNoise([7])
    first = noise(x, 2.0, 1.0)
    noise(x, 1.0, 0.5)
    state = torch.random.get_rng_state()
    assert torch.equal(noise(x + 1, torch.tensor(2.0), torch.tensor(1.0)), first)  # no order; x gives only its shape
    assert torch.equal(torch.random.get_rng_state(), state)
    others = [noise(x, 1.0, 0.5), noise(x, 3.0, 2.0), noise(x, 1.0, 2.0)]
    others += [BrownianNoise([8])(x, 2.0, 1.0), BrownianNoise([7], "encoder")(x, 2.0, 1.0)]
    others += [starting_noise([7], SHAPE), keyed_noise([7], SHAPE, "sampler")]
    for other in others:
        assert abs(torch.corrcoef(torch.stack([first.flatten(), other.flatten()]))[0, 1]) < 0.25


@pytest.mark.parametrize("sigma_min", [0.03, 14.6])
def test_each_of_1000_steps_has_its_own_noise(sigma_min):
    sigmas = SPACINGS["karras"](NoiseSchedule(), 1000, sigma_min=sigma_min).tolist()
    x, noise = torch.zeros(1, 4), BrownianNoise([0])
    assert len({tuple(noise(x, a, b)[0].tolist()) for a, b in pairwise(sigmas)}) == 1000


def test_the_last_bits_of_sigma_do_not_matter():
    x, noise = torch.zeros(1, 4), BrownianNoise([0])
    assert torch.equal(noise(x, 14.6146, 2.3), noise(x, 14.6146 * (1 + 1e-12), 2.3 * (1 - 1e-12)))


def test_seeds_and_pixels_are_standard_normal_and_independent():
    x = BrownianNoise(range(400))(torch.zeros(400, *SHAPE), 2.0, 1.0)
    assert abs(x.mean()) < 4 / x.numel() ** 0.5
    assert abs(x.var() - 1) < 4 * (2 / x.numel()) ** 0.5
    assert abs((x[:-1] * x[1:]).mean()) < 4 / x.numel() ** 0.5  # neighbouring seeds are independent


# One Brownian path ---------------------------------------------------------------------------------------------------

LEVELS = [65536, 4e3, 14.6146, 14.6, 9.7, 8, 7.99, 5.25, 4, 3, 1.1, 1.09, 1.08, 0.5, 0.031, 0.0292, 1e-5, 0]
CLOSE = [2 - 2 * part for part in (-1e-3, 0, 1e-11, 2e-11, 1e-8, 2e-8, 4e-6, 6e-6, *(k * 1.7e-4 for k in range(1, 10)))]


def increments(levels: list[float], pixels: int = 10_000) -> torch.Tensor:
    """(len(levels) - 1, pixels) float64: the noise of each interval."""
    noise, x = BrownianNoise([0]), torch.zeros(1, pixels, dtype=torch.float64)
    return torch.cat([noise(x, a, b) for a, b in pairwise(levels)])


@pytest.mark.parametrize("levels", [LEVELS, CLOSE])
def test_increments_are_standard_normal_and_independent_over_disjoint_intervals(levels):
    drawn = increments(levels)
    covariance = drawn @ drawn.T / drawn.shape[1]
    wrong = (covariance - torch.eye(len(drawn))).abs()
    assert wrong.diagonal().max() < 4.5 * (2 / 10_000) ** 0.5
    assert wrong.fill_diagonal_(0).max() < 4.5 / 10_000**0.5  # of 120 or 136 pairs
    assert drawn.mean(1).abs().max() < 4.5 / 10_000**0.5
    standard = torch.distributions.Normal(0.0, 1.0)
    for one in drawn:  # Kolmogorov and Smirnov's distance; a path has it under this in all but one of 10^5 cases
        ranks = (torch.arange(10_000) + 0.5) / 10_000
        assert (standard.cdf(one.sort().values) - ranks).abs().max() < 2.5 / 10_000**0.5


@pytest.mark.parametrize("levels", [(14.5, 3.0, 0.5), (1.5, 1.25, 1.125), (4.0, 2.0, 1.0), (65536.0, 64.0, 0.03125)])
def test_increments_add_up(levels):
    a, b, c = levels
    noise, x = BrownianNoise([3]), torch.zeros(1, 1000, dtype=torch.float64)
    parts = math.sqrt(a - b) * noise(x, a, b) + math.sqrt(b - c) * noise(x, b, c)
    torch.testing.assert_close(math.sqrt(a - c) * noise(x, a, c), parts, rtol=0, atol=1e-13 * math.sqrt(a))


def test_overlapping_intervals_share_what_lies_in_both():
    noise, x = BrownianNoise([3]), torch.zeros(1, 10_000)
    shared = (noise(x, 4.0, 1.0) * noise(x, 5.5, 2.0)).mean()
    assert float(shared) == pytest.approx(2 / math.sqrt(3 * 3.5), abs=0.04)


def test_other_levels_visited_or_not_change_no_bit():
    x, levels = torch.zeros(2, *SHAPE), [14.0, 9.0, 3.0, 1.3, 1.2, 0.7, 0.1]
    first, again = BrownianNoise([4, 5]), BrownianNoise([4, 5])
    whole = [first(x, a, b) for a, b in pairwise(levels)]
    backwards = [again(x, a, b) for a, b in reversed(list(pairwise(levels)))][::-1]
    resumed = [BrownianNoise([4, 5])(x, a, b) for a, b in pairwise(levels)]
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(whole, backwards, resumed, strict=True))
    alone = [BrownianNoise([5])(x[:1], a, b) for a, b in pairwise(levels)]
    assert all(torch.equal(a[1:], b) for a, b in zip(whole, alone, strict=True))
    before = whole[2].clone()
    whole[2].add_(1)  # what a sampler does with its noise is its own affair
    assert torch.equal(first(x, 3.0, 1.3), before)


def test_the_path_of_a_seed_stays_what_it_is():
    """Whoever changes it changes every picture that was drawn with noise."""
    drawn = BrownianNoise([42])(torch.zeros(1, 3), 14.6, 9.7)
    torch.testing.assert_close(drawn, torch.tensor([[0.6083, -0.4175, -1.0251]]), rtol=0, atol=1e-4)


def test_steps_too_small_to_tell_apart_are_noise_too():
    noise, x = BrownianNoise([1]), torch.zeros(1, 10_000)
    for high, low in ((1.0 + 1e-9, 1.0), (1.3, 1.3 * (1 - 1e-6)), (1e-7, 0.0), (2.0, 2.0)):
        assert noise(x, high, low).std() == pytest.approx(1, abs=0.03)


def test_noise_on_the_way_up_is_new():
    noise, x = BrownianNoise([1]), torch.zeros(1, 10_000)
    up = noise(x, 1.0, 2.0)
    assert up.std() == pytest.approx(1, abs=0.03) and torch.equal(up, noise(x, 1.0, 2.0))
    others = [noise(x, 2.0, 1.0), noise(x, 3.0, 0.5), noise(x, 1.0, 2.1), noise(x, 1.1, 2.0)]
    assert max(abs((up * other).mean()) for other in others) < 0.045


# Variations ----------------------------------------------------------------------------------------------------------


def test_a_variation_lies_between_two_seeds():
    def noises(seed: int | Variation) -> list[torch.Tensor]:
        x = torch.zeros(1, 4, 32, 32)
        return [
            starting_noise([seed], (4, 32, 32)),
            keyed_noise([seed], (4, 32, 32), "hint"),
            BrownianNoise([seed])(x, 14.0, 9.0),
            BrownianNoise([seed])(x, 1.0, 2.0),
        ]

    one, other = noises(7), noises(9)
    assert all(torch.equal(a, b) for a, b in zip(noises(Variation(7, 9, 0)), one, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(noises(Variation(7, 9, 1)), other, strict=True))
    for strength in (0.1, 0.5, 0.8):
        for a, b, between in zip(one, other, noises(Variation(7, 9, strength)), strict=True):
            assert between.std() == pytest.approx(1, abs=0.04)
            for end, share in ((a, 1 - strength), (b, strength)):
                cosine = torch.cosine_similarity(end.flatten(), between.flatten(), dim=0)
                assert float(cosine) == pytest.approx(math.sin(share * math.pi / 2), abs=0.04)


def test_a_variation_in_a_batch_is_the_same_alone():
    seeds, x = [Variation(7, 9, 0.3), 7, Variation(7, 10, 0.3)], torch.zeros(3, *SHAPE)
    for i, seed in enumerate(seeds):
        assert torch.equal(BrownianNoise(seeds)(x, 3.0, 1.7)[i : i + 1], BrownianNoise([seed])(x[:1], 3.0, 1.7))
        assert torch.equal(starting_noise(seeds, SHAPE)[i : i + 1], starting_noise([seed], SHAPE))
    assert torch.equal(starting_noise([Variation(7, 7, 0.3)], SHAPE), starting_noise([7], SHAPE))


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_slerp_keeps_the_norm_and_turns_evenly(share):
    a, b = torch.randn(2, 4, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    b = 3 * b / b.norm() * a.norm()
    between = slerp(a, b, share)
    assert float(between.norm() / a.norm()) == pytest.approx(3**share, rel=1e-12)
    angle = lambda p, q: float(torch.acos((p * q).sum() / p.norm() / q.norm()))  # noqa: E731
    if 0 < share < 1:
        assert angle(a, between) == pytest.approx(share * angle(a, b), rel=1e-6)
    assert torch.equal(between, slerp(b, a, 1 - share)) or share not in (0, 1)


def test_slerp_at_the_ends_and_of_equals_is_exact():
    a, b = starting_noise([1], SHAPE), starting_noise([2], SHAPE)
    assert torch.equal(slerp(a, b, 0), a) and torch.equal(slerp(a, b, 1), b)
    torch.testing.assert_close(slerp(a, a, 0.3), a, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_drawn_in_float32_and_cast(dtype):
    x = torch.zeros(1, *SHAPE)
    single = BrownianNoise([3])(x, 2.0, 1.0)
    assert single.dtype == torch.float32
    assert torch.equal(BrownianNoise([3])(x.to(dtype), 2.0, 1.0), single.to(dtype))


def test_drawn_on_the_cpu_and_moved():
    assert BrownianNoise([3])(torch.zeros(1, *SHAPE, device="meta"), 2.0, 1.0).device.type == "meta"
    with torch.device("meta"):
        assert starting_noise([3], SHAPE).device.type == "cpu"


def test_a_seed_per_image():
    with pytest.raises(ValueError, match="a batch of 2 needs as many seeds"):
        BrownianNoise([1, 2, 3])(torch.zeros(2, *SHAPE), 2.0, 1.0)
