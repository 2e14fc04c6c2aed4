"""Each correction's defining property, and which of them may change places."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ldm.models.diffusion import SAMPLERS, Conditioning, ddim, guided
from ldm.models.diffusion.corrections import cfg_pp, rescaled, thresholded, within
from ldm.models.diffusion.guidance import Estimates, Guided

SIGMAS = torch.tensor([14.0, 6.0, 2.0, 0.7, 0.2, 0.0], dtype=torch.float64)
HIGH, LOW = torch.tensor(6.0), torch.tensor(0.2)


@pytest.fixture
def conds(normal) -> tuple[Conditioning, Conditioning]:
    return tuple(Conditioning(normal(name, (2, 4, 8, 8))) for name in "cu")


@pytest.fixture
def denoiser(mixture):
    """The mixture's, moved by its condition; remembers the rows of each call."""

    def denoise(x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        denoise.rows.append(len(x))
        return mixture(x - cond.context, sigma) + cond.context

    denoise.rows = []
    return denoise


def std(x: Tensor) -> Tensor:
    return x.flatten(1).std(dim=1)


def test_rescaled_to_the_spread_of_the_condition(denoiser, conds, normal):
    guide, x = guided(denoiser, *conds, 7.5), 6 * normal("x")
    found = guide.estimates(x, HIGH)
    assert (std(found.x0) > 2 * std(found.cond)).all()
    whole, part = rescaled(guide, 1.0)(x, HIGH), rescaled(guide, 0.7)(x, HIGH)
    torch.testing.assert_close(std(whole), std(found.cond))
    torch.testing.assert_close(part, 0.7 * whole + 0.3 * found.x0)
    torch.testing.assert_close(whole / std(whole).reshape(-1, 1, 1, 1), found.x0 / std(found.x0).reshape(-1, 1, 1, 1))
    assert torch.equal(rescaled(guide, 0.0)(x, HIGH), found.x0)


@pytest.mark.parametrize("correct", [lambda g: rescaled(g, 0.7), lambda g: thresholded(g, 0.9)])
def test_an_unguided_estimate_needs_no_correction(correct, denoiser, conds, normal):
    plain = guided(denoiser, conds[0], None, 1.0)
    torch.testing.assert_close(correct(plain)(normal("x"), HIGH), plain(normal("x"), HIGH))


def test_latents_are_thresholded_to_the_range_of_the_condition(denoiser, conds, normal):
    guide, x = guided(denoiser, *conds, 9.0), 6 * normal("x")
    found, x0 = guide.estimates(x, HIGH), thresholded(guide, 0.95)(x, HIGH)
    mean = found.x0.mean((2, 3), keepdim=True)
    limit = (found.cond - found.cond.mean((2, 3), keepdim=True)).abs().amax((1, 2, 3))
    before, after = (found.x0 - mean).abs().flatten(1), (x0 - mean).abs().flatten(1)
    assert (before.quantile(0.95, dim=1) > limit).all()
    torch.testing.assert_close(after.amax(1), limit)  # its range, and no number beyond
    for i in range(2):  # 5 % sit on the edge, and the others are as they were to each other
        edge = torch.isclose(after[i], limit[i])
        assert 0.03 < edge.double().mean() < 0.07
        torch.testing.assert_close(after[i, ~edge] / after[i].max(), before[i, ~edge] / before[i].quantile(0.95))


def test_pixels_are_thresholded_as_in_imagen():
    x0 = torch.tensor([[0.5, -0.9, 1.0, 0.1], [4.0, -2.0, 1.0, 100.0]]).reshape(2, 1, 2, 2)
    guide = Guided(lambda x, sigma: Estimates(x0, torch.zeros_like(x0)))
    found = thresholded(guide, 2 / 3, limit=1.0)(x0, HIGH)
    assert torch.equal(found[0], x0[0])  # within [-1, 1] already
    torch.testing.assert_close(found[1].flatten(), torch.tensor([1.0, -0.5, 0.25, 1.0]))  # the percentile is 4
    centre = thresholded(Guided(lambda x, sigma: Estimates(0 * x0, 0 * x0)), 0.99)
    assert torch.equal(centre(x0, HIGH), 0 * x0)  # not 0/0


def test_outside_the_interval_the_network_is_asked_once(denoiser, conds, normal):
    guide, plain = guided(denoiser, *conds, 5.0), guided(denoiser, conds[0], None, 1.0)
    denoise, x = within(guide, plain, 0.7, 6.0), normal("x")
    for sigma, inside in ((14.0, False), (6.0, True), (2.0, True), (0.7, True), (0.6, False), (0.2, False)):
        level = torch.tensor(sigma, dtype=torch.float64)
        expected = (guide if inside else plain)(x, level)
        denoiser.rows.clear()
        assert torch.equal(denoise(x, level), expected)
        assert denoiser.rows == ([4] if inside else [2])
    denoiser.rows.clear()
    list(ddim(denoise, 14 * x, SIGMAS, noise=None))
    assert denoiser.rows == [2, 4, 4, 4, 2]


def chung(denoiser, cond, uncond, scale, x, sigmas, eta=0.0, noise=()):
    """Algorithm 2 of the paper, in its own coordinates x / sqrt(1 + sigma^2), with Song's sigma for eta."""
    alphas = 1 / (1 + sigmas**2)  # cumulated
    noise, x = iter(noise), x * alphas[0].sqrt()
    for sigma, alpha, alpha_next in zip(sigmas, alphas, alphas[1:], strict=False):
        both = [denoiser(x / alpha.sqrt(), sigma, one) for one in (uncond, cond)]
        eps_uncond, eps_cond = ((x - alpha.sqrt() * x0) / (1 - alpha).sqrt() for x0 in both)
        eps = eps_uncond + scale * (eps_cond - eps_uncond)
        x0 = (x - (1 - alpha).sqrt() * eps) / alpha.sqrt()
        spread = eta * ((1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next)).sqrt()
        x = alpha_next.sqrt() * x0 + (1 - alpha_next - spread**2).sqrt() * eps_uncond
        x = x + spread * next(noise) if spread > 0 else x
    return x


@pytest.mark.parametrize("scale", [0.0, 0.6, 1.0, 1.5])
@pytest.mark.parametrize(
    ("name", "eta"),
    [("ddim", 0.0), ("ddim", 0.5), ("ddpm", 1.0), ("euler", 0.0), ("euler_ancestral", 1.0), ("euler_ancestral", 0.3)],
)
def test_cfg_pp_is_the_papers_algorithm(scale, name, eta, denoiser, conds, normal, last):
    x, noise = 14 * normal("x"), [normal(f"noise.{i}") for i in range(4)]
    draws = iter(noise)
    guide = cfg_pp(guided(denoiser, *conds, scale, keep_uncond=True), SIGMAS, eta)
    options = {} if name == "euler" else {"eta": eta}
    ours = last(SAMPLERS[name][0](guide, x, SIGMAS, noise=lambda *_: next(draws), **options))
    torch.testing.assert_close(ours, chung(denoiser, *conds, scale, x, SIGMAS, eta, noise), rtol=1e-9, atol=1e-9)
    assert denoiser.rows[:5] == [4] * 5  # asked once a step


def test_cfg_pp_at_0_is_unconditional_and_at_1_is_not_conditional(denoiser, conds, normal, last):
    x = 14 * normal("x")

    def drawn(denoise):
        return last(ddim(denoise, x, SIGMAS, noise=None))

    zero, one = (cfg_pp(guided(denoiser, *conds, s, keep_uncond=True), SIGMAS) for s in (0.0, 1.0))
    cond, uncond = (guided(denoiser, told, None, 1.0) for told in conds)
    torch.testing.assert_close(drawn(zero), drawn(uncond))
    assert (drawn(one) - drawn(cond)).abs().max() > 0.1
    assert cfg_pp(cond, SIGMAS)(x, HIGH).equal(cond(x, HIGH))  # which asks for no unconditional estimate


def test_cfg_pp_has_no_step_from_between_the_levels(denoiser, conds, normal):
    denoise = cfg_pp(guided(denoiser, *conds, 0.6), SIGMAS)
    assert torch.isfinite(denoise(normal("x"), torch.tensor(0.7, dtype=torch.float32))).all()  # a rounded one
    with pytest.raises(ValueError, match=r"no step from sigma 6.6, which is none of those visited; leave churn out"):
        denoise(normal("x"), torch.tensor(6.6))


def test_cfg_pp_of_a_walk_that_ends_above_0(denoiser, conds, normal, last):
    x, sigmas = 14 * normal("x"), SIGMAS[:4]
    ours = last(ddim(cfg_pp(guided(denoiser, *conds, 0.6), sigmas), x, sigmas, noise=None))
    theirs = chung(denoiser, *conds, 0.6, x, sigmas) * (1 + sigmas[-1] ** 2).sqrt()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("level", [HIGH, LOW])
def test_what_may_change_places(level, denoiser, conds, normal):
    guide, plain, x = guided(denoiser, *conds, 9.0), guided(denoiser, conds[0], None, 1.0), 6 * normal("x")

    def limited(one: Guided) -> Guided:
        return within(one, plain, 0.7, 6.0)

    for correct in (lambda g: rescaled(g, 0.7), lambda g: thresholded(g, 0.95)):
        torch.testing.assert_close(correct(limited(guide))(x, level), limited(correct(guide))(x, level))
    between = [thresholded(rescaled(guide, 0.7), 0.8)(x, HIGH), rescaled(thresholded(guide, 0.8), 0.7)(x, HIGH)]
    assert (between[0] - between[1]).abs().max() > 1e-3  # but these two may not
