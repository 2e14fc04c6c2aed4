"""Ancestral and SDE samplers, lcm and tcd: against other implementations, known laws, and one Brownian path."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ldm.models.diffusion import SAMPLERS, SPACINGS, NoiseSchedule, lcm, tcd
from ldm.noise import BrownianNoise, starting_noise

SCHEDULE = NoiseSchedule()
ONE_CALL = ("ddpm", "euler_ancestral", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde", "lcm", "tcd")
TWO_CALLS = ("dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde")
NAMES = (*ONE_CALL, *TWO_CALLS)
WITH_ETA = tuple(name for name in NAMES if name != "lcm")
WITHOUT_S_NOISE = ("ddpm", "lcm", "tcd")
OF_ONE_STEP = ("ddpm", "euler_ancestral", *TWO_CALLS, "lcm", "tcd")  # with no memory of the steps before


def no_noise(x: Tensor, sigma: float, sigma_next: float) -> Tensor:
    raise AssertionError("noise was drawn where it would be multiplied by zero")


@pytest.fixture
def noise(normal) -> Callable[..., Tensor]:
    """The draws of the golden runs, in order."""
    count = iter(range(10**6))
    return lambda x, *_: normal(f"noise.{next(count)}", tuple(x.shape)).to(x.dtype)


def karras(n: int, low: float = 0.03, high: float = 14.6, last: float = 0.0) -> Tensor:
    """(n + 1,): what is fine enough everywhere for n of ten or more."""
    ramp = torch.linspace(high ** (1 / 7), low ** (1 / 7), n, dtype=torch.float64) ** 7
    return torch.cat([ramp, torch.tensor([last], dtype=torch.float64)])


# Agreement with other implementations --------------------------------------------------------------------------------


@pytest.mark.parametrize("sigmas", ["karras.10", "normal.20"])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in (*WITHOUT_S_NOISE, "dpmpp_2m_sde_heun")])
def test_as_in_k_diffusion(name, sigmas, golden, mixture, normal, noise, error, last):
    tables = golden("samplers-k-diffusion")
    levels = tables[f"sigmas.{sigmas}"]
    x = last(SAMPLERS[name][0](mixture, normal("x") * levels[0], levels, noise=noise))
    assert error(x, tables[f"{name}.{sigmas}"]) < 1e-12


@pytest.mark.parametrize("sigmas", ["karras.10", "normal.20"])
@pytest.mark.parametrize(
    ("name", "twin"), [("euler_ancestral", "euler"), ("dpm_2_ancestral", "dpm_2"), ("dpmpp_2m_sde", "dpmpp_2m")]
)
def test_without_noise_as_their_twins_in_k_diffusion(name, twin, sigmas, golden, mixture, normal, error, last):
    tables = golden("samplers-k-diffusion")
    levels = tables[f"sigmas.{sigmas}"]
    x = last(SAMPLERS[name][0](mixture, normal("x") * levels[0], levels, noise=no_noise, eta=0.0))
    assert error(x, tables[f"{twin}.{sigmas}"]) < 1e-12


@pytest.mark.parametrize(("name", "solver"), [("dpmpp_2m_sde", "midpoint"), ("dpmpp_2m_sde_heun", "heun")])
def test_dpmpp_2m_sde_as_in_diffusers(name, solver, golden, mixture, normal, noise, error, last):
    tables = golden("samplers-diffusers-stochastic")
    sigmas = tables["dpmpp_2m_sde.sigmas.10"]
    x = last(SAMPLERS[name][0](mixture, normal("x") * (1 + sigmas[0] ** 2).sqrt(), sigmas, noise=noise))
    assert error(x, tables[f"dpmpp_2m_sde.{solver}.10"]) < 1e-6


def distilled_levels(tables: dict[str, Tensor], n: int, end: float) -> Tensor:
    t = torch.tensor([999]) if n == 1 else tables[f"lcm.timesteps.{n}"]
    return torch.cat([SCHEDULE.sigmas[t], torch.tensor([end], dtype=torch.float64)])


@pytest.mark.parametrize("n", [1, 4, 50])
def test_lcm_as_in_diffusers(n, golden, mixture, normal, noise, error, last):
    """Down to t = 19 at n = 50, where the boundary condition changes 7e-6 of x."""
    tables = golden("samplers-diffusers-stochastic")
    sigmas = distilled_levels(tables, n, 0.0)
    x = last(lcm(mixture, normal("x") * (1 + sigmas[0] ** 2).sqrt(), sigmas, noise=noise))
    assert error(x, tables[f"lcm.{n}"]) < 1e-6


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("n", [4, 50])
def test_tcd_as_in_diffusers(n, gamma, golden, mixture, normal, noise, error, last):
    tables = golden("samplers-diffusers-stochastic")
    sigmas = distilled_levels(tables, n, float(SCHEDULE.sigmas[0]))  # there, the last step ends at t = 0
    x = last(tcd(mixture, normal("x") * (1 + sigmas[0] ** 2).sqrt(), sigmas, noise=noise, eta=gamma))
    assert error(x / (1 + sigmas[-1] ** 2).sqrt(), tables[f"tcd.{n}.gamma{gamma}"]) < 1e-6


def test_lcm_is_the_identity_at_the_first_training_level(normal):
    """The boundary condition of a consistency function, in the variance-preserving coordinates of the paper."""
    x, sigma = normal("x"), SCHEDULE.sigmas[0]
    (step,) = lcm(lambda x, sigma: x * 0 + 5, x, torch.stack([sigma, sigma * 0]), noise=no_noise)
    torch.testing.assert_close(step.x, x / (1 + sigma**2).sqrt())


def test_lcm_keeps_a_little_of_x_at_the_second_training_level(normal):
    """Where t is 1, counted 10: c_skip is (1/4) / (10² + 1/4)."""
    x, sigma = normal("x"), SCHEDULE.sigmas[1]
    (step,) = lcm(lambda x, sigma: x * 0 + 5, x, torch.stack([sigma, sigma * 0]), noise=no_noise)
    kept = 0.25 / 100.25 * x / (1 + sigma**2).sqrt()
    torch.testing.assert_close(step.x - 10 / 100.25**0.5 * 5, kept, rtol=1e-9, atol=1e-12)


def test_tcd_without_noise_is_ddim_between_timesteps_too(mixture, normal, error, last):
    x, sigmas = normal("x") * 14, karras(9)
    assert (
        error(
            last(tcd(mixture, x, sigmas, noise=no_noise, eta=0.0)),
            last(SAMPLERS["ddim"][0](mixture, x, sigmas, noise=no_noise)),
        )
        < 1e-12
    )


@pytest.mark.parametrize("name", ["lcm", "tcd"])
def test_the_schedule_says_what_a_timestep_is(name, mixture, normal, noise, error, last):
    sigmas, other = SPACINGS["trailing"](SCHEDULE, 4), NoiseSchedule("linear", 0.0015, 0.0195)
    sigmas[-2] = SCHEDULE.sigmas[1]
    draw = lambda x, sigma, _: normal(f"{sigma:.3f}")  # noqa: E731
    a, b = (
        last(SAMPLERS[name][0](mixture, normal("x") * 14, sigmas, noise=draw, schedule=one)) for one in (None, other)
    )
    assert torch.equal(a, last(SAMPLERS[name][0](mixture, normal("x") * 14, sigmas, noise=draw, schedule=SCHEDULE)))
    assert error(a, b) > 1e-4


# Order of convergence ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "order", "steps"),
    [
        ("euler_ancestral", 0.9, (40, 80)),
        ("dpm_2_ancestral", 1.9, (20, 40)),
        ("dpmpp_2s_ancestral", 1.9, (20, 40)),
        ("dpmpp_sde", 1.9, (20, 40)),
        ("dpmpp_2m_sde", 1.9, (40, 80)),
        ("dpmpp_2m_sde_heun", 1.9, (40, 80)),
        ("dpmpp_3m_sde", 1.8, (80, 160)),
        ("tcd", 0.9, (40, 80)),
    ],
)
def test_order_without_noise(name, order, steps, golden, mixture, normal, error, last):
    """On the mixture, and on a Gaussian, whose flow is x / sqrt(variance + sigma^2) = constant."""
    tables = golden("samplers-k-diffusion")
    top, bottom = (float(tables["sigmas.normal.10"][i]) for i in (0, -2))
    flow = tables["ode_solution.to_sigma_min_then_zero"]
    assert _order(name, mixture, normal("x") * top, [karras(n, bottom, top) for n in steps], flow, error, last) > order
    x = normal("x") * math.sqrt(0.25 + top**2)
    levels = [karras(n, bottom, top)[:-1] for n in (2 * steps[0], 2 * steps[1])]
    end = normal("x") * math.sqrt(0.25 + bottom**2)
    assert _order(name, lambda x, s: x * 0.25 / (0.25 + s**2), x, levels, end, error, last) > order


def _order(name, denoise, x, levels, expected, error, last) -> float:
    errors = [error(last(SAMPLERS[name][0](denoise, x, s, noise=no_noise, eta=0.0)), expected) for s in levels]
    return math.log2(errors[0] / errors[1])


# The law of the samples ----------------------------------------------------------------------------------------------

MEAN = torch.tensor([[0.3], [-0.8]], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.2, 0.5], [0.5, 0.4]], dtype=torch.float64)
COUNT = 100_000


def gain(sigma: float) -> Tensor:
    """(2, 2): E[z | x] = MEAN + gain (x - MEAN)."""
    return COVARIANCE @ torch.linalg.inv(COVARIANCE + sigma**2 * torch.eye(2, dtype=torch.float64))


def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    """The denoiser of that Gaussian: x is (1, 2, COUNT), a point a column."""
    return gain(float(sigma)).to(x.dtype) @ (x - MEAN.to(x.dtype)) + MEAN.to(x.dtype)


def samples(name: str, sigmas: Tensor, noise: Callable[..., Tensor] | None = None, **options: float) -> Tensor:
    """(2, COUNT) float64, from the exact law at sigmas[0]; noise None draws every time anew."""
    generator = torch.Generator().manual_seed(1)
    draw = lambda *_: torch.randn(1, 2, COUNT, generator=generator)  # noqa: E731
    z = torch.linalg.cholesky(COVARIANCE).float() @ draw() + MEAN.float()
    x = z + float(sigmas[0]) * draw()
    steps = SAMPLERS[name][0](gaussian, x, sigmas, noise=noise or draw, **options)
    return list(steps)[-1].x[0].double()


def off(x: Tensor, covariance: Tensor) -> float:
    """The farthest that mean or covariance are off, in standard errors."""
    variance = covariance.diagonal()
    mean = (x.mean(1) - MEAN[:, 0]).abs() / (variance / COUNT).sqrt()
    deviation = ((variance[:, None] * variance + covariance**2) / COUNT).sqrt()
    return float(max(mean.max(), ((x.cov() - covariance).abs() / deviation).max()))


@pytest.mark.parametrize(
    ("name", "n", "eta"),
    [
        ("dpm_2_ancestral", 90, 1.0),
        ("dpmpp_2s_ancestral", 50, 1.0),
        ("dpmpp_2m_sde", 90, 1.0),
        ("dpmpp_2m_sde", 90, 0.5),
        ("dpmpp_2m_sde_heun", 90, 1.0),
        ("dpmpp_3m_sde", 60, 1.0),
    ],
)
def test_samples_have_the_mean_and_covariance_of_the_data(name, n, eta):
    assert off(samples(name, karras(n), eta=eta), COVARIANCE) < 4


def test_dpmpp_sde_has_them_because_its_two_draws_are_of_one_path():
    sigmas = karras(40)
    assert off(samples("dpmpp_sde", sigmas, BrownianNoise([0])), COVARIANCE) < 4
    assert off(samples("dpmpp_sde", sigmas), COVARIANCE) > 8


def known_split(name: str, sigma: float, sigma_next: float) -> tuple[float, float]:
    """(sigma_down, sigma_up), from the papers' words."""
    if name == "lcm":
        return 0.0, sigma_next
    if name == "tcd":
        t_next = float(SCHEDULE.sigma_to_t(torch.tensor(sigma_next).double()))
        down = float(SCHEDULE.sigmas[int(0.7 * t_next + 1e-6)]) if sigma_next > 0 else 0.0
        return down, math.sqrt(sigma_next**2 - down**2)
    posterior_variance = 1 / (1 / sigma_next**2 + 1 / (sigma**2 - sigma_next**2)) if sigma_next > 0 else 0.0
    return sigma_next**2 / sigma, math.sqrt(posterior_variance)  # of a product of two Gaussians


