"""Deterministic samplers, with churn and restarts: against other implementations and their papers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from itertools import count, pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm.models.diffusion import SAMPLERS, SPACINGS, NoiseSchedule, Step
from ldm.models.diffusion.dpm_solver import dpm_adaptive, dpm_fast
from ldm.models.diffusion.dpmpp_sde import Last, _line, _multistep, _parabola, dpmpp_3m_sde
from ldm.models.diffusion.euler import heun
from ldm.models.diffusion.exponential import dpmpp_2m, res_multistep, unipc, unipc_bh2
from ldm.models.diffusion.multistep import _equidistant, _in_log_sigma, _in_sigma, deis, ipndm, plms, quadrature
from ldm.models.diffusion.restart import restart
from ldm.models.diffusion.step import move

SCHEDULE = NoiseSchedule()


def no_noise(x: Tensor, sigma: float, sigma_next: float) -> Tensor:
    raise AssertionError("noise was drawn where it would be multiplied by zero")


# Agreement with other implementations -------------------------------------------------------------------------------


@pytest.mark.parametrize("sigmas", ["karras.10", "normal.20"])
@pytest.mark.parametrize("name", ["euler", "heun", "dpm_2", "lms", "dpmpp_2m"])
def test_k_diffusion(name, sigmas, golden, mixture, normal, error, last):
    tables = golden("samplers-k-diffusion")
    levels = tables[f"sigmas.{sigmas}"]
    x = last(SAMPLERS[name][0](mixture, normal("x") * levels[0], levels, noise=no_noise))
    assert error(x, tables[f"{name}.{sigmas}"]) < 1e-9


def deis_by_diffusers(denoise, x: Tensor, sigmas: Tensor, noise) -> Iterator[Step]:
    """Fewer than 15 steps end with one of first order there."""
    if len(sigmas) - 1 >= 15:
        yield from deis(denoise, x, sigmas, noise=noise)
        return
    for step in deis(denoise, x, sigmas[:-1], noise=noise):
        yield step
    yield from deis(denoise, step.x, sigmas[-2:], noise=noise)


def dpmpp_3m_by_diffusers(denoise, x: Tensor, sigmas: Tensor, noise) -> Iterator[Step]:
    """A step of second order is dpmpp_2m's there: the second, and the last but one of fewer than 15."""
    n, called = len(sigmas) - 1, count()
    if n >= 15:  # where the second is too short for it to matter
        return dpmpp_3m_sde(denoise, x, sigmas, noise=noise, eta=0.0)

    def mean(last: Last, h: float, total: float) -> Tensor:
        return _line(last, h, 0.5) if next(called) in (0, 1, n - 2) else _parabola(last, h, total)

    return _multistep(denoise, x, sigmas, noise, 0.0, 1.0, mean)


@pytest.mark.parametrize("suffix", ["", ".v"])
@pytest.mark.parametrize("n", [10, 50])
@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        ("dpmsolver++2m", dpmpp_2m),
        ("dpmsolver++3m", dpmpp_3m_by_diffusers),
        ("unipc", unipc_bh2),
        ("deis", deis_by_diffusers),
    ],
)
def test_diffusers(name, sampler, n, suffix, golden, mixture, normal, error, last):
    t = torch.from_numpy(np.linspace(0, 999, n + 1).round()[:0:-1].copy())  # their linspace visits no t = 0
    end = SCHEDULE.sigmas[:1] if name == "deis" else torch.zeros(1)
    sigmas = torch.cat([SCHEDULE.t_to_sigma(t), end.double()])
    x = last(sampler(mixture, normal("x") * (1 + sigmas[0] ** 2).sqrt(), sigmas, noise=no_noise))
    expected = golden("samplers-diffusers")[f"{name}.linspace.{n}{suffix}"]
    assert error(x / (1 + sigmas[-1] ** 2).sqrt(), expected) < 1e-5


