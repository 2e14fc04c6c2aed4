from __future__ import annotations

import inspect
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from ldm.models.diffusion import SPACINGS, NoiseSchedule
from ldm.models.diffusion.levels import of_sigmas, of_timesteps, spaced
from ldm.models.diffusion.spacing import ending_in_zero

SCHEDULE = NoiseSchedule()
OVER_T = ("uniform", "legacy", "trailing", "linspace", "sgm_uniform", "simple", "quad", "beta")
WHOLE = ("uniform", "legacy", "trailing", "simple", "quad", "beta")
OVER_SIGMA = ("karras", "exponential", "polyexponential", "kl_optimal")  # these have sigma_min and sigma_max
close = partial(torch.testing.assert_close, atol=0)


class Identity(NoiseSchedule):
    """Where timestep t has noise level t + 1: a spacing over timesteps gives them away."""

    def t_to_sigma(self, t):
        return t + 1


def timesteps(spacing: str, n: int) -> list[float]:
    if spacing in OVER_T:
        return (SPACINGS[spacing](Identity(), n)[:-1] - 1).tolist()
    return SCHEDULE.sigma_to_t(SPACINGS[spacing](SCHEDULE, n)[:-1]).tolist()


def shipped() -> dict[str, NoiseSchedule]:
    """Every schedule of a shipped config once, under the name of the first that has it."""

    def walk(tree):
        if isinstance(tree, dict):
            if tree.get("target") == "NoiseSchedule":
                yield tree.get("params", {})
            for value in tree.values():
                yield from walk(value)

    found = {}
    for path in sorted((Path(__file__).parents[3] / "configs").glob("*.yaml")):
        for params in walk(yaml.safe_load(path.read_text())):
            found.setdefault(repr(sorted(params.items())), (path.stem, NoiseSchedule(**params)))
    return dict(found.values())


SHIPPED = shipped()
SCHEDULES = SHIPPED | {"zero_terminal_snr": NoiseSchedule(zero_terminal_snr=True), "cosine": NoiseSchedule("cosine")}


# Every spacing, every n ---------------------------------------------------------------------------------------------


def check(sigmas, schedule, n):
    assert sigmas.shape == (n + 1,) and sigmas.dtype == torch.float64
    assert (sigmas.diff() < 0).all(), n
    assert sigmas[-1] == 0 and sigmas[-2] >= schedule.sigmas[0] * (1 - 1e-9)
    assert sigmas[0] <= schedule.sigmas[-1] * (1 + 1e-9)


def test_the_lists_here_name_every_spacing():
    named = {*OVER_T, *OVER_SIGMA, "align_your_steps", "align_your_steps_xl"}
    assert named == set(SPACINGS)
    assert len(SHIPPED) >= 5 and {"ddpm-cat-256", "ldm-cin256", "ldm-lsun-churches"} <= set(SHIPPED)


@pytest.mark.parametrize("spacing", OVER_T)
def test_exactly_n_falling_timesteps_for_every_n(spacing):
    """And so falling sigmas, on every schedule: they rise with t, which is looked at for all lists at once."""
    identity, lists = Identity(), []
    for n in range(1, 1001):
        t = SPACINGS[spacing](identity, n) - 1
        assert t.shape == (n + 1,) and t.dtype == torch.float64 and t[-1] == -1
        lists.append(t[:-1])
    visited = torch.cat(lists)
    within = torch.cat([torch.arange(n) for n in range(1, 1001)])[1:] > 0  # a list, not between two
    assert (visited.diff()[within] < 0).all() and visited.min() >= 0 and visited.max() <= 999
    assert spacing not in WHOLE or (visited == visited.round()).all()
    for name in ("zero_terminal_snr", "cosine"):
        assert (SCHEDULES[name].t_to_sigma(visited).diff()[within] < 0).all()


@pytest.mark.parametrize("spacing", [name for name in SPACINGS if name not in OVER_T])
@pytest.mark.parametrize("schedule", [SCHEDULE, SCHEDULES["zero_terminal_snr"]], ids=["sd", "zero_terminal_snr"])
def test_exactly_n_falling_sigmas_for_every_n(spacing, schedule):
    for n in range(1, 1001, 1 if schedule is SCHEDULE else 9):
        check(SPACINGS[spacing](schedule, n), schedule, n)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule(spacing, name):
    for n in (*range(1, 12), 50, 101, 333, 599, 802, 803, 999, 1000):
        check(SPACINGS[spacing](SCHEDULES[name], n), SCHEDULES[name], n)