@pytest.mark.parametrize("name", ["euler_ancestral", "lcm", "tcd"])
def test_samples_have_the_law_that_few_steps_are_known_to_give(name):
    """A step is x -> A x + sigma_up n, A = (sigma_down / sigma) (1 - K) + K, K the gain: far from the data's law."""
    sigmas = SPACINGS["trailing"](SCHEDULE, 8)
    law, one = COVARIANCE + float(sigmas[0]) ** 2 * torch.eye(2), torch.eye(2, dtype=torch.float64)
    for sigma, sigma_next in pairwise(sigmas.tolist()):
        down, up = known_split(name, sigma, sigma_next)
        matrix = gain(sigma) + down / sigma * (one - gain(sigma))
        law = matrix @ law @ matrix.T + up**2 * one
    drawn = samples(name, sigmas)
    assert off(drawn, law) < 4
    assert off(drawn, COVARIANCE) > 8


# One Brownian path ---------------------------------------------------------------------------------------------------


def correlation(a: Tensor, b: Tensor) -> float:
    """The mean over images."""
    pairs = zip(a.flatten(1), b.flatten(1), strict=True)
    return float(torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs]).mean())


@pytest.mark.parametrize("name", ["restart", *(name for name in NAMES if name != "lcm")])
def test_20_and_40_steps_draw_one_picture(name, mixture, last):
    """Of one of three components: which, is decided by noise of the first steps, the rest by all of it."""
    seeds = range(4)

    def draw(n: int, purpose: str) -> Tensor:
        x = starting_noise(seeds, (4, 8, 8)).double() * 14.6
        return last(SAMPLERS[name][0](mixture, x, karras(n), noise=BrownianNoise(seeds, purpose)))

    coarse, fine, other = draw(20, "one"), draw(40, "one"), draw(40, "another")
    if name != "tcd":  # which has no limit of many steps
        assert correlation(coarse, fine) > 0.98
    least = 0.15 if name == "restart" else 0.3  # whose noise comes when much is decided
    assert correlation(coarse, fine) > correlation(coarse, other) + least


