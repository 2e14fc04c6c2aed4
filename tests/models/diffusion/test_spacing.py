from __future__ import annotations

import pytest
import torch

from ldm.models.diffusion import SPACINGS, NoiseSchedule

SCHEDULE = NoiseSchedule()


def timesteps(spacing: str, n: int) -> list[float]:
    return SCHEDULE.sigma_to_t(SPACINGS[spacing](SCHEDULE, n)[:-1]).tolist()


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("schedule", [SCHEDULE, NoiseSchedule(zero_terminal_snr=True), NoiseSchedule("cosine")])
def test_exactly_n_falling_steps_for_every_n(spacing, schedule):
    for n in range(1, 1001):
        sigmas = SPACINGS[spacing](schedule, n)
        assert sigmas.shape == (n + 1,)
        assert sigmas.dtype == torch.float64
        assert (sigmas.diff() < 0).all(), n
        assert sigmas[-1] == 0
        assert sigmas[0] <= schedule.sigmas[-1] * (1 + 1e-12)


@pytest.mark.parametrize("n", [1, 4, 20, 50, 250])
def test_uniform_is_the_original_stride_where_that_divides(n, golden):
    tables, sigmas = golden("schedules"), SPACINGS["uniform"](SCHEDULE, n)[:-1].flip(0)
    assert SCHEDULE.sigma_to_t(sigmas).tolist() == tables[f"ddim.uniform.{n}.timesteps"].tolist()
    torch.testing.assert_close(1 / (1 + sigmas**2), tables[f"ddim.uniform.{n}.alphas"].double(), rtol=1.2e-7, atol=0)


def test_uniform_where_the_original_fails():
    assert timesteps("uniform", 7) == [858, 715, 572, 429, 286, 143, 1]  # the original takes 8 steps
    assert timesteps("uniform", 3) == [667, 334, 1]  # and here crashes: its last timestep is 1000
    assert timesteps("uniform", 1000) == list(reversed(range(1000)))


def test_trailing():
    assert timesteps("trailing", 4) == [999, 749, 499, 249]
    assert timesteps("trailing", 3) == [999, 666, 332]
    assert timesteps("trailing", 1) == [999]
    assert timesteps("trailing", 1000) == list(reversed(range(1000)))


@pytest.mark.parametrize("n", [5, 10, 20])
def test_linspace_is_k_diffusions_normal(n, golden):
    expected = golden("samplers-k-diffusion")[f"sigmas.normal.{n}"]
    torch.testing.assert_close(SPACINGS["linspace"](SCHEDULE, n), expected, rtol=1e-13, atol=0)


def test_a_schedule_of_another_length():
    schedule = NoiseSchedule(num_timesteps=50, beta_end=0.2)
    for spacing in SPACINGS.values():
        assert spacing(schedule, 50).shape == (51,)
        with pytest.raises(ValueError, match="steps is 51; this model takes 1 to 50"):
            spacing(schedule, 51)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("n", [-1, 0, 1001])
def test_errors(spacing, n):
    with pytest.raises(ValueError, match=f"steps is {n}; this model takes 1 to 1000"):
        SPACINGS[spacing](SCHEDULE, n)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_built_on_the_cpu_whatever_the_default_device(spacing):
    with torch.device("meta"):
        assert SPACINGS[spacing](SCHEDULE, 5).device.type == "cpu"
