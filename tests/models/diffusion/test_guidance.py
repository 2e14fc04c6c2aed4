from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ldm.models.diffusion import Conditioning, guided, switched


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
