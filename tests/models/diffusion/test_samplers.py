from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ldm.models import diffusion
from ldm.models.diffusion import (
    SAMPLERS,
    SPACINGS,
    Conditioning,
    NoiseSchedule,
    Step,
    ddim,
    ddim_invert,
    ddpm,
    guided,
    masked,
)
from ldm.models.diffusion.step import intervals, level, move, split

SCHEDULE = NoiseSchedule()


def no_noise(x: Tensor, sigma: float, sigma_next: float) -> Tensor:
    raise AssertionError("noise was drawn where it would be multiplied by zero")


class Noise:
    """The draws of the golden runs, in order, and a record of the intervals."""

    def __init__(self, normal) -> None:
        self.normal, self.asked = normal, []

    def __call__(self, x: Tensor, sigma: float, sigma_next: float) -> Tensor:
        self.asked.append((sigma, sigma_next))
        return self.normal(f"noise.{len(self.asked) - 1}", tuple(x.shape)).to(x.dtype)


def sampler(name: str) -> Callable[..., Iterator[Step]]:
    """With a schedule, if it asks for one."""
    function, _ = SAMPLERS[name]
    takes_schedule = "schedule" in inspect.signature(function).parameters
    return partial(function, schedule=SCHEDULE) if takes_schedule else function


# Agreement with other implementations -------------------------------------------------------------------------------


@pytest.mark.parametrize("sigmas", ["karras.10", "normal.20"])
@pytest.mark.parametrize(("name", "eta"), [("euler", 0.0), ("euler_ancestral", 1.0)])
def test_ddim_is_k_diffusions_euler_or_ancestral_euler(name, eta, sigmas, golden, mixture, normal, error, last):
    tables = golden("samplers-k-diffusion")
    levels = tables[f"sigmas.{sigmas}"]
    x = last(ddim(mixture, normal("x") * levels[0], levels, noise=Noise(normal), eta=eta))
    assert error(x, tables[f"{name}.{sigmas}"]) < 1e-9


@pytest.mark.parametrize("suffix", ["", ".v"])
@pytest.mark.parametrize(
    ("name", "spacing", "n"), [("leading1", "uniform", 10), ("leading1", "uniform", 50), ("trailing", "trailing", 10)]
)
def test_ddim_is_diffusers_ddim(name, spacing, n, suffix, golden, mixture, normal, error, last):
    sigmas = SPACINGS[spacing](SCHEDULE, n)
    if name == "leading1":  # there, and in the original code, the last step goes to the first training level, not to 0
        sigmas[-1] = SCHEDULE.sigmas[0]
    x = last(ddim(mixture, normal("x") * (1 + sigmas[0] ** 2).sqrt(), sigmas, noise=no_noise))
    vp = x / (1 + sigmas[-1] ** 2).sqrt()
    assert error(vp, golden("samplers-diffusers")[f"ddim.{name}.{n}{suffix}"]) < 1e-5


@pytest.mark.parametrize("table", [f"{how}.{n}" for how in ("uniform", "quad") for n in (1, 4, 7, 20, 50, 250)])
def test_tables_of_the_original_ddim(table, golden):
    tables = {key.removeprefix(f"ddim.{table}."): value for key, value in golden("schedules").items()}
    t = tables["timesteps"].long()
    before = torch.cat([torch.zeros(1, dtype=torch.long), t[:-1]])
    for name, expected in (("alphas", t), ("alphas_prev", before)):
        ours = 1 / (1 + SCHEDULE.sigmas[expected] ** 2)
        torch.testing.assert_close(ours, tables[name].double(), rtol=1.2e-7, atol=0)
    for eta in (0.0, 1.0):
        pairs = zip(SCHEDULE.sigmas[t].tolist(), SCHEDULE.sigmas[before].tolist(), strict=True)
        up = [split(sigma, sigma_next, eta)[1] for sigma, sigma_next in pairs]
        ours = torch.tensor(up, dtype=torch.float64) * SCHEDULE.alphas_cumprod[before].sqrt()
        torch.testing.assert_close(ours, tables[f"eta{eta:.0f}.sigmas"].double(), rtol=1e-6, atol=1e-9)


