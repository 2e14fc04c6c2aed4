"""A plain training loop that can be killed at any moment and goes on bit for bit.

Everything random in step i (which images, crops, noise, timesteps) is a function of (seed, i), so a checkpoint is
only weights, their moving average, the optimizer and the number of the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.checkpoint.fit import is_finite
from ldm.config import register
from ldm.files import append_line, usable_folder, write_text
from ldm.noise import seed_of
from ldm.training.muon import Muon, suits_muon
from ldm.training.state import lay_out, load_old_state, load_state, save_state, tensors_of

Batch = Any
Loss = Callable[[Batch, torch.Generator], Tensor]
CHECKPOINT = "last.safetensors"
OLD_CHECKPOINT = "last.pt"  # what it was called before it had checksums
LOSSES = "loss.csv"


@register("Recipe")
@dataclass(frozen=True)
class Recipe:
    """How long and how fast. Steps count optimizer updates; the rate warms up linearly and falls as a cosine."""

    steps: int
    batch_size: int
    learning_rate: float
    warmup: int = 500
    final_rate: float = 0.02  # share of the learning rate left at the last step
    weight_decay: float = 0.01
    optimizer: str = "adamw"  # or muon
    betas: tuple[float, float] = (0.9, 0.99)  # of AdamW
    clip: float = 1.0  # largest norm of the gradient
    ema_decay: float = 0.999
    seed: int = 0
    log_every: int = 50
    save_every: int = 500
    preview_every: int = 1000

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "learning_rate", "log_every", "save_every", "preview_every"):
            if getattr(self, name) <= 0:
                raise ValueError(f"recipe: {name} is {getattr(self, name)}; give a number above 0")
        if self.optimizer not in ("adamw", "muon"):
            raise ValueError(f"recipe: optimizer {self.optimizer!r}; adamw and muon are known")

    def rate(self, step: int) -> float:
        warm = min(1.0, (step + 1) / max(self.warmup, 1))
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.steps)))
        return self.learning_rate * warm * (self.final_rate + (1 - self.final_rate) * cosine)

    def average(self, step: int) -> float:
        """Decay of the moving average, shorter at the start so that it forgets the first random weights."""
        return min(self.ema_decay, (1 + step) / (10 + step))


class DivergedError(RuntimeError):
    """The training has left the road; the last checkpoint is still good."""


@dataclass(frozen=True)
class Update:
    """One step of the optimizer, just made."""

    step: int
    loss: float


class Trainer:
    """The state of a training: model, its moving average `ema`, optimizers, step."""

    def __init__(self, model: nn.Module, recipe: Recipe, folder: Path) -> None:
        self.model, self.recipe, self.folder = model, recipe, usable_folder(folder)
        self.ema = deepcopy(model).requires_grad_(False).eval()
        self.optimizers = _optimizers(model, recipe)
        self.step = 0
        self.unlogged: list[float] = []

    def resume(self) -> bool:
        """Go on from the folder's checkpoint if there is one; losses logged after it are dropped."""
        path = next((file for file in (self.folder / CHECKPOINT, self.folder / OLD_CHECKPOINT) if file.exists()), None)
        if path is not None:
            state = load_old_state(path) if path.name == OLD_CHECKPOINT else load_state(path)
            try:
                self.model.load_state_dict(state["model"])
                self.ema.load_state_dict(state["ema"])
                for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
                    optimizer.load_state_dict(kept)
                    lay_out(optimizer)
            except (RuntimeError, ValueError, KeyError) as error:
                raise ValueError(f"{path}: the checkpoint of another model; choose another folder") from error
            self.step, self.unlogged = state["step"], state["unlogged"]
        self._forget_later_losses()
        return path is not None

    def _forget_later_losses(self) -> None:
        path = self.folder / LOSSES
        if path.exists():
            rows = path.read_text().splitlines()
            kept = [row for row in rows if "," in row and int(row.partition(",")[0]) <= self.step]
            write_text(path, "".join(f"{row}\n" for row in kept))

    def save(self) -> None:
        """The checkpoint. DivergedError, with the old one as it was, where anything in it is not finite."""
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        state = {"model": self.model.state_dict(), "ema": self.ema.state_dict(), "optimizers": optimizers}
        spoiled = next((name for name, tensor in tensors_of(state).items() if not is_finite(tensor)), None)
        if spoiled is not None:
            found = f"NaN or infinity in {spoiled}, so no checkpoint was written"
            raise DivergedError(f"step {self.step}: {found}; lower the learning_rate")
        save_state(self.folder / CHECKPOINT, state | {"step": self.step, "unlogged": self.unlogged})

    def run(self, batch: Callable[[int], Batch], loss: Loss) -> Iterator[Update]:
        """Train to the recipe's last step. DivergedError, with no weight touched, if loss or gradient is not finite."""
        recipe, parameters = self.recipe, [p for p in self.model.parameters() if p.requires_grad]
        self.model.train()
        while self.step < recipe.steps:
            for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
                group["lr"] = recipe.rate(self.step)
            torch.manual_seed(seed_of(f"dropout {recipe.seed} {self.step}"))
            value = loss(batch(self.step), seeded("loss", recipe.seed, self.step))
            self.model.zero_grad(set_to_none=True)
            value.backward()
            norm = nn.utils.clip_grad_norm_(parameters, recipe.clip)
            if not (math.isfinite(value.item()) and math.isfinite(norm.item())):
                found = f"loss {value.item()}, gradient norm {norm.item()}"
                raise DivergedError(f"step {self.step}: {found}; lower the learning_rate")
            for optimizer in self.optimizers:
                optimizer.step()
            self._update_average()
            self.step += 1
            self._log(value.item())
            if self.step % recipe.save_every == 0 or self.step == recipe.steps:
                self.save()
            yield Update(self.step, value.item())

    @torch.no_grad()
    def _update_average(self) -> None:
        averages: list[Tensor] = list(self.ema.parameters())
        values: list[Tensor] = list(self.model.parameters())
        torch._foreach_lerp_(averages, values, 1 - self.recipe.average(self.step))

    def _log(self, loss: float) -> None:
        self.unlogged.append(loss)
        if self.step % self.recipe.log_every == 0:
            append_line(self.folder / LOSSES, f"{self.step},{sum(self.unlogged) / len(self.unlogged)}")
            self.unlogged = []