# The contract of a sampler -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_table(name):
    function, spacing = SAMPLERS[name]
    parameters = inspect.signature(function).parameters
    assert spacing in SPACINGS and list(parameters)[:3] == ["denoise", "x", "sigmas"]
    assert all(one.kind == inspect.Parameter.KEYWORD_ONLY for one in list(parameters.values())[3:])
    if name in WITH_ETA:
        assert parameters["eta"].default == (0.3 if name == "tcd" else 1.0)
    if name not in WITHOUT_S_NOISE:
        assert parameters["s_noise"].default == 1.0


EVERY_N = [*range(1, 61), 100, 250, 333, 999, 1000]


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_asked_of_denoise_and_noise(name, spacing, plain_levels):
    sampler, lowest = SAMPLERS[name][0], float(SCHEDULE.sigmas[0])
    for n in EVERY_N:
        for end in (0.0, 0.01)[: 2 if n < 20 else 1]:
            sigmas, calls, draws = SPACINGS[spacing](SCHEDULE, n), [], []
            sigmas[-1] = end

            def denoise(x: float, sigma: float) -> float:  # a number is all that a sampler needs, and is cheap
                calls.append(sigma)  # noqa: B023
                return x / (1 + sigma**2)

            def noise(x: float, sigma: float, sigma_next: float) -> float:
                draws.append((sigma, sigma_next))  # noqa: B023
                return 0.5

            steps = list(sampler(denoise, 1.0, sigmas, noise=noise))
            assert [step.i for step in steps] == list(range(n))
            assert [step.sigma for step in steps] == sigmas[1:].tolist()
            assert math.isfinite(steps[-1].x)
            twice = name in TWO_CALLS
            assert len(calls) == (2 * n - (end == 0) if twice else n)
            assert calls[:: 2 if twice else 1] == sigmas[:-1].tolist()
            bottom = lowest if name == "tcd" else 0.0  # where there is nothing to add noise to
            expected = [pair for pair in pairwise(sigmas.tolist()) if pair[1] > bottom]
            if name == "dpmpp_sde":
                expected = [pair for a, b in expected for pair in ((a, math.sqrt(a * b)), (a, b))]
            assert draws == expected


