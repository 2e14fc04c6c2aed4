"""How samplers come to the exact solution, that what they add keeps the distribution, and what float32 leaves of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count

import pytest
import torch
from torch import Tensor

from ldm.models.diffusion import SAMPLERS, SPACINGS, NoiseSchedule, Step
from ldm.models.diffusion.ddim import ddim
from ldm.models.diffusion.dpm_solver import dpm_adaptive, dpm_fast
from ldm.models.diffusion.euler import dpm_2, euler, heun
from ldm.models.diffusion.exponential import dpmpp_2m, res_multistep, unipc, unipc_bh2
from ldm.models.diffusion.multistep import deis, ipndm, lms, plms
from ldm.models.diffusion.restart import restart


def no_noise(x: Tensor, sigma: float, sigma_next: float) -> Tensor:
    raise AssertionError("noise was drawn where it would be multiplied by zero")


def gaussian(x: Tensor, sigma: Tensor | float) -> Tensor:
    """E[z | x] for z of mean 1/2 and standard deviation 1/2."""
    return (0.25 * x + 0.5 * sigma**2) / (0.25 + sigma**2)


def solved(x: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """The probability-flow ODE for `gaussian`, solved: x - mean shrinks as the standard deviation at sigma."""
    return 0.5 + (x - 0.5) * math.sqrt((0.25 + sigma_next**2) / (0.25 + sigma**2))


ORDERS = [  # sampler, options, least order
    (ddim, {}, 0.9),
    (euler, {}, 0.9),
    (plms, {}, 1.9),
    (ipndm, {}, 1.9),
    (heun, {}, 1.9),
    (dpm_2, {}, 1.9),
    (restart, {"restarts": 0}, 1.9),
    (dpmpp_2m, {}, 1.9),
    (res_multistep, {}, 1.9),
    (deis, {"order": 2}, 1.9),
    (deis, {"order": 3}, 2.9),
    (lms, {"order": 2}, 1.9),
    (lms, {"order": 3}, 2.7),
    (lms, {"order": 4}, 3.3),
    (unipc, {"order": 1}, 1.9),
    (unipc, {"order": 2}, 2.9),
    (unipc_bh2, {"order": 2}, 2.9),
    (unipc, {"order": 3}, 2.9),
    (unipc_bh2, {"order": 3}, 2.9),
    (dpm_fast, {}, 2.9),
]


@pytest.mark.parametrize("data", ["gaussian", "mixture"])
@pytest.mark.parametrize(("sampler", "options", "order"), ORDERS, ids=lambda value: getattr(value, "__name__", None))
def test_order(sampler, options, order, data, golden, mixture, normal, error, last):
    """UniPC-p is of order p + 1. The first steps, of lower order, are short enough on this grid not to count."""
    tables = golden("samplers-k-diffusion")
    top, bottom = tables["sigmas.normal.10"][[0, -2]].tolist()
    x = normal("x") * top
    denoise, at_end = gaussian, solved(x, top, bottom)
    expected = denoise(at_end, bottom)  # the last step, to 0, is Euler's
    if data == "mixture":
        denoise, expected = mixture, tables["ode_solution.to_sigma_min_then_zero"]
    errors = []
    for n in (48, 144):
        place = torch.linspace(0, 1, n, dtype=torch.float64) ** 2
        sigmas = torch.cat([(top**0.2 + (bottom**0.2 - top**0.2) * place) ** 5, torch.zeros(1)])
        if sampler is lms:  # its own step to 0 is another
            end = last(sampler(denoise, x, sigmas[:-1], noise=no_noise, **options))
            errors.append(error(denoise(end, sigmas[-2]), expected))
        else:
            errors.append(error(last(sampler(denoise, x, sigmas, noise=no_noise, **options)), expected))
    assert math.log(errors[0] / errors[1], 3) > order, errors


@pytest.mark.parametrize("order", [2, 3])
def test_dpm_adaptive_keeps_its_tolerance(order, golden, mixture, normal, error, last):
    tables = golden("samplers-k-diffusion")
    sigmas, errors, calls = tables["sigmas.normal.10"], [], []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        calls[-1] += 1
        return mixture(x, sigma)

    for rtol in (0.05, 0.005, 0.0005):
        calls.append(0)
        options = {"order": order, "rtol": rtol, "atol": 0.156 * rtol}
        x = last(dpm_adaptive(denoise, normal("x") * sigmas[0], sigmas, noise=no_noise, **options))
        errors.append(error(x, tables["ode_solution.to_sigma_min_then_zero"]) / rtol)
    assert max(errors) < 1, errors
    assert calls[0] < calls[1] < calls[2] < 400


def test_restart_forgets_the_start_but_keeps_the_distribution():
    """From 2 to 0.1 the ODE contracts by the ratio of the data's standard deviations there, at every restart."""
    sigmas = torch.cat([torch.logspace(1, -2, 60, dtype=torch.float64), torch.zeros(1)])
    sums = [contributions(partial(restart, restarts=restarts), sigmas) for restarts in (0, 1, 3)]
    contraction = math.hypot(0.5, 0.1) / math.hypot(0.5, 2)
    for of, restarts in zip(sums, (0, 1, 3), strict=True):
        assert len(of) == 1 + restarts
        assert float(of[0] / sums[0][0]) == pytest.approx(contraction**restarts, rel=0.1 * (1 + restarts))
        assert float(of.square().sum()) == pytest.approx(0.25, rel=0.01)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2), ("dpm_2", 2)])
