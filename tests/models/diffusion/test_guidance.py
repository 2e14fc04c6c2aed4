from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from ldm.models.diffusion import Conditioning, guided, switched
from ldm.models.diffusion.guidance import Away, edited
from ldm.models.diffusion.tiles import tiled


class Recorder:
    """A denoiser whose answer depends on all it is given, and that remembers each call."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, Tensor, Conditioning]] = []

    def __call__(self, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        self.calls.append((x, sigma, cond))
        return x / (1 + sigma.reshape(-1, 1, 1, 1)) + cond.context.mean((1, 2)).reshape(-1, 1, 1, 1)


@pytest.fixture
def conds(normal) -> tuple[Conditioning, Conditioning]:
    return Conditioning(normal("c", (2, 3, 5))), Conditioning(normal("u", (2, 3, 5)))


def test_scale_1_is_one_call_of_the_condition_alone(conds, normal):
    denoiser, x, sigma = Recorder(), normal("x"), torch.tensor(2.0)
    for uncond in (conds[1], None):
        x0 = guided(denoiser, conds[0], uncond, 1.0)(x, sigma)
        assert torch.equal(x0, Recorder()(x, sigma, conds[0]))
    assert len(denoiser.calls) == 2
    assert all(call[0] is x and call[2] is conds[0] for call in denoiser.calls)


@pytest.mark.parametrize("scale", [0.0, -1.0, 1.5, 7.5])
@pytest.mark.parametrize("sigma", [torch.tensor(2.0), torch.tensor([2.0, 3.0])])
def test_one_batched_call_of_both(scale, sigma, conds, normal):
    denoiser, x = Recorder(), normal("x")
    x0 = guided(denoiser, *conds, scale)(x, sigma)
    cond, uncond = (Recorder()(x, sigma, c) for c in conds)
    torch.testing.assert_close(x0, uncond + scale * (cond - uncond))
    assert len(denoiser.calls) == 1
    assert denoiser.calls[0][0].shape == (4, 4, 8, 8)
    assert denoiser.calls[0][1].shape == ((4,) if sigma.ndim else ())


@pytest.mark.parametrize(
    "uncond",
    [
        Conditioning(torch.ones(2, 7, 5, dtype=torch.float64)),  # a longer prompt
        Conditioning(torch.ones(2, 3, 5, dtype=torch.float64), y=torch.ones(2)),
    ],
)
def test_two_calls_where_the_shapes_differ_nothing_is_padded(uncond, conds, normal):
    denoiser, x, sigma = Recorder(), normal("x"), torch.tensor(2.0)
    x0 = guided(denoiser, conds[0], uncond, 3.0)(x, sigma)
    assert [call[2] for call in denoiser.calls] == [conds[0], uncond]
    torch.testing.assert_close(x0, 3 * Recorder()(x, sigma, conds[0]) - 2 * Recorder()(x, sigma, uncond))


def test_the_missing_half_is_named(conds):
    with pytest.raises(ValueError, match="guidance scale 7.5 needs an unconditional"):
        guided(Recorder(), conds[0], None, 7.5)


def test_two_experts_share_the_noise_levels():
    def first(x, sigma):
        return x + 1

    def second(x, sigma):
        return x - 1

    denoise = switched(first, second, 2.0)
    assert [float(denoise(torch.zeros(()), torch.tensor(sigma))) for sigma in (14.0, 2.0, 1.99, 0.0)] == [1, 1, -1, -1]
    assert float(denoise(torch.zeros(()), torch.tensor([3.0, 3.0]))) == 1


def answer(x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
    return Recorder()(x, sigma, cond)


@pytest.mark.parametrize("scales", [(3.0, 7.5), (1.0, 0.0), (-2.0, 1.0)])
def test_a_scale_for_each_picture(scales, conds, normal):
    denoiser, x, sigma = Recorder(), normal("x"), torch.tensor(2.0)
    x0 = guided(denoiser, *conds, scales)(x, sigma)
    assert len(denoiser.calls) == 1
    for i, scale in enumerate(scales):
        alone = [Conditioning(cond.context[i : i + 1]) for cond in conds]
        torch.testing.assert_close(x0[i : i + 1], guided(answer, *alone, scale)(x[i : i + 1], sigma))


def test_scales_of_1_are_one_call(conds, normal):
    denoiser = Recorder()
    assert guided(denoiser, conds[0], None, (1.0, 1.0)).estimates(normal("x"), torch.tensor(2.0)).uncond is None
    assert len(denoiser.calls) == 1 and denoiser.calls[0][2] is conds[0]
    with pytest.raises(ValueError, match=r"guidance scale \(1.0, 2.0\) needs an unconditional"):
        guided(denoiser, conds[0], None, (1.0, 2.0))


def test_what_an_answer_is_made_of(conds, normal):
    x, sigma = normal("x"), torch.tensor(2.0)
    cond, uncond = (answer(x, sigma, c) for c in conds)
    for scale, keep in ((3.0, False), (1.0, True)):
        found = guided(answer, *conds, scale, keep_uncond=keep).estimates(x, sigma)
        torch.testing.assert_close(found, (uncond + scale * (cond - uncond), cond, uncond))


class Perturbable(Recorder):
    """Its rows answer something else while they are perturbed."""

    perturbed = slice(0, 0)

    def __call__(self, x, sigma, cond):
        x0 = super().__call__(x, sigma, cond)
        x0[self.perturbed] *= 0.5
        return x0

    @contextmanager
    def edit(self, rows):
        self.perturbed = rows
        yield
        self.perturbed = slice(0, 0)


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("same_shapes", [True, False])
def test_away_from_a_perturbed_network(scale, same_shapes, conds, normal):
    denoiser, x, sigma = Perturbable(), normal("x"), torch.tensor([2.0, 3.0])
    cond, uncond = conds if same_shapes else (conds[0], Conditioning(conds[1].context[:, :2]))
    pag = Away(cond, 2.5, edit=denoiser.edit)
    x0 = guided(denoiser, cond, uncond, scale, others=[pag])(x, sigma)
    c, u = answer(x, sigma, cond), answer(x, sigma, uncond)
    torch.testing.assert_close(x0, u + scale * (c - u) + 2.5 * (c - 0.5 * c))
    rows = [len(call[0]) for call in denoiser.calls]
    assert rows == ([4] if scale == 1 else [6] if same_shapes else [4, 2])
    assert denoiser.perturbed == slice(0, 0)


def test_away_from_another_network(conds, normal):
    x, sigma, good, bad = normal("x"), torch.tensor(2.0), Recorder(), Recorder()

    def worse(x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        return 0.7 * bad(x, sigma, cond)

    cond, uncond = (answer(x, sigma, c) for c in conds)
    both = guided(good, *conds, 3.0, others=[Away(conds[1], 0.5, worse)])(x, sigma)
    torch.testing.assert_close(both, uncond + 3 * (cond - uncond) + 0.5 * (cond - 0.7 * uncond))
    assert len(good.calls) == 1 and len(bad.calls) == 1
    paper = guided(good, conds[0], None, 1.0, others=[Away(conds[0], 2.0 - 1, worse)])(x, sigma)
    torch.testing.assert_close(paper, 2.0 * cond + (1 - 2.0) * 0.7 * cond)  # w D1 + (1 - w) D0
    themselves = guided(good, *conds, 3.0, others=[Away(conds[0], 1.0, Recorder())])(x, sigma)
    torch.testing.assert_close(themselves, guided(good, *conds, 3.0)(x, sigma))


def test_weight_0_is_not_asked(conds, normal):
    denoiser, bad, x = Perturbable(), Recorder(), normal("x")
    others = [Away(conds[0], 0.0, bad), Away(conds[0], (0.0, 0.0), edit=denoiser.edit)]
    x0 = guided(denoiser, *conds, 3.0, others=others)(x, torch.tensor(2.0))
    assert torch.equal(x0, guided(answer, *conds, 3.0)(x, torch.tensor(2.0)))
    assert bad.calls == [] and [len(call[0]) for call in denoiser.calls] == [4]


def test_an_edit_lasts_for_a_call(conds, normal):
    denoiser = Perturbable()
    denoise = edited(denoiser, lambda: denoiser.edit(slice(None)))
    x, sigma = normal("x"), torch.tensor(2.0)
    torch.testing.assert_close(denoise(x, sigma, conds[0]), 0.5 * answer(x, sigma, conds[0]))
    torch.testing.assert_close(denoiser(x, sigma, conds[0]), answer(x, sigma, conds[0]))


def test_tiles_are_perturbed_as_the_whole(conds, normal):
    denoiser, x, sigma = Perturbable(), normal("x"), torch.tensor(2.0)
    pag = Away(conds[0], 2.5, edit=denoiser.edit)
    in_tiles = guided(tiled(denoiser, 5, 2), *conds, 3.0, others=[pag])(x, sigma)
    torch.testing.assert_close(in_tiles, guided(denoiser, *conds, 3.0, others=[pag])(x, sigma))
    assert [tuple(call[0].shape) for call in denoiser.calls] == 4 * [(6, 4, 5, 5)] + [(6, 4, 8, 8)]