@pytest.mark.parametrize("name", NAMES)
def test_the_estimate_of_a_step_and_the_last_of_all(name, mixture, normal, noise):
    sigmas = SPACINGS["trailing"](SCHEDULE, 5)
    steps = list(SAMPLERS[name][0](mixture, normal("x") * 14, sigmas, noise=noise))
    assert torch.equal(steps[-1].x, steps[-1].x0)
    for before, step in pairwise(steps):
        torch.testing.assert_close(step.x0, mixture(before.x, before.sigma), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_pure_and_lazy(name, mixture, normal):
    x, sigmas = normal("x") * 14, SPACINGS["trailing"](SCHEDULE, 5)
    before, levels, calls = x.clone(), sigmas.clone(), []
    draw = lambda x, sigma, sigma_next: normal(f"{sigma:.3f} {sigma_next:.3f}")  # noqa: E731
    run = lambda: SAMPLERS[name][0](  # noqa: E731
        lambda x, sigma: calls.append(sigma) or mixture(x, sigma), x, sigmas, noise=draw
    )
    steps = run()
    assert not calls
    next(steps)
    assert len(calls) == (2 if name in TWO_CALLS else 1)
    first, second = list(run()), list(run())
    assert all(torch.equal(a.x, b.x) for a, b in zip(first, second, strict=True))
    assert len({step.x.data_ptr() for step in first}) == 5
    assert torch.equal(x, before) and torch.equal(sigmas, levels)


@pytest.mark.parametrize("name", OF_ONE_STEP)
def test_resuming_from_a_step_changes_no_bit(name, mixture, last):
    x, sigmas = starting_noise([3, 4], (4, 8, 8)) * 14, karras(8)
    steps = list(SAMPLERS[name][0](mixture, x, sigmas, noise=BrownianNoise([3, 4])))
    again = last(SAMPLERS[name][0](mixture, steps[2].x, sigmas[3:], noise=BrownianNoise([3, 4])))
    assert torch.equal(again, steps[-1].x)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_the_same_alone_and_in_a_batch(name, mixture, last):
    seeds, sigmas = list(range(8)), karras(10)

    def draw(some: list[int]) -> Tensor:
        x = starting_noise(some, (4, 8, 8)) * 14
        return last(SAMPLERS[name][0](mixture, x, sigmas, noise=BrownianNoise(some)))

    together = draw(seeds)
    for i in (0, 5):
        assert (draw([seeds[i]]) - together[i : i + 1]).abs().max() <= 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_no_digits_are_lost_in_float32_from_zero_snr_down(name, mixture, last):
    sigmas = SPACINGS["trailing"](NoiseSchedule(zero_terminal_snr=True), 20)
    x = starting_noise([3, 4], (4, 8, 8)) * 65536
    double, single = (
        last(SAMPLERS[name][0](mixture, x.to(dtype), sigmas, noise=BrownianNoise([3, 4])))
        for dtype in (torch.float64, torch.float32)
    )
    assert single.dtype == torch.float32
    assert float((single - double).norm() / double.norm()) < 2e-4


@pytest.mark.parametrize("name", [*(name for name in NAMES if name not in WITHOUT_S_NOISE), "dpm_fast", "dpm_adaptive"])
def test_s_noise_scales_all_noise(name, mixture, normal, last):
    x, sigmas, options = normal("x") * 14, karras(6), {} if name in NAMES else {"eta": 1.0}
    draw = lambda x, sigma, sigma_next: normal(f"{sigma:.3f} {sigma_next:.3f}")  # noqa: E731
    scaled = last(SAMPLERS[name][0](mixture, x, sigmas, noise=draw, s_noise=1.1, **options))
    louder = last(SAMPLERS[name][0](mixture, x, sigmas, noise=lambda *a: 1.1 * draw(*a), **options))
    torch.testing.assert_close(scaled, louder, rtol=1e-12, atol=1e-12)
    none = last(SAMPLERS[name][0](mixture, x, sigmas, noise=no_noise, s_noise=0.0, **options))
    assert not torch.allclose(none, scaled)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_agree_with_finite_differences(name, mixture, normal, last):
    sigmas = karras(5)
    shift, x = normal("shift", (1, 4, 8, 8)) * 0.1, normal("x", (1, 4, 8, 8)) * sigmas[0]
    draw = lambda x, sigma, sigma_next: normal(f"{sigma:.3f} {sigma_next:.3f}", (1, 4, 8, 8))  # noqa: E731

    def result(x: Tensor, shift: Tensor) -> Tensor:
        denoise = lambda x, sigma: mixture(x + shift, sigma)  # noqa: E731
        return last(SAMPLERS[name][0](denoise, x, sigmas, noise=draw))

    assert torch.autograd.gradcheck(result, (x.requires_grad_(), shift.requires_grad_()), fast_mode=True)