def _optimizers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW, which decays matrices only; or Muon for the matrices of hidden layers and AdamW for the rest."""
    trained = [p for p in model.parameters() if p.requires_grad]
    orthogonalized = suits_muon(model) if recipe.optimizer == "muon" else set()
    rest = [p for p in trained if p not in orthogonalized]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
    ]
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, fused=True)
    ]
    if orthogonalized:
        matrices = [p for p in trained if p in orthogonalized]
        found.append(Muon(matrices, lr=recipe.learning_rate, weight_decay=recipe.weight_decay))
    return found


def seeded(*key: str | int) -> torch.Generator:
    """The generator of the random numbers of one purpose in one step, say ("crops", seed, step)."""
    return torch.Generator().manual_seed(seed_of(f"training {key}"))


def shuffled(length: int, batch_size: int, seed: int) -> Callable[[int], list[int]]:
    """Step → the indices of its batch: every item once an epoch, in an order that depends on (seed, epoch)."""
    if length < batch_size:
        raise ValueError(f"{length} items of data are fewer than a batch of {batch_size}; use a smaller batch_size")
    per_epoch = length // batch_size

    def indices(step: int) -> list[int]:
        epoch, position = divmod(step, per_epoch)
        order = torch.randperm(length, generator=seeded("order", seed, epoch))
        return order[position * batch_size : (position + 1) * batch_size].tolist()

    return indices