@pytest.mark.parametrize("n", [10, 50])
def test_plms_is_diffusers_pndm(n, golden, mixture, normal, error, last):
    sigmas = SPACINGS["uniform"](SCHEDULE, n)
    sigmas[-1] = SCHEDULE.sigmas[0]
    x = last(plms(mixture, normal("x") * (1 + sigmas[0] ** 2).sqrt(), sigmas, noise=no_noise))
    vp = x / (1 + sigmas[-1] ** 2).sqrt()
    assert error(vp, golden("samplers-diffusers")[f"pndm.leading1.{n}"]) < 1e-5


@pytest.mark.parametrize("n", [10, 50])
def test_where_diffusers_pndm_is_another_with_v(n, golden, mixture, normal, error):
    """There the past predictions are averaged before they are turned into eps: with v, at another x than their own."""
    sigmas = SPACINGS["uniform"](SCHEDULE, n)
    sigmas[-1] = SCHEDULE.sigmas[0]
    x, past = normal("x") * (1 + sigmas[0] ** 2).sqrt(), []

    def v(x: Tensor, sigma: Tensor) -> Tensor:  # of x = z + sigma * noise
        x0 = mixture(x, sigma)
        return ((x - x0) / sigma - sigma * x0) / (1 + sigma**2).sqrt()

    def follow(x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        return move(x, (x - sigma * (1 + sigma**2).sqrt() * v) / (1 + sigma**2), sigma, sigma_next)

    for sigma, sigma_next in pairwise(sigmas):
        past = [v(x, sigma), *past[:3]]
        if len(past) == 1:
            x = follow(x, (past[0] + v(follow(x, past[0], sigma, sigma_next), sigma_next)) / 2, sigma, sigma_next)
        else:
            weights = quadrature([-j for j in range(len(past))])
            x = follow(x, sum(w * one for w, one in zip(weights, past, strict=True)), sigma, sigma_next)
    vp = x / (1 + sigmas[-1] ** 2).sqrt()
    assert error(vp, golden("samplers-diffusers")[f"pndm.leading1.{n}.v"]) < 1e-5


# Agreement with the papers ------------------------------------------------------------------------------------------


def test_quadrature_has_the_classical_weights():
    adams = {2: [3, -1], 3: [23, -16, 5], 4: [55, -59, 37, -9]}
    for order, over in ((2, 2), (3, 12), (4, 24)):
        expected = [weight / over for weight in adams[order]]
        assert quadrature([-j for j in range(order)]) == pytest.approx(expected, rel=1e-14)
    assert quadrature([0, 0.5, 1]) == pytest.approx([1 / 6, 4 / 6, 1 / 6], rel=1e-14)  # Simpson's rule


@pytest.mark.parametrize("rate", [0.0, -1e-9, -0.01, -1.0, -8.4, -40.0])
def test_quadrature_is_exact_for_polynomials(rate):
    nodes, (points, shares) = [0.0, -0.7, -1.9, 1.0], np.polynomial.legendre.leggauss(60)
    points, shares = (points + 1) / 2, shares / 2
    weights = quadrature(nodes, rate)
    assert sum(weights) == pytest.approx(math.expm1(rate) / rate if rate else 1, rel=1e-9)
    for k in range(4):
        expected = float((shares * points**k * np.exp(rate * points)).sum())
        assert sum(w * r**k for w, r in zip(weights, nodes, strict=True)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("s_churn", [2.0, 6.0])  # below and above what a step takes at most, 0.414 of 12
@pytest.mark.parametrize("name", ["euler", "heun", "dpm_2"])
def test_churn_is_algorithm_2_of_karras(name, s_churn, mixture, normal, error, last):
    sigmas = SPACINGS["linspace"](SCHEDULE, 12)
    s_tmin, s_tmax, s_noise = float(sigmas[-3]), float(sigmas[2]), 1.1  # both ends have churn
    names, x, asked = count(), normal("x") * sigmas[0], []

    def noise(x: Tensor, sigma: float, sigma_next: float) -> Tensor:
        asked.append((sigma, sigma_next))
        return normal(f"noise.{next(names)}")

    churn = {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": s_tmax, "s_noise": s_noise}
    ours = last(SAMPLERS[name][0](mixture, x, sigmas, noise=noise, **churn))
    drawn = 0
    for t, t_next in pairwise(sigmas):
        gamma = min(s_churn / 12, 2**0.5 - 1) if s_tmin <= t <= s_tmax else 0
        t_hat = t + gamma * t
        if gamma > 0:
            x = x + (t_hat**2 - t**2).sqrt() * s_noise * normal(f"noise.{drawn}")
            drawn += 1
        d = (x - mixture(x, t_hat)) / t_hat
        x_next = x + (t_next - t_hat) * d
        if name == "heun" and t_next > 0:
            x_next = x + (t_next - t_hat) * (d + (x_next - mixture(x_next, t_next)) / t_next) / 2
        if name == "dpm_2" and t_next > 0:
            middle = (t_hat * t_next).sqrt()
            there = x + (middle - t_hat) * d
            x_next = x + (t_next - t_hat) * (there - mixture(there, middle)) / middle
        x = x_next
    assert error(ours, x) < 1e-12
    assert asked == [pair for pair in pairwise(sigmas.tolist()) if s_tmin <= pair[0] <= s_tmax]
    assert 3 < drawn < 12


@pytest.mark.parametrize("weigh", [_in_sigma, _in_log_sigma, _equidistant])
@pytest.mark.parametrize("sigma_next", [1.0, 0.0])
def test_weights_add_up_to_the_step(weigh, sigma_next):
    """So that a constant direction is followed exactly."""
    for levels in ([2.0], [2.0, 3.0], [2.0, 3.0, 5.0, 9.0]):
        assert sum(weigh(levels, sigma_next)) == pytest.approx(sigma_next - 2, rel=1e-12)


def test_ipndm_is_adams_bashforth_in_sigma(mixture, normal, error, last):
    sigmas = SPACINGS["trailing"](SCHEDULE, 8)
    x, d = normal("x") * sigmas[0], []
    ours = last(ipndm(mixture, x, sigmas, noise=no_noise))
    adams = {1: [1.0], 2: [3 / 2, -1 / 2], 3: [23 / 12, -16 / 12, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -9 / 24]}
    for sigma, sigma_next in pairwise(sigmas):
        d = [(x - mixture(x, sigma)) / sigma, *d[:3]]
        weights = adams[len(d) if sigma_next > 0 else 1]
        x = x + (sigma_next - sigma) * sum(w * slope for w, slope in zip(weights, d, strict=False))
    assert error(ours, x) < 1e-12


def test_res_multistep_is_the_refined_exponential_solver(mixture, normal, error, last):
    """Zhang et al. 2023, table 2: b_1 = phi_1 - phi_2 / c_2 and b_2 = phi_2 / c_2, with the node c_2 in the past."""
    sigmas = SPACINGS["linspace"](SCHEDULE, 9)
    x, before = normal("x") * sigmas[0], None
    ours = last(res_multistep(mixture, x, sigmas, noise=no_noise))
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = mixture(x, sigma)
        if before is None or sigma_next == 0:
            x = move(x, x0, sigma, sigma_next)
        else:
            h, c_2 = (sigma / sigma_next).log(), (sigma / sigmas[i - 1]).log() / (sigma / sigma_next).log()
            phi_1 = (1 - (-h).exp()) / h
            phi_2 = (1 - phi_1) / h
            x = (-h).exp() * x + h * ((phi_1 - phi_2 / c_2) * x0 + phi_2 / c_2 * before)
        before = x0
    assert error(ours, x) < 1e-12


@pytest.mark.parametrize(("sampler", "b"), [(unipc, lambda h: h), (unipc_bh2, lambda h: torch.expm1(h))])
def test_unipc_3_is_algorithms_5_to_8(sampler, b, mixture, normal, error, last):
    """In the variance-preserving coordinates of the paper, with its matrices R_p and vectors."""
    sigmas, p = SPACINGS["linspace"](SCHEDULE, 10), 3
    sigmas[-1] = 0.01
    alpha, lambdas = (1 + sigmas**2).rsqrt(), -sigmas.log()
    ours = last(sampler(mixture, normal("x") / alpha[0], sigmas, noise=no_noise, order=p)) * alpha[-1]
    x, models = normal("x"), [mixture(normal("x") / alpha[0], sigmas[0])]

    def step(x: Tensor, i: int, past: list[Tensor], new: Tensor | None) -> Tensor:
        """From i to i + 1 by UniP, or by UniC where the new model output is given."""
        h = lambdas[i + 1] - lambdas[i]
        r = [(lambdas[i - 1 - j] - lambdas[i]) / h for j in range(len(past) - 1)]
        others = [*past[1:]]
        if new is not None:
            r, others = [*r, torch.ones((), dtype=torch.float64)], [*others, new]
        moved = alpha[i + 1] * sigmas[i + 1] / (alpha[i] * sigmas[i]) * x - alpha[i + 1] * torch.expm1(-h) * past[0]
        if not r:
            return moved
        phi = [-torch.expm1(-h) / h]  # psi_1(h), …: integrals of e^((s - 1) h) s^(k - 1) / (k - 1)!
        for k in range(1, len(r) + 1):
            phi.append((1 / math.factorial(k) - phi[-1]) / h)
        matrix = torch.stack([torch.stack(r) ** k for k in range(len(r))])
        right = torch.stack([h * phi[k] * math.factorial(k) / abs(b(-h)) for k in range(1, len(r) + 1)])
        a = torch.linalg.solve(matrix, right) if len(r) > 1 else torch.full((1,), 0.5, dtype=torch.float64)
        added = sum(w * (other - past[0]) / ratio for w, other, ratio in zip(a, others, r, strict=True))
        return moved + alpha[i + 1] * abs(b(-h)) * added

    for i in range(10):
        order = min(p, len(models), 10 - i)
        predicted = step(x, i, models[:order], None)
        if i < 9:
            new = mixture(predicted / alpha[i + 1], sigmas[i + 1])
            x, models = step(x, i, models[:order], new), [new, *models]
    assert error(ours, predicted) < 1e-10


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7])
def test_dpm_fast_is_the_papers_algorithms(n, mixture, normal, error, last):
    """Lu et al. 2022, algorithms 1 and 2 in eps, and the orders of appendix D.3."""
    sigmas = torch.linspace(10, 0.5, n + 1, dtype=torch.float64)
    ours = last(dpm_fast(mixture, normal("x") * 10, sigmas, noise=no_noise))
    orders = {1: [1], 2: [2], 3: [2, 1], 4: [3, 1], 5: [3, 2], 6: [3, 2, 1], 7: [3, 3, 1]}[n]
    grid = torch.linspace(math.log(10), math.log(0.5), len(orders) + 1, dtype=torch.float64).exp()
    x, eps = normal("x") * 10, lambda x, sigma: (x - mixture(x, sigma)) / sigma
    for order, (s, t) in zip(orders, pairwise(grid), strict=True):
        h, first = (s / t).log(), eps(x, s)
        if order == 1:
            x = x - t * torch.expm1(h) * first
        elif order == 2:
            middle = (s * t).sqrt()
            x = x - t * torch.expm1(h) * eps(x - middle * torch.expm1(h / 2) * first, middle)
        else:
            r1, r2 = 1 / 3, 2 / 3
            s1, s2 = s * (t / s) ** r1, s * (t / s) ** r2
            d1 = eps(x - s1 * torch.expm1(r1 * h) * first, s1) - first
            u2 = x - s2 * torch.expm1(r2 * h) * first
            d2 = eps(u2 - s2 * r2 / r1 * (torch.expm1(r2 * h) / (r2 * h) - 1) * d1, s2) - first
            x = x - t * torch.expm1(h) * first - t / r2 * (torch.expm1(h) / h - 1) * d2
    assert error(ours, x) < 1e-12


@pytest.mark.parametrize("order", [2, 3])
def test_dpm_adaptive_is_appendix_c(order, mixture, normal, error):
    """Lu et al. 2022, algorithms of DPM-Solver-12 and -23 in eps; k-diffusion's rule for the next length, and 0.81."""
    levels, h, rtol, atol = [10.0, 3.0, 2.5, 2.4, 0.3, 0.1], 2.0, 0.01, 0.003
    sigmas = torch.tensor([*levels, 0.0], dtype=torch.float64)
    options = {"order": order, "h_init": h, "rtol": rtol, "atol": atol}
    steps = list(dpm_adaptive(mixture, normal("x") * 10, sigmas, noise=no_noise, **options))
    x, s, eps, repeated = normal("x") * 10, 10.0, lambda x, s: (x - mixture(x, s)) / s, 0
    before, states, behind = x, [], 0
    while s > 0.1:
        t = max(s * math.exp(-h), 0.1)
        length, first = math.log(s / t), eps(x, s)
        euler = x - (s - t) * first
        if order == 2:
            low, middle = euler, math.sqrt(s * t)
            high = x - (s - t) * eps(x - (s - middle) * first, middle)
        else:
            one, two = s * math.exp(-length / 3), s * math.exp(-length * 2 / 3)
            turn = eps(x - (s - one) * first, one) - first
            low = euler - (s - t) * turn / (2 / 3)
            there = x - (s - two) * first - two * 2 * (math.expm1(length * 2 / 3) / (length * 2 / 3) - 1) * turn
            high = euler - t * 1.5 * (math.expm1(length) / length - 1) * (eps(there, two) - first)
        off = (high - low) / (rtol * torch.maximum(low.abs(), before.abs())).clamp(min=atol)
        worst = max(float(one.square().mean().sqrt()) for one in off)
        factor = 1 + math.atan((worst + 1e-8) ** (-1 / order) - 1)
        h *= factor
        if factor < 0.81:
            repeated += 1
            continue
        x, before, s = high, low, t
        if sum(level >= s for level in levels[1:]) > behind:
            behind = sum(level >= s for level in levels[1:])
            states.append((behind - 1, s, x))
    assert repeated > 0 and len(states) < len(levels) - 1
    for step, (i, sigma, state) in zip(steps[:-1], states, strict=True):
        assert step.i == i and step.sigma == pytest.approx(sigma, rel=1e-9) and error(step.x, state) < 1e-9
    assert (steps[-1].i, steps[-1].sigma) == (5, 0) and error(steps[-1].x, mixture(x, 0.1)) < 1e-9


def test_restart_without_noise_is_heun(mixture, normal, last):
    x, sigmas = normal("x") * 14, SPACINGS["linspace"](SCHEDULE, 12)
    plain = last(heun(mixture, x, sigmas, noise=no_noise))
    assert torch.equal(last(restart(mixture, x, sigmas, noise=no_noise, s_noise=0.0)), plain)
    few = SPACINGS["trailing"](SCHEDULE, 1)
    assert torch.equal(last(restart(mixture, x, few, noise=no_noise)), last(heun(mixture, x, few, noise=no_noise)))


def test_restart_is_algorithm_1(mixture, normal, error, last):
    sigmas, asked = SPACINGS["linspace"](SCHEDULE, 20), []
    levels = sigmas.tolist()

    def noise(x: Tensor, sigma: float, sigma_next: float) -> Tensor:
        asked.append((sigma, sigma_next))
        return normal(f"noise.{len(asked) - 1}")

    ours = last(restart(mixture, normal("x") * sigmas[0], sigmas, noise=noise, restarts=2, s_noise=0.9))
    nearest = [min(levels[:-1], key=lambda level: abs(math.log(level / end))) for end in (2.0, 0.1)]
    top, bottom = (levels.index(level) for level in nearest)
    walk = partial(heun, mixture, noise=no_noise)
    x = last(walk(normal("x") * sigmas[0], sigmas[: bottom + 1]))
    for k in range(2):
        x = x + 0.9 * (sigmas[top] ** 2 - sigmas[bottom] ** 2).sqrt() * normal(f"noise.{k}")
        x = last(walk(x, sigmas[top : bottom + 1]))
    assert error(ours, last(walk(x, sigmas[bottom:]))) < 1e-12
    assert asked == [(0.1, 2.0), (2.0, pytest.approx(3.9))]  # not the levels of these steps, which others do not have
    assert top + 3 < bottom < 19