@pytest.mark.parametrize("options", [{"s_churn": 30.0}, {"s_churn": 30.0, "s_tmin": 0.1, "s_tmax": 5.0}])
def test_churn_keeps_the_distribution(name, order, options):
    variances = []
    for n in (120, 240):
        sigmas = torch.linspace(20**0.2, 0.01**0.2, n, dtype=torch.float64) ** 5
        of = contributions(partial(SAMPLERS[name][0], **options), torch.cat([sigmas, torch.zeros(1)]))
        assert len(of) > n / 3  # draws of noise
        variances.append(float(of.square().sum()) / 0.25)
    assert abs(variances[0] - 1) > 0.8 * 2**order * abs(variances[1] - 1)
    assert variances[1] == pytest.approx(1, abs=0.08)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ancestral_dpm_solvers_keep_the_distribution(eta):
    sigmas = torch.cat([torch.linspace(20, 0.01, 120, dtype=torch.float64), torch.zeros(1)])
    of = contributions(partial(dpm_fast, eta=eta), sigmas)
    assert len(of) > 30 and float(of.square().sum()) == pytest.approx(0.25, rel=1e-3)
    off = []
    for rtol in (0.05, 0.005, 0.0005):
        of = contributions(partial(dpm_adaptive, eta=eta, rtol=rtol, atol=0.156 * rtol), sigmas)
        off.append(abs(float(of.square().sum()) / 0.25 - 1))
    assert off[2] < 0.05 and off[2] < off[1] < off[0]


def contributions(sampler: Callable[..., Iterator[Step]], sigmas: Tensor) -> Tensor:
    """What the start (at its true variance) and every draw of noise add to a sample of a Gaussian of standard deviation
    1/2 and mean 0. All is linear, so x is walked as its coordinates in them; the sum of squares is the variance."""
    start = torch.zeros(1, 1000, dtype=torch.float64)
    start[0, 0] = math.hypot(float(sigmas[0]), 0.5)
    drawn = count(1)

    def noise(x: Tensor, sigma: float, sigma_next: float) -> Tensor:
        return torch.nn.functional.one_hot(torch.tensor([next(drawn)]), 1000).double()

    x = list(sampler(lambda x, sigma: x * 0.25 / (0.25 + sigma**2), start, sigmas, noise=noise))[-1].x
    return x[0, : next(drawn)]


@pytest.mark.parametrize(
    "sampler",
    [euler, heun, dpm_2, plms, ipndm, lms, deis, dpmpp_2m, res_multistep, unipc, unipc_bh2, dpm_fast, restart],
)
def test_no_digits_are_lost_at_zero_snr(sampler, mixture, normal, error, last):
    """Where x is 65,536 times the noise, float32 has no more than two digits of the data left in it.

    Not of dpm_adaptive, which takes other steps where its error is rounded otherwise.
    """
    sigmas = SPACINGS["trailing"](NoiseSchedule(zero_terminal_snr=True), 20)
    noise = lambda x, sigma, sigma_next: normal(f"{sigma:.4f}").to(x.dtype)  # noqa: E731
    double, single = (
        last(sampler(mixture, (normal("x") * sigmas[0]).to(dtype), sigmas, noise=noise))
        for dtype in (torch.float64, torch.float32)
    )
    assert error(single.double(), double) < 1e-4