@pytest.mark.parametrize("spacing", WHOLE)
def test_a_thousand_steps_visit_every_timestep(spacing):
    assert timesteps(spacing, 1000) == list(reversed(range(1000)))


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("total", [2, 3, 7, 50])
def test_a_schedule_of_another_length(spacing, total):
    schedule = NoiseSchedule(num_timesteps=total, beta_end=0.2)
    for n in range(1, total + 1):
        check(SPACINGS[spacing](schedule, n), schedule, n)
    with pytest.raises(ValueError, match=f"steps is {total + 1}; this model takes 1 to {total}"):
        SPACINGS[spacing](schedule, total + 1)


# Known answers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", ["uniform", "legacy"])
@pytest.mark.parametrize("n", [1, 4, 20, 50, 250])
def test_the_original_stride_where_that_divides(spacing, n, golden):
    tables, sigmas = golden("schedules"), SPACINGS[spacing](SCHEDULE, n)[:-1].flip(0)
    assert SCHEDULE.sigma_to_t(sigmas).tolist() == tables[f"ddim.uniform.{n}.timesteps"].tolist()
    close(1 / (1 + sigmas**2), tables[f"ddim.uniform.{n}.alphas"].double(), rtol=1.2e-7)


def test_the_two_strides_where_the_original_fails():
    assert timesteps("uniform", 7) == [858, 715, 572, 429, 286, 143, 1]  # the original takes 8 steps
    assert timesteps("legacy", 7) == [853, 711, 569, 427, 285, 143, 1]  # the 8 without the highest, 995
    assert timesteps("uniform", 3) == [667, 334, 1]  # and here crashes: its last timestep is 1000
    assert timesteps("legacy", 3) == [667, 334, 1]
    assert timesteps("legacy", 600)[0] == 600


def test_trailing_and_its_neighbours():
    assert timesteps("trailing", 4) == [999, 749, 499, 249]
    assert timesteps("trailing", 3) == [999, 666, 332]
    assert timesteps("simple", 3) == [999, 666, 333]
    assert timesteps("sgm_uniform", 3) == [999, 666, 333]
    assert timesteps("sgm_uniform", 4) == [999, 749.25, 499.5, 249.75]
    for spacing in ("trailing", "simple", "sgm_uniform", "linspace", "beta", "align_your_steps"):
        assert timesteps(spacing, 1) == [999]


@pytest.mark.parametrize("n", [1, 4, 7, 20, 50, 250])
def test_quad_is_the_originals_but_for_its_repeated_timesteps(n, golden):
    theirs = golden("schedules")[f"ddim.quad.{n}.timesteps"].tolist()
    ours = list(reversed(timesteps("quad", n)))
    if len(set(theirs)) == n:
        assert ours == theirs
    else:  # 1, 1, 2, 3 … there
        assert 0 < sum(a != b for a, b in zip(ours, theirs, strict=True)) == {50: 1, 250: 76}[n]
        first_kept = next(i for i in range(n) if ours[i:] == theirs[i:])
        assert ours[:first_kept] == list(range(first_kept))


def test_quad_begins_higher_where_there_are_too_few_timesteps():
    assert timesteps("quad", 1) == timesteps("uniform", 1) == [1]
    assert timesteps("quad", 2)[0] == timesteps("quad", 800)[0] == 801
    assert timesteps("quad", 802) == list(reversed(range(802)))
    assert timesteps("quad", 900) == list(reversed(range(900)))


def beta_rule(n):
    """Quantiles of Beta(a, a) by bisection of the series x^a / B Σ (1 - a)_k / k! x^k / (a + k), for x <= 1/2."""
    a, k = 0.6, np.arange(80)
    terms = np.cumprod(np.concatenate([[1.0], (k[1:] - a) / k[1:]])) / (a + k)
    p = 1 - np.arange(n) / n
    side = np.minimum(p, 1 - p)
    area = math.gamma(a) ** 2 / math.gamma(2 * a)
    low, high = np.zeros(n), np.full(n, 0.5)
    for _ in range(60):
        x = (low + high) / 2
        below = x**a / area * (terms * x[:, None] ** k).sum(1) < side
        low, high = np.where(below, x, low), np.where(below, high, x)
    return np.where(p < 0.5, low, 1 - low) * 999


