"""Muon moves a matrix along its gradient's polar factor, and learns."""

import math

import pytest
import torch
from torch import nn

from ldm.training.loop import Recipe, Trainer
from ldm.training.muon import Muon, orthogonal, suits_muon


@pytest.mark.parametrize("shape", [(24, 24), (16, 90), (90, 16)])
def test_singular_values_come_close_to_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonal(matrix))
    assert values.min() > 0.7 and values.max() < 1.3
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    cosine = torch.cosine_similarity(orthogonal(matrix).flatten(), (u @ vh).flatten(), dim=0)
    assert cosine > 0.98


def test_nothing_moves_for_no_gradient():
    assert orthogonal(torch.zeros(3, 5)).abs().max() == 0


def test_a_step_has_adams_size():
    """An orthogonal (m, n) has root mean square 1 / sqrt(max(m, n)); Adam's step is about 0.2 of the rate."""
    weight = nn.Parameter(torch.zeros(40, 10, 3, 3))
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    Muon([weight], lr=0.5).step()
    assert math.sqrt(weight.square().mean().item()) == pytest.approx(0.2 * 0.5, rel=0.1)
    assert (weight * weight.grad).sum() < 0


def test_weights_decay_as_adamws():
    weight = nn.Parameter(torch.ones(4, 4))
    weight.grad = torch.zeros(4, 4)
    Muon([weight], lr=0.1, weight_decay=0.5).step()
    assert torch.allclose(weight, torch.full((4, 4), 1 - 0.1 * 0.5))


def test_the_ends_of_a_network_are_left_to_adam():
    model = nn.ModuleDict({"conv_in": nn.Conv2d(3, 4, 3), "mid": nn.Linear(4, 4), "conv_out": nn.Conv2d(4, 3, 3)})
    assert suits_muon(model) == {model["mid"].weight}


def test_it_trains_and_goes_on_bit_for_bit(tmp_path):
    recipe = Recipe(steps=60, batch_size=8, learning_rate=0.05, warmup=3, save_every=20, optimizer="muon")

    def run(folder, stop):
        torch.manual_seed(0)
        trainer = Trainer(nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Linear(16, 1)), recipe, folder)
        trainer.resume()
        losses = []
        for update in trainer.run(
            lambda step: torch.randn(8, 3, generator=torch.Generator().manual_seed(step)),
            lambda x, _: (trainer.model(x).squeeze(1) - x.prod(1)).square().mean() + x.sum() * 0,
        ):
            losses.append(update.loss)
            if update.step == stop:
                break
        return trainer, losses

    whole, losses = run(tmp_path / "whole", None)
    run(tmp_path / "parts", 30)
    resumed, _ = run(tmp_path / "parts", None)
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_an_unknown_optimizer_is_named():
    with pytest.raises(ValueError, match="'sgd'; adamw and muon"):
        Recipe(steps=1, batch_size=1, learning_rate=1.0, optimizer="sgd")
