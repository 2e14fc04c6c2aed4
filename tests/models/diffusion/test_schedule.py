from __future__ import annotations

import pytest
import torch

from ldm.models.diffusion.schedule import ZERO_SNR_SIGMA, NoiseSchedule, per_image

SCHEDULES = {
    "sd": ("scaled_linear", 0.00085, 0.012),
    "churches": ("scaled_linear", 0.0015, 0.0155),
    "cin": ("scaled_linear", 0.0015, 0.0195),
    "x4": ("scaled_linear", 0.0001, 0.02),
    "sqrt_linear": ("linear", 0.0001, 0.02),  # the original code's names differ: its "linear" is our scaled_linear
    "sqrt": ("sqrt", 0.0001, 0.02),
    "cosine": ("cosine", 0.0001, 0.02),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_original_schedules(name, golden):
    schedule, expected = NoiseSchedule(*SCHEDULES[name]), golden("schedules")
    assert schedule.betas.dtype == schedule.alphas_cumprod.dtype == schedule.sigmas.dtype == torch.float64
    for table in ("betas", "alphas_cumprod"):  # atol: sqrt ends among float32's denormals
        torch.testing.assert_close(
            getattr(schedule, table).float(), expected[f"{name}.{table}"], rtol=1.2e-7, atol=1e-44
        )


def test_every_golden_schedule_is_covered(golden):
    names = {key.removesuffix(".betas") for key in golden("schedules") if key.endswith(".betas")}
    assert names == set(SCHEDULES)


def test_sigmas_of_k_diffusion(golden):
    expected = golden("samplers-k-diffusion")["sigmas.model"]
    torch.testing.assert_close(NoiseSchedule().sigmas, expected, rtol=1e-13, atol=0)


def test_t_and_sigma_there_and_back():
    schedule = NoiseSchedule()
    t = torch.arange(1000, dtype=torch.float64)
    assert torch.equal(schedule.t_to_sigma(t), schedule.sigmas)
    assert torch.equal(schedule.sigma_to_t(schedule.sigmas), t)
    between = torch.linspace(0, 999, 4321, dtype=torch.float64)
    torch.testing.assert_close(schedule.sigma_to_t(schedule.t_to_sigma(between)), between, rtol=0, atol=1e-9)
    assert (schedule.sigma_to_t(schedule.sigmas.float()) - t).abs().max() < 1e-4


def test_log_linear_between_and_constant_outside():
    schedule = NoiseSchedule()
    sigma, values = schedule.sigmas, torch.tensor([[-3.0, 0.5], [998.5, 2000.0]], dtype=torch.float64)
    expected = torch.stack([sigma[0], (sigma[0] * sigma[1]).sqrt(), (sigma[-2] * sigma[-1]).sqrt(), sigma[-1]])
    torch.testing.assert_close(schedule.t_to_sigma(values), expected.reshape(2, 2), rtol=1e-14, atol=0)
    outside = torch.tensor([0.0, 1e-9, 0.01, 15.0, 1e9], dtype=torch.float64)
    assert schedule.sigma_to_t(outside).tolist() == [0, 0, 0, 999, 999]


def test_at_least_float32_and_any_shape():
    schedule = NoiseSchedule()
    assert schedule.t_to_sigma(torch.tensor([3, 4])).dtype == torch.float32
    assert schedule.t_to_sigma(torch.tensor(3.0, dtype=torch.float64)).shape == ()
    assert schedule.sigma_to_t(torch.tensor([[1.0]], dtype=torch.bfloat16)).dtype == torch.float32


def test_add_noise_takes_one_sigma_or_one_per_image(normal):
    schedule, z, noise = NoiseSchedule(), normal("z"), normal("n")
    sigma = torch.tensor([2.0, 3.0])
    torch.testing.assert_close(schedule.add_noise(z, noise, sigma[0]), z + 2 * noise)
    torch.testing.assert_close(
        schedule.add_noise(z, noise, sigma), torch.stack([z[0] + 2 * noise[0], z[1] + 3 * noise[1]])
    )
    assert per_image(sigma, z.float()).shape == (2, 1, 1, 1)
    assert per_image(sigma, z.to("meta")).device == per_image(sigma[0], z.to("meta")).device == torch.device("meta")


def test_betas_may_be_equal():
    schedule = NoiseSchedule("linear", 0.1, 0.1, num_timesteps=5)
    torch.testing.assert_close(schedule.alphas_cumprod, 0.9 ** torch.arange(1, 6, dtype=torch.float64))


def test_zero_terminal_snr():
    plain, zero = NoiseSchedule(), NoiseSchedule(zero_terminal_snr=True)
    a, b = plain.alphas_cumprod.sqrt(), zero.alphas_cumprod.sqrt()
    assert ZERO_SNR_SIGMA == 65536
    assert float(zero.sigmas[-1]) == pytest.approx(ZERO_SNR_SIGMA, rel=1e-9)
    torch.testing.assert_close(b[:-1], ((a - a[-1]) * a[0] / (a[0] - a[-1]))[:-1], rtol=1e-12, atol=0)
    assert float(b[0]) == pytest.approx(float(a[0]), rel=1e-12)  # the first level stays
    torch.testing.assert_close((1 - zero.betas).cumprod(0), zero.alphas_cumprod, rtol=1e-6, atol=0)
    assert (zero.sigmas.diff() > 0).all()
    assert int(zero.sigma_to_t(zero.sigmas[-1])) == 999


def test_a_model_built_on_meta_still_has_its_schedule():
    with torch.device("meta"):
        schedules = [NoiseSchedule(name) for name in ("scaled_linear", "linear", "cosine", "sqrt")]
        schedules.append(NoiseSchedule(zero_terminal_snr=True))
    for schedule in schedules:
        assert schedule.betas.device.type == schedule.sigmas.device.type == "cpu"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"beta_schedule": "quadratic"}, "'quadratic'; use scaled_linear, linear, cosine or sqrt"),
        ({"num_timesteps": 1}, "num_timesteps is 1"),
        ({"beta_start": 0.0}, "beta_start 0.0"),
        ({"beta_start": 0.02, "beta_end": 0.01}, "beta_start 0.02, beta_end 0.01"),
        ({"beta_end": 1.0}, "beta_end 1.0"),
        ({"beta_schedule": "sqrt", "zero_terminal_snr": True}, "zero_terminal_snr=False"),
        ({"beta_start": 1e-20, "beta_end": 1e-20}, "do not ascend to 0; use smaller betas"),  # all are 0 in float64
    ],
)
def test_errors_name_the_value_and_the_remedy(params, message):
    with pytest.raises(ValueError, match=message):
        NoiseSchedule(**params)