def test_beta():
    """The first two as ComfyUI's, which were computed with scipy."""
    assert timesteps("beta", 10) == [999, 959, 876, 765, 637, 500, 362, 234, 123, 40]
    assert timesteps("beta", 5) == [999, 876, 637, 362, 123]
    for n in (2, 3, 7, 20, 33, 50, 60):
        theirs = np.rint(beta_rule(n) + 1e-9)
        assert len(set(theirs)) == n and timesteps("beta", n) == theirs.tolist()
    assert len(set(np.rint(beta_rule(250)))) < 250  # ComfyUI takes fewer steps here
    assert np.abs(np.array(timesteps("beta", 250)) - beta_rule(250)).max() < 2.5


def test_equal_timesteps_are_pushed_apart_and_others_stay():
    from ldm.models.diffusion.spacing import _distinct

    def moved(*t: float) -> list[float]:
        return _distinct(torch.tensor(t, dtype=torch.float64)).tolist()

    assert moved(9, 5, 3, 0) == [9, 5, 3, 0]
    assert moved(9, 9, 9, 5) == [9, 8, 7, 5]
    assert moved(9, 9, 8, 3) == [9, 8, 7, 3]
    assert moved(9, 1, 1, 1) == [9, 2, 1, 0]
    assert moved(0, 0, 0) == [2, 1, 0]


@pytest.mark.parametrize("n", [5, 10, 20])
@pytest.mark.parametrize(
    ("spacing", "theirs", "options"),
    [
        ("linspace", "normal", {}),
        ("karras", "karras", {}),
        ("exponential", "exponential", {}),
        ("polyexponential", "polyexponential", {"rho": 1.5}),
    ],
)
def test_k_diffusion(spacing, theirs, options, n, golden):
    close(spaced(SCHEDULE, n, spacing, **options), golden("samplers-k-diffusion")[f"sigmas.{theirs}.{n}"], rtol=1e-13)


@pytest.mark.parametrize("n", [2, 9, 40])
def test_formulas_over_sigma(n):
    low, high = 0.1, 11.0
    ends = {"sigma_min": low, "sigma_max": high}
    for i in range(n):
        s = i / (n - 1)
        expected = {
            ("karras", 7.0): (high ** (1 / 7) + s * (low ** (1 / 7) - high ** (1 / 7))) ** 7,
            ("karras", 3.0): (high ** (1 / 3) + s * (low ** (1 / 3) - high ** (1 / 3))) ** 3,
            ("exponential", None): high * (low / high) ** s,
            ("polyexponential", 1.0): high * (low / high) ** s,
            ("polyexponential", 2.0): math.exp(math.log(low) + (1 - s) ** 2 * (math.log(high) - math.log(low))),
            ("kl_optimal", None): math.tan(s * math.atan(low) + (1 - s) * math.atan(high)),
        }
        for (spacing, rho), sigma in expected.items():
            assert float(spaced(SCHEDULE, n, spacing, rho=rho, **ends)[i]) == pytest.approx(sigma, rel=1e-12)
    assert torch.equal(spaced(SCHEDULE, n, "karras", rho=7.0, **ends), spaced(SCHEDULE, n, "karras", **ends))


@pytest.mark.parametrize("spacing", OVER_SIGMA)
def test_sigma_min_and_sigma_max_are_the_ends(spacing):
    sigmas = spaced(SCHEDULE, 6, spacing, sigma_min=0.2, sigma_max=5.0)
    close(sigmas[[0, -2, -1]], torch.tensor([5, 0.2, 0], dtype=torch.float64), rtol=1e-12)
    close(spaced(SCHEDULE, 6, spacing)[[0, -2]], SCHEDULE.sigmas[[-1, 0]], rtol=1e-12)
    assert float(spaced(SCHEDULE, 1, spacing, sigma_max=14.615)[0]) == pytest.approx(14.615)  # 14.6146, rounded


def test_the_timesteps_of_align_your_steps():
    """Those that diffusers has as AysSchedules."""
    published = {
        "align_your_steps": [999, 850, 736, 645, 545, 455, 343, 233, 124, 24],
        "align_your_steps_xl": [999, 845, 730, 587, 443, 310, 193, 116, 53, 13],
    }
    for spacing, expected in published.items():
        assert timesteps(spacing, 10) == pytest.approx(expected, abs=1e-9)