# Agreement with the papers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_is_equation_12_in_vp_coordinates(eta, mixture, normal, error, last):
    sigmas = SPACINGS["trailing"](SCHEDULE, 12)
    start, noise = normal("x"), Noise(normal)
    ours = last(ddim(mixture, start * (1 + sigmas[0] ** 2).sqrt(), sigmas, noise=Noise(normal), eta=eta))
    x = start
    for a, a_next in pairwise(1 / (1 + sigmas**2)):  # alphas_cumprod
        z = mixture(x / a.sqrt(), ((1 - a) / a).sqrt())
        eps = (x - a.sqrt() * z) / (1 - a).sqrt()
        up = eta * ((1 - a_next) / (1 - a)).sqrt() * (1 - a / a_next).sqrt()
        x = a_next.sqrt() * z + (1 - a_next - up**2).clamp(min=0).sqrt() * eps
        if up > 0:
            x = x + up * noise(x, 0, 0)
    assert error(ours, x) < 1e-12


def test_ddpm_draws_from_the_posterior_of_equation_7(mixture, normal, error, last):
    sigmas = torch.cat([SCHEDULE.sigmas[:30].flip(0), torch.zeros(1)])  # the last 30 of all training levels
    start, noise = normal("x"), Noise(normal)
    ours = last(ddpm(mixture, start * (1 + sigmas[0] ** 2).sqrt(), sigmas, noise=Noise(normal)))
    x = start
    for t in reversed(range(30)):
        beta, a = SCHEDULE.betas[t], SCHEDULE.alphas_cumprod[t]
        before = SCHEDULE.alphas_cumprod[t - 1] if t > 0 else torch.ones(())
        z = mixture(x / a.sqrt(), SCHEDULE.sigmas[t])
        mean = (before.sqrt() * beta * z + (1 - beta).sqrt() * (1 - before) * x) / (1 - a)
        x = mean + (beta * (1 - before) / (1 - a)).sqrt() * noise(x, 0, 0) if t > 0 else mean
    assert error(ours, x) < 1e-12


def test_split_keeps_the_variance_and_allows_any_eta():
    for eta in (0.0, 0.5, 1.0, 7.0):
        down, up = split(3.0, 2.0, eta)
        assert math.hypot(down, up) == pytest.approx(2.0, rel=1e-14)
    assert split(3.0, 2.0, 0.0) == (2.0, 0.0)
    assert split(3.0, 2.0, 7.0) == (0.0, 2.0)
    assert split(3.0, 0.0, 1.0) == (0.0, 0.0)


