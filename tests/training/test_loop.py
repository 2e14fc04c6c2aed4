"""The loop learns, stops and goes on bit for bit."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from ldm.training.loop import DivergedError, Recipe, Trainer, seeded, shuffled
from ldm.training.state import tensors_of

RECIPE = Recipe(steps=20, batch_size=4, learning_rate=0.05, warmup=3, save_every=5, log_every=5, ema_decay=0.9)


def trainer(folder, recipe=RECIPE):
    torch.manual_seed(0)
    return Trainer(nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 1)), recipe, folder)


def batch(step):
    return torch.randn(4, 3, generator=seeded(5, step))


def run(trainer, stop=None):
    def loss(x, generator):
        noisy = x + 0.1 * torch.randn(x.shape, generator=generator)
        return (trainer.model(noisy).squeeze(1) - x.sum(1)).square().mean()

    losses = []
    for progress in trainer.run(batch, loss):
        losses.append(progress.loss)
        if progress.step == stop:
            break
    return losses


def test_it_learns(tmp_path):
    losses = run(trainer(tmp_path, Recipe(steps=200, batch_size=4, learning_rate=0.05, warmup=3)))
    assert sum(losses[-20:]) < 0.2 * sum(losses[:20])


@pytest.mark.parametrize("killed_at", [5, 7, 13])
def test_killed_and_resumed_is_the_same_bit_for_bit(tmp_path, killed_at):
    whole = trainer(tmp_path / "whole")
    run(whole)
    run(trainer(tmp_path / "parts"), stop=killed_at)
    resumed = trainer(tmp_path / "parts")
    assert resumed.resume() and resumed.step == killed_at // 5 * 5
    run(resumed)
    for one, other in ((whole.model, resumed.model), (whole.ema, resumed.ema)):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    a, b = whole.optimizers[0].state_dict()["state"], resumed.optimizers[0].state_dict()["state"]
    assert all(torch.equal(a[i]["exp_avg"], b[i]["exp_avg"]) for i in a)


def test_channels_last_is_resumed_bit_for_bit_too(tmp_path):
    def convolving(folder):
        torch.manual_seed(0)
        model = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
        return Trainer(model, replace(RECIPE, steps=10), folder)

    def finish(t, stop=None):
        for progress in t.run(lambda step: torch.randn(2, 4, 5, 5, generator=seeded(step)), lambda x, g: loss(t, x)):
            if progress.step == stop:
                break
        return t.model.weight

    def loss(t, x):
        return (t.model(x) * torch.linspace(-1, 1, 54).view(6, 3, 3)).square().mean()

    whole = finish(convolving(tmp_path / "whole"))
    finish(convolving(tmp_path / "parts"), stop=7)
    resumed = convolving(tmp_path / "parts")
    assert resumed.resume() and torch.equal(finish(resumed), whole)


def test_average_follows_its_definition(tmp_path):
    t = trainer(tmp_path)
    first = t.ema[0].bias.clone()
    run(t, stop=1)
    decay = min(0.9, 1 / 10)
    assert torch.allclose(t.ema[0].bias, decay * first + (1 - decay) * t.model[0].bias)


def test_rate_warms_up_and_falls_to_its_end():
    recipe = Recipe(steps=1000, batch_size=1, learning_rate=2.0, warmup=100, final_rate=0.1)
    assert recipe.rate(0) == pytest.approx(0.02, rel=1e-3)
    assert recipe.rate(500) == pytest.approx(2.0 * 0.55)
    assert recipe.rate(1000) == pytest.approx(0.2)
    rates = [recipe.rate(i) for i in range(1001)]
    assert max(rates) < 2.0 and all(a > b for a, b in pairwise(rates[100:]))


def test_a_loss_that_is_not_finite_stops_before_any_weight_is_touched(tmp_path):
    t = trainer(tmp_path)
    before = [p.clone() for p in t.model.parameters()]
    with pytest.raises(DivergedError, match="step 0: loss nan"):
        next(t.run(batch, lambda x, g: t.model(x).mean() * math.nan))
    assert all(torch.equal(a, b) for a, b in zip(before, t.model.parameters(), strict=True))
    assert not (tmp_path / "last.safetensors").exists()


@pytest.mark.fault
@pytest.mark.parametrize("name", ["model.2.bias", "ema.0.weight", "optimizer.0.1.exp_avg_sq"])
def test_what_is_not_finite_is_never_saved(tmp_path, name):
    t = trainer(tmp_path)
    run(t, stop=5)
    before = (tmp_path / "last.safetensors").read_bytes()
    state = {"model": t.model.state_dict(), "ema": t.ema.state_dict()}
    state["optimizers"] = [optimizer.state_dict() for optimizer in t.optimizers]
    tensors_of(state)[name][0] = math.inf  # they share memory with the trainer's
    with pytest.raises(DivergedError, match=f"step 5: NaN or infinity in {name}, .*; lower the learning_rate"):
        t.save()
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["last.safetensors"]
    assert (tmp_path / "last.safetensors").read_bytes() == before


def test_a_rate_that_no_weight_survives_leaves_no_checkpoint(tmp_path):
    with pytest.raises(DivergedError, match=r"step 1: NaN or infinity in model\.0"):
        run(trainer(tmp_path, replace(RECIPE, learning_rate=1e39, save_every=1)))
    assert not list(tmp_path.glob("*.safetensors"))


def test_losses_are_logged_as_means(tmp_path):
    losses = run(trainer(tmp_path))
    rows = [line.split(",") for line in (tmp_path / "loss.csv").read_text().split()]
    assert [int(step) for step, _ in rows] == [5, 10, 15, 20]
    assert [float(x) for _, x in rows] == pytest.approx([sum(losses[i : i + 5]) / 5 for i in range(0, 20, 5)])


def test_losses_after_the_checkpoint_are_forgotten_when_it_goes_on(tmp_path):
    recipe = replace(RECIPE, log_every=1)
    run(trainer(tmp_path, recipe), stop=7)
    resumed = trainer(tmp_path, recipe)
    assert resumed.resume()
    run(resumed)
    steps = [int(line.split(",")[0]) for line in (tmp_path / "loss.csv").read_text().split()]
    assert steps == list(range(1, 21))


def test_another_models_checkpoint_is_refused(tmp_path):
    run(trainer(tmp_path), stop=5)
    with pytest.raises(ValueError, match="another model"):
        Trainer(nn.Linear(2, 2), RECIPE, tmp_path).resume()


def test_random_numbers_depend_on_purpose_seed_and_step():
    keys = [("loss", 0, 1), ("loss", 0, 2), ("loss", 1, 1), ("order", 0, 1)]
    assert len({torch.randn(1, generator=seeded(*key)).item() for key in keys}) == len(keys)


def test_what_torch_draws_by_itself_is_the_same_after_a_kill(tmp_path):
    def dropped(t, stop=None):
        network = nn.Sequential(nn.Dropout(0.5), t.model)
        for progress in t.run(batch, lambda x, g: network(x).square().mean()):
            if progress.step == stop:
                break
        return t.model[0].weight

    whole = dropped(trainer(tmp_path / "whole"))
    dropped(trainer(tmp_path / "parts"), stop=7)
    resumed = trainer(tmp_path / "parts")
    resumed.resume()
    assert torch.equal(dropped(resumed), whole)


def test_numbers_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="save_every is 0"):
        replace(RECIPE, save_every=0)


def test_every_item_once_an_epoch_in_another_order():
    indices = shuffled(10, 2, seed=0)
    epochs = [[i for step in range(5 * e, 5 * e + 5) for i in indices(step)] for e in range(2)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs) and epochs[0] != epochs[1]
    with pytest.raises(ValueError, match="smaller batch_size"):
        shuffled(3, 4, seed=0)