PUBLISHED = {
    "align_your_steps": [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152],
    "align_your_steps_xl": [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113],
}


@pytest.mark.parametrize("spacing", PUBLISHED)
def test_align_your_steps(spacing):
    published = torch.tensor([*PUBLISHED[spacing], 0], dtype=torch.float64)
    ten, twenty, five = (SPACINGS[spacing](SCHEDULE, n) for n in (10, 20, 5))
    torch.testing.assert_close(ten, published, rtol=5e-3, atol=2e-3)  # which has three digits
    close(twenty[0:-1:2], ten[:-1], rtol=1e-12)
    close(twenty[1:-2:2].log(), (ten[:-2] * ten[1:-1]).log() / 2, rtol=1e-9)
    close(five[:-1], ten[0:-1:2], rtol=1e-12)
    last = (ten[-2] * SCHEDULE.sigmas[0]).sqrt()  # the curve goes on to the lowest level, which gives way to 0
    close(twenty[-2], last, rtol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 5, 7, 10, 20, 30, 50, 99, 250, 333, 500])
def test_timesteps_of_diffusers(n):
    from diffusers import DDIMScheduler, EulerDiscreteScheduler

    def theirs(scheduler, spacing, **options):
        scheduler = scheduler(timestep_spacing=spacing, beta_schedule="scaled_linear", **options)
        scheduler.set_timesteps(n)
        return scheduler.timesteps.tolist()

    assert timesteps("legacy", n) == theirs(DDIMScheduler, "leading", steps_offset=1)
    assert timesteps("trailing", n) == theirs(DDIMScheduler, "trailing")[:n]
    if n > 1:
        assert [round(t) for t in timesteps("linspace", n)] == theirs(DDIMScheduler, "linspace")
        assert timesteps("linspace", n) == pytest.approx(theirs(EulerDiscreteScheduler, "linspace"), rel=1e-6)


@pytest.mark.parametrize("n", [1, 2, 7, 10, 33, 50, 250])
def test_sgm_uniform_is_diffusers_dpm_solvers_linspace(n):
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(timestep_spacing="linspace")
    scheduler.set_timesteps(n)
    assert [round(t) for t in timesteps("sgm_uniform", n)] == scheduler.timesteps.tolist()


# Lists of one's own -------------------------------------------------------------------------------------------------


def test_lists_are_visited_as_given():
    assert of_sigmas(SCHEDULE, [14.6, 7, 3.5]).tolist() == [14.6, 7, 3.5, 0]
    assert torch.equal(of_sigmas(SCHEDULE, (14.6, 7, 3.5, 0)), of_sigmas(SCHEDULE, (14.6, 7, 3.5)))
    assert of_sigmas(SCHEDULE, [14.615, 1e-4])[0] == 14.615
    assert of_sigmas(SCHEDULE, [5, 0]).tolist() == of_sigmas(SCHEDULE, [5]).tolist() == [5, 0]
    highest = float(SCHEDULE.sigmas[-1]) * 1.001
    assert of_sigmas(SCHEDULE, [highest])[0] == highest
    assert float(spaced(SCHEDULE, 2, "karras", sigma_max=highest)[0]) == pytest.approx(highest, rel=1e-12)
    assert of_sigmas(NoiseSchedule(zero_terminal_snr=True), [2.0**16, 1]).tolist() == [2**16, 1, 0]
    levels = of_timesteps(SCHEDULE, (999, 850, 24.5, 0))
    assert torch.equal(levels[[0, 1, 3]], SCHEDULE.sigmas[[999, 850, 0]]) and levels[-1] == 0 and levels.shape == (5,)
    assert SCHEDULE.sigmas[24] < levels[2] < SCHEDULE.sigmas[25]