def test_ddim_is_of_first_order(golden, mixture, normal, error, last):
    tables = golden("samplers-k-diffusion")
    top, bottom = tables["sigmas.normal.10"][0], tables["sigmas.normal.10"][-2]
    errors = []
    for n in (80, 160, 320):
        sigmas = torch.cat([torch.linspace(top**0.2, bottom**0.2, n, dtype=torch.float64) ** 5, torch.zeros(1)])
        x = last(ddim(mixture, normal("x") * top, sigmas, noise=no_noise))
        errors.append(error(x, tables["ode_solution.to_sigma_min_then_zero"]))
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert min(orders) > 0.9, orders


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_variance_of_samples_of_a_gaussian(eta, last):
    """Data of standard deviation 1/2: what 20 steps make of it is known exactly, and 1000 steps make it right."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return x * 0.25 / (0.25 + sigma**2)

    def predicted(sigmas: Tensor) -> float:
        variance = float(sigmas[0]) ** 2
        for sigma, sigma_next in pairwise(sigmas.tolist()):
            down, up = split(sigma, sigma_next, eta)
            keep = 0.25 / (0.25 + sigma**2)
            variance = (keep + down / sigma * (1 - keep)) ** 2 * variance + up**2
        return variance

    generator = torch.Generator().manual_seed(0)
    count, sigmas = 100_000, SPACINGS["trailing"](SCHEDULE, 20)
    draw = lambda *_: torch.randn(count, 1, 1, 1, generator=generator, dtype=torch.float64)  # noqa: E731
    x = last(ddim(denoise, draw() * sigmas[0], sigmas, noise=draw, eta=eta))
    expected = predicted(sigmas)
    assert abs(x.mean()) < 4 * (expected / count) ** 0.5
    assert abs(x.var() - expected) < 4 * expected * (2 / count) ** 0.5
    assert predicted(SPACINGS["trailing"](SCHEDULE, 1000)) == pytest.approx(0.25, rel=0.02)


# The contract of a sampler ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_table(name):
    function, spacing = SAMPLERS[name]
    parameters = inspect.signature(function).parameters
    assert spacing in SPACINGS
    assert name in diffusion.__all__ and getattr(diffusion, name) is function
    assert list(parameters)[:4] == ["denoise", "x", "sigmas", "noise"]
    options = list(parameters.values())[3:]
    assert all(option.kind == inspect.Parameter.KEYWORD_ONLY for option in options)
    assert all(option.default is not inspect.Parameter.empty for option in options[1:] if option.name != "schedule")
    if name in ("ddim", "ddpm"):
        assert parameters["eta"].default == {"ddim": 0.0, "ddpm": 1.0}[name]


DEFAULTS: dict[str, dict[str, float]] = {  # as in k-diffusion, where that has the sampler; else as in its paper
    "ddim": {"eta": 0, "s_noise": 1},
    "ddpm": {"eta": 1},
    "plms": {"order": 4},
    "ipndm": {"order": 4},
    "euler": {"s_churn": 0, "s_tmin": 0, "s_tmax": math.inf, "s_noise": 1},
    "heun": {"s_churn": 0, "s_tmin": 0, "s_tmax": math.inf, "s_noise": 1},
    "dpm_2": {"s_churn": 0, "s_tmin": 0, "s_tmax": math.inf, "s_noise": 1},
    "lms": {"order": 4},
    "dpm_fast": {"eta": 0, "s_noise": 1},
    "dpm_adaptive": {"order": 3, "rtol": 0.05, "atol": 0.0078, "h_init": 0.05, "eta": 0, "s_noise": 1},
    "dpmpp_2m": {},
    "unipc": {"order": 2},
    "unipc_bh2": {"order": 2},
    "deis": {"order": 2},
    "lcm": {"schedule": None},
    "tcd": {"eta": 0.3, "schedule": None},
    "restart": {"restarts": 1, "restart_min": 0.1, "restart_max": 2, "s_noise": 1},
    "res_multistep": {},
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_defaults(name):
    options = list(inspect.signature(SAMPLERS[name][0]).parameters.values())[4:]
    assert {one.name: one.default for one in options} == DEFAULTS.get(name, {"eta": 1, "s_noise": 1})


@pytest.mark.long
def test_n_steps_and_n_calls_for_every_n():
    calls = 0

    def denoise(x: float, sigma: Tensor) -> float:
        nonlocal calls
        calls += 1
        return x

    for n in range(1, 1001):  # half a million steps: a number for x makes them cheap, and is all that a sampler needs
        calls, sigmas = 0, SPACINGS["uniform"](SCHEDULE, n)
        assert sum(1 for _ in ddim(denoise, 1.0, sigmas, noise=no_noise)) == calls == n


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_last_step_is_the_last_estimate(name, mixture, normal):
    x, sigmas = normal("x") * 14, SPACINGS["trailing"](SCHEDULE, 5)
    steps = list(sampler(name)(mixture, x, sigmas, noise=Noise(normal)))
    assert steps[-1].sigma == 0
    assert [step.i for step in steps] == list(range(5)) or name in ("dpm_fast", "dpm_adaptive")
    assert all(before.i < step.i and before.sigma > step.sigma for before, step in pairwise(steps))
    assert steps[-1].i == 4
    if name != "lms":  # whose last step is like the others
        assert torch.equal(steps[-1].x, steps[-1].x0)
    if name not in ("restart", "dpm_adaptive", "lcm"):  # back and forth in a step, silent about some, not x0 alone
        for before, step in pairwise(steps):
            assert torch.equal(step.x0, mixture(before.x, before.sigma))  # x0 is made from the state before


@pytest.mark.parametrize("name", SAMPLERS)
def test_pure_and_lazy(name, mixture, normal):
    x, sigmas = normal("x") * 14, SPACINGS["trailing"](SCHEDULE, 5)
    before, levels, calls = x.clone(), sigmas.clone(), []
    run = lambda: sampler(name)(  # noqa: E731
        lambda x, sigma: calls.append(sigma) or mixture(x, sigma), x, sigmas, noise=Noise(normal)
    )
    steps = run()
    assert not calls
    next(steps)
    until_then = len(calls)
    list(steps)
    assert 0 < until_then < len(calls)  # the caller may stop here
    first, second = list(run()), list(run())
    assert all(torch.equal(a.x, b.x) for a, b in zip(first, second, strict=True))
    assert len({step.x.data_ptr() for step in first}) == len(first)  # a kept step is never overwritten
    assert torch.equal(x, before)
    assert torch.equal(sigmas, levels)


@pytest.mark.parametrize("name", ["ddim", "ddpm", "euler", "heun", "dpm_2"])  # others remember the steps before
def test_resuming_from_a_step(name, mixture, normal, last):
    run, x, sigmas = SAMPLERS[name][0], normal("x") * 14, SPACINGS["uniform"](SCHEDULE, 6)
    noise = lambda x, sigma, sigma_next: normal(f"{sigma:.4f}")  # noqa: E731
    steps = list(run(mixture, x, sigmas, noise=noise))
    assert torch.equal(last(run(mixture, steps[2].x, sigmas[3:], noise=noise)), steps[-1].x)


@pytest.mark.parametrize("name", SAMPLERS)
def test_float32_in_float32_out(name, mixture, normal, error, last):
    x, sigmas = normal("x") * 14, SPACINGS["trailing"](SCHEDULE, 20)
    single = last(sampler(name)(mixture, x.float(), sigmas, noise=Noise(normal)))
    assert single.dtype == torch.float32
    assert error(single.double(), last(sampler(name)(mixture, x, sigmas, noise=Noise(normal)))) < 1e-4


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_denoiser_hears_levels_as_float64_on_the_cpu_whatever_the_list_is(name, mixture, normal):
    heard = []
    denoise = lambda x, sigma: heard.append(sigma) or mixture(x, sigma)  # noqa: E731
    sigmas = torch.tensor([14.0, 3.0, 0.5, 0.0], dtype=torch.float32)
    list(sampler(name)(denoise, normal("x") * 14, sigmas, noise=Noise(normal)))
    if name == "ddim":
        list(ddim_invert(denoise, normal("x"), sigmas))
    with torch.device("meta"):
        heard.append(level(1.0))
    assert {(sigma.dtype, sigma.device.type, sigma.shape) for sigma in heard} == {(torch.float64, "cpu", ())}


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "dpm_adaptive"])  # not through its step lengths
def test_gradients_agree_with_finite_differences(name, mixture, normal, last):
    sigmas = SPACINGS["trailing"](SCHEDULE, 5)
    shift, x = normal("shift", (1, 4, 8, 8)) * 0.1, normal("x", (1, 4, 8, 8)) * sigmas[0]

    def result(x: Tensor, shift: Tensor) -> Tensor:
        denoise = lambda x, sigma: mixture(x + shift, sigma)  # noqa: E731
        return last(sampler(name)(denoise, x, sigmas, noise=Noise(normal)))

    assert torch.autograd.gradcheck(result, (x.requires_grad_(), shift.requires_grad_()), fast_mode=True)


def test_no_digits_are_lost_at_zero_snr(mixture, normal, error, last):
    sigmas = SPACINGS["trailing"](NoiseSchedule(zero_terminal_snr=True), 20)
    x = normal("x") * sigmas[0]
    double, single = (last(ddim(mixture, x.to(d), sigmas, noise=no_noise)) for d in (torch.float64, torch.float32))
    assert float(sigmas[0]) == 65536
    assert error(single.double(), double) < 1e-4
    exact = move(x, mixture(x, sigmas[0]), float(sigmas[0]), float(sigmas[1]))
    limit = mixture(x, sigmas[0]) + sigmas[1] * normal("x")  # sigma → infinity, where x / sigma is the noise itself
    assert error(exact, limit) < 1e-4


@pytest.mark.parametrize("name", ["heun", "dpm_2", "dpm_2_ancestral", "dpmpp_2s_ancestral", "restart"])
def test_a_step_from_above_two_to_the_14_is_eulers(name, mixture, normal):
    for start, expected in ((16384.0, 3), (16385.0, 2)):
        calls, sigmas = [], torch.tensor([start, 10.0, 0.0], dtype=torch.float64)
        denoise = lambda x, sigma: calls.append(sigma) or mixture(x, sigma)  # noqa: E731, B023
        list(SAMPLERS[name][0](denoise, normal("x") * start, sigmas, noise=Noise(normal)))
        assert len(calls) == expected


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in ("lcm", "tcd")])  # these take few steps
def test_few_steps_from_zero_snr_end_among_the_data(name, mixture, normal, last):
    sigmas = SPACINGS["trailing"](NoiseSchedule(zero_terminal_snr=True), 10)
    options = {"schedule": SCHEDULE} if "schedule" in inspect.signature(sampler(name)).parameters else {}
    drawn = last(sampler(name)(mixture, normal("x") * sigmas[0], sigmas, noise=Noise(normal), **options))
    assert 0.6 < drawn.std() < 1.6  # of the data: 1.1 to 1.2


@pytest.mark.parametrize(
    "values", [[1.0], [0.0], [1.0, 1.0, 0.0], [1.0, 2.0], [1.0, -1.0], [math.nan, 0.0], [math.inf, 1.0]]
)
def test_sigmas_must_fall(values):
    with pytest.raises(ValueError, match="sigmas must fall strictly"):
        intervals(torch.tensor(values))


# Inversion, guidance and masks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", ["uniform", "linspace"])
def test_a_round_trip_through_inversion_errs_by_one_over_n(spacing, mixture, normal, error, last):
    z = torch.stack([normal(f"mixture.mean.{k}", (4, 8, 8)) for k in (0, 2)]) + normal("z") / 2
    errors = []
    for n in (50, 100, 200):
        sigmas = SPACINGS[spacing](SCHEDULE, n)
        up = list(ddim_invert(mixture, z, sigmas))
        assert [step.sigma for step in up] == sigmas[:-1].flip(0).tolist()
        errors.append(error(last(ddim(mixture, up[-1].x, sigmas, noise=no_noise)), z))
    assert errors[0] < 0.05
    for a, b in pairwise(errors):
        assert 1.8 < a / b < 2.2, errors


def test_inversion_is_eulers_step_upwards(mixture, normal, error):
    z, levels = normal("z"), [3.0, 1.0, 0.25, 0.0]
    steps = list(ddim_invert(mixture, z, torch.tensor(levels)))
    assert [(step.i, step.sigma) for step in steps] == [(0, 0.25), (1, 1.0), (2, 3.0)]
    x = z + (z - mixture(z, 0.25))  # at 0 there is no direction: that at 0.25, of which the level says the length
    assert error(steps[0].x, x) < 1e-12
    for step, sigma, sigma_next in zip(steps[1:], (0.25, 1.0), (1.0, 3.0), strict=True):
        x = move(x, mixture(x, sigma), sigma, sigma_next)
        assert error(step.x, x) < 1e-12


def test_inversion_finds_noise(mixture, normal, last):
    z = torch.stack([normal(f"mixture.mean.{k}", (4, 8, 8)) for k in (0, 2)]) + normal("z") / 2
    sigmas = SPACINGS["trailing"](SCHEDULE, 200)
    before = z.clone()
    noise = last(ddim_invert(mixture, z, sigmas)) / sigmas[0]
    assert torch.equal(z, before)
    assert 0.9 < noise.std() < 1.1
    assert abs(noise.mean()) < 0.1


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_outside_the_mask_is_z_exactly(eta, mixture, normal, last):
    sigmas, z = SPACINGS["uniform"](SCHEDULE, 10), normal("z").float()
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    x = SCHEDULE.add_noise(z, normal("n").float(), sigmas[0])
    steps = list(ddim(masked(mixture, z, mask), x, sigmas, noise=Noise(normal), eta=eta))
    assert torch.equal(steps[-1].x[..., 4:], z[..., 4:])
    inside = mixture(steps[-2].x, sigmas[-2])
    assert torch.equal(steps[-1].x[..., :4], inside[..., :4])
    assert (steps[-1].x[..., :4] - z[..., :4]).abs().mean() > 0.1
    if eta == 0:  # on the way it stays on z + sigma * noise
        for step in steps:
            expected = SCHEDULE.add_noise(z, normal("n").float(), torch.tensor(step.sigma))
            torch.testing.assert_close(step.x[..., 4:], expected[..., 4:], rtol=1e-5, atol=1e-5)


def test_a_soft_mask_blends(mixture, normal):
    x, z = normal("x") * 3, normal("z")
    half = masked(mixture, z, torch.tensor(0.5, dtype=torch.float64))(x, torch.tensor(3.0))
    torch.testing.assert_close(half, (mixture(x, 3.0) + z) / 2)


def test_samplers_do_not_hear_of_guidance(mixture, normal, error, last):
    denoiser = lambda x, sigma, cond: mixture(x, sigma) + cond.context[:, :, None, None]  # noqa: E731
    cond, uncond = Conditioning(torch.full((2, 1), 0.5)), Conditioning(torch.zeros(2, 1))
    x, sigmas = normal("x") * 14, SPACINGS["trailing"](SCHEDULE, 5)
    ours = last(ddim(guided(denoiser, cond, uncond, 3.0), x, sigmas, noise=no_noise))
    plain = last(ddim(lambda x, sigma: mixture(x, sigma) + 1.5, x, sigmas, noise=no_noise))
    assert error(ours, plain) < 1e-12
