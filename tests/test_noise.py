from __future__ import annotations

import pytest
import torch

from ldm.models.diffusion import SPACINGS, NoiseSchedule
from ldm.noise import StepNoise, keyed_noise, starting_noise

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
        assert torch.equal(StepNoise(batch)(x, 2.0, 1.0)[i : i + 1], StepNoise([seed])(x[:1], 2.0, 1.0))


def test_a_pure_function_of_seed_purpose_and_interval():
    x, noise = torch.zeros(1, *SHAPE), StepNoise([7])
    first = noise(x, 2.0, 1.0)
    noise(x, 1.0, 0.5)
    state = torch.random.get_rng_state()
    assert torch.equal(noise(x + 1, torch.tensor(2.0), torch.tensor(1.0)), first)  # no order; x gives only its shape
    assert torch.equal(torch.random.get_rng_state(), state)
    others = [noise(x, 2.0, 1.5), noise(x, 3.0, 1.0)]
    others += [StepNoise([8])(x, 2.0, 1.0), StepNoise([7], "encoder")(x, 2.0, 1.0)]
    others += [starting_noise([7], SHAPE), keyed_noise([7], SHAPE, "sampler")]
    for other in others:
        assert abs(torch.corrcoef(torch.stack([first.flatten(), other.flatten()]))[0, 1]) < 0.25


def test_the_last_bits_of_sigma_do_not_matter_but_each_of_1000_steps_has_its_own_noise():
    sigmas = SPACINGS["linspace"](NoiseSchedule(), 1000).tolist()
    x, noise = torch.zeros(1, 4), StepNoise([0])
    draws = {tuple(noise(x, a, b)[0].tolist()) for a, b in zip(sigmas, sigmas[1:], strict=False)}
    assert len(draws) == 1000
    assert torch.equal(noise(x, 14.6146, 2.3), noise(x, 14.6146 * (1 + 1e-12), 2.3 * (1 - 1e-12)))


def test_standard_normal():
    x = StepNoise(range(400))(torch.zeros(400, *SHAPE), 2.0, 1.0)
    assert abs(x.mean()) < 4 / x.numel() ** 0.5
    assert abs(x.var() - 1) < 4 * (2 / x.numel()) ** 0.5
    assert abs((x[:-1] * x[1:]).mean()) < 4 / x.numel() ** 0.5  # neighbouring seeds are independent


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_drawn_in_float32_and_cast(dtype):
    x = torch.zeros(1, *SHAPE)
    single = StepNoise([3])(x, 2.0, 1.0)
    assert single.dtype == torch.float32
    assert torch.equal(StepNoise([3])(x.to(dtype), 2.0, 1.0), single.to(dtype))


def test_drawn_on_the_cpu_and_moved():
    assert StepNoise([3])(torch.zeros(1, *SHAPE, device="meta"), 2.0, 1.0).device.type == "meta"
    with torch.device("meta"):
        assert starting_noise([3], SHAPE).device.type == "cpu"


def test_a_seed_per_image():
    with pytest.raises(ValueError, match="a batch of 2 needs as many seeds"):
        StepNoise([1, 2, 3])(torch.zeros(2, *SHAPE), 2.0, 1.0)
