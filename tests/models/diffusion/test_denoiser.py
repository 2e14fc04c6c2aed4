from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ldm.models.diffusion import PARAMETERIZATIONS, Conditioning, Denoiser, NoiseSchedule

NOTHING = Conditioning()


class Network(nn.Module):
    """Answers with a fixed tensor, or a function of its input, and remembers what it was asked."""

    def __init__(self, answer=None, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=dtype))
        self.answer = answer

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        self.asked = {"x": x, "t": t, "context": context, "y": y}
        answer = x if self.answer is None else self.answer(x) if callable(self.answer) else self.answer
        return (answer * self.weight).to(self.weight.dtype)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
@pytest.mark.parametrize("sigma", [torch.tensor(0.03), torch.tensor(14.6), torch.tensor([0.5, 7.0])])
def test_a_perfect_network_gives_the_clean_latent(name, sigma, normal):
    schedule, z, noise, sigma = NoiseSchedule(), normal("z"), normal("n"), sigma.double()
    network = Network(PARAMETERIZATIONS[name].target(z, noise, sigma))
    x0 = Denoiser(network, schedule, name)(schedule.add_noise(z, noise, sigma), sigma, NOTHING)
    torch.testing.assert_close(x0, z, rtol=0, atol=1e-12)


def test_targets_are_those_of_the_papers(normal):
    schedule, z, noise = NoiseSchedule(), normal("z"), normal("n")
    alpha, sigma = schedule.alphas_cumprod[600], schedule.sigmas[600]
    target = {name: table.target(z, noise, sigma) for name, table in PARAMETERIZATIONS.items()}
    assert torch.equal(target["eps"], noise)
    assert torch.equal(target["x0"], z)
    torch.testing.assert_close(target["v"], alpha.sqrt() * noise - (1 - alpha).sqrt() * z)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_c_out_turns_an_error_of_the_network_into_one_of_x0(name, normal):
    sigma, x = torch.tensor([0.5, 7.0], dtype=torch.float64), normal("x")
    answer, wrong = normal("answer"), normal("wrong")
    x0 = [Denoiser(Network(f), NoiseSchedule(), name)(x, sigma, NOTHING) for f in (answer, answer + wrong)]
    c_out = PARAMETERIZATIONS[name].c_out(sigma).reshape(2, 1, 1, 1)
    torch.testing.assert_close(x0[1] - x0[0], c_out * wrong, rtol=1e-10, atol=1e-10)


def test_clip_keeps_the_estimate_among_pictures(normal):
    sigma, x = torch.tensor([0.5, 7.0], dtype=torch.float64), normal("x")
    free, clipped = (
        Denoiser(Network(), NoiseSchedule(), "eps", clip_x0=clip)(x, sigma, NOTHING) for clip in (False, True)
    )
    assert free.abs().max() > 1.5 and torch.equal(clipped, free.clamp(-1, 1))


def test_what_the_network_sees(normal):
    schedule, network, x = NoiseSchedule(), Network(), normal("x")
    Denoiser(network, schedule, "eps")(x, schedule.sigmas[[999, 20]], NOTHING)
    assert network.asked["t"].tolist() == [999, 20]
    assert network.asked["t"].dtype == torch.float32
    torch.testing.assert_close(network.asked["x"], x * schedule.alphas_cumprod[[999, 20]].sqrt().reshape(2, 1, 1, 1))
    Denoiser(network, schedule, "eps")(x, schedule.sigmas[7], NOTHING)
    assert network.asked["t"].tolist() == [7, 7]  # one per image


def test_the_network_keeps_its_dtype_and_the_latent_its_own(normal):
    network = Network(dtype=torch.bfloat16)
    cond = Conditioning(normal("context", (2, 3, 5)), normal("mask", (2, 1, 8, 8)), torch.tensor([3, 4]))
    # 999 is not a bfloat16 number: the timestep must not be cast with the rest
    network.answer = lambda x: x[:, :4]
    x0 = Denoiser(network, NoiseSchedule(), "v")(normal("x").float(), NoiseSchedule().sigmas[999], cond)
    asked = network.asked
    assert x0.dtype == torch.float32
    assert asked["x"].dtype == asked["context"].dtype == torch.bfloat16
    assert asked["t"].tolist() == [999, 999]
    assert asked["y"].dtype == torch.int64


def test_concat_is_joined_unscaled(normal):
    network, mask = Network(lambda x: x[:, :4]), normal("mask", (2, 1, 8, 8))
    Denoiser(network, NoiseSchedule(), "eps")(normal("x"), torch.tensor(5.0), Conditioning(concat=mask))
    assert network.asked["x"].shape == (2, 5, 8, 8)
    assert torch.equal(network.asked["x"][:, 4:], mask)


def test_a_zero_snr_level_with_v_in_float32(normal):
    schedule = NoiseSchedule(zero_terminal_snr=True)
    z, noise, sigma = normal("z").float(), normal("n").float(), schedule.sigmas[-1]
    v = PARAMETERIZATIONS["v"].target(z, noise, sigma)
    network = Network(v, torch.float32)
    x0 = Denoiser(network, schedule, "v")(schedule.add_noise(z, noise, sigma), sigma, NOTHING)
    torch.testing.assert_close(v, -z, rtol=0, atol=1e-4)  # all that is left to predict is z
    torch.testing.assert_close(x0, z, rtol=0, atol=1e-6)
    torch.testing.assert_close(network.asked["x"], noise, rtol=0, atol=1e-4)  # and all it sees is noise


def test_gradients_reach_the_latent_and_the_context(normal):
    class Mixing(nn.Module):
        def forward(self, x: Tensor, t: Tensor, context: Tensor, y: None) -> Tensor:
            return torch.sin(x * context.mean((1, 2)).reshape(-1, 1, 1, 1) + t.double().reshape(-1, 1, 1, 1))

    denoiser = Denoiser(Mixing(), NoiseSchedule(), "v")  # without parameters: it takes the latent's dtype
    x, context = normal("x", (1, 1, 2, 2)).requires_grad_(), normal("c", (1, 2, 2)).requires_grad_()
    sigma = torch.tensor(1.5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, c: denoiser(x, sigma, Conditioning(c)), (x, context))


def test_conditionings_move_and_join(normal):
    a = Conditioning(normal("a", (1, 3, 5)), y=torch.tensor([1]))
    b = Conditioning(normal("b", (2, 3, 5)), y=torch.tensor([2, 3]))
    both = Conditioning.cat([a, b])
    assert both.context.shape == (3, 3, 5)
    assert both.concat is None
    assert both.y.tolist() == [1, 2, 3]
    moved = both.to("cpu", torch.float16)
    assert moved.context.dtype == torch.float16
    assert moved.y.dtype == torch.int64
    assert both.context.dtype == torch.float64
    with pytest.raises(ValueError, match="y is"):
        Conditioning.cat([a, Conditioning(b.context)])
    with pytest.raises(ValueError, match=r"context is \[\(1, 3, 5\), \(2, 4, 5\)\]"):
        Conditioning.cat([a, Conditioning(normal("b", (2, 4, 5)), y=b.y)])


def test_errors():
    with pytest.raises(ValueError, match="'epsilon'; use one of eps, v, x0"):
        Denoiser(Network(), NoiseSchedule(), "epsilon")
    with pytest.raises(ValueError, match="use v or x0"):
        Denoiser(Network(), NoiseSchedule(zero_terminal_snr=True), "eps")