@pytest.mark.parametrize(
    ("function", "values", "words"),
    [
        (of_sigmas, [], "sigmas is an empty list; give numbers above 0, up to 14.6146"),
        (of_sigmas, [0], "sigmas has 0 in it; this model takes numbers above 0, up to 14.6146"),
        (of_sigmas, [7, 0, 0], "sigmas has 0 in it"),
        (of_sigmas, [7, 0, 3], "sigmas has 0 in it"),
        (of_sigmas, [15, 7], "sigmas has 15 in it"),
        (of_sigmas, [7, 7], "sigmas has 7 after 7; each number must be below the one before it"),
        (of_sigmas, [3, 7], "sigmas has 7 after 3"),
        (of_sigmas, [7, math.nan], "sigmas has nan in it"),
        (of_sigmas, [math.inf, 7], "sigmas has inf in it"),
        (of_sigmas, [7, -1], "sigmas has -1 in it"),
        (of_sigmas, ["7", 3], "sigmas has '7' in it"),
        (of_timesteps, [], "timesteps is an empty list; give numbers from 0 to 999"),
        (of_timesteps, [1000, 0], "timesteps has 1000 in it; this model takes numbers from 0 to 999"),
        (of_timesteps, [999, -1], "timesteps has -1 in it"),
        (of_timesteps, [999, 999.5], "timesteps has 999.5 in it"),
        (of_timesteps, [5, 6], "timesteps has 6 after 5"),
    ],
)
def test_lists_that_cannot_be_walked(function, values, words):
    with pytest.raises(ValueError, match=words):
        function(SCHEDULE, values)


# Errors -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("n", [-1, 0, 1001])
def test_errors(spacing, n):
    with pytest.raises(ValueError, match=f"steps is {n}; this model takes 1 to 1000"):
        SPACINGS[spacing](SCHEDULE, n)


def test_what_a_spacing_does_not_have_is_refused_naming_those_that_do():
    with pytest.raises(ValueError, match="rho is 7, but spacing trailing has none; karras, polyexponential have it"):
        spaced(SCHEDULE, 5, "trailing", rho=7.0, sigma_min=None)
    with pytest.raises(ValueError, match="rho is 2, but spacing exponential has none"):
        spaced(SCHEDULE, 5, "exponential", rho=2.0)
    for name in ("sigma_min", "sigma_max"):
        having = [key for key, function in SPACINGS.items() if name in inspect.signature(function).parameters]
        assert having == list(OVER_SIGMA)
        with pytest.raises(ValueError, match=f"{name} is 1, but spacing beta has none; {', '.join(OVER_SIGMA)} have"):
            spaced(SCHEDULE, 5, "beta", **{name: 1.0})


@pytest.mark.parametrize("spacing", OVER_SIGMA)
@pytest.mark.parametrize(
    ("low", "high"), [(0, None), (-1, None), (5, 5), (6, 5), (None, 14.7), (None, 0.02), (math.nan, 5)]
)
def test_ends_out_of_range(spacing, low, high):
    with pytest.raises(ValueError, match="this model takes 0 < sigma_min < sigma_max <= 14.6146"):
        spaced(SCHEDULE, 5, spacing, sigma_min=low, sigma_max=high)


@pytest.mark.parametrize("rho", [0.0, 0.09, 101.0, -1.0, math.inf, math.nan])
def test_rho_out_of_range(rho):
    for spacing in ("karras", "polyexponential"):
        with pytest.raises(ValueError, match=f"rho is {rho:g}; it can be 0.1 … 100"):
            spaced(SCHEDULE, 5, spacing, rho=rho)


def test_levels_that_come_out_equal_are_refused():
    with pytest.raises(ValueError, match="1000 noise levels .* come out equal; choose a rho nearer to 1"):
        spaced(SCHEDULE, 1000, "polyexponential", rho=50.0)
    with pytest.raises(ValueError, match="1000 noise levels from 5 to 5 come out equal"):
        spaced(SCHEDULE, 1000, "karras", sigma_min=5 - 1e-15, sigma_max=5.0)
    for levels in ([math.inf, 1.0], [1.0, 0.0], [2.0, 3.0, 1.0], [math.nan]):
        with pytest.raises(ValueError, match="come out equal"):
            ending_in_zero(torch.tensor(levels))
    for rho in (0.1, 100.0):
        check(spaced(SCHEDULE, 1000, "karras", rho=rho), SCHEDULE, 1000)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_built_on_the_cpu_whatever_the_default_device(spacing):
    with torch.device("meta"):
        assert SPACINGS[spacing](SCHEDULE, 5).device.type == "cpu"
        assert of_sigmas(SCHEDULE, [1.0]).device == of_timesteps(SCHEDULE, [5]).device == torch.device("cpu")
