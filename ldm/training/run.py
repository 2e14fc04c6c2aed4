"""From a recipe file to trained weights on disk: what `scripts/train*.py` call."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ldm.checkpoint.load import save, weights_path
from ldm.checkpoint.read import read
from ldm.config import build, load_config
from ldm.files import atomic
from ldm.modules.conv3x3 import choose_convolutions, has_avx512
from ldm.png import write_png
from ldm.training import scene_experiments as _scene_experiments  # noqa: F401  (registers what a recipe may name)
from ldm.training.diffusion_experiment import DiffusionExperiment
from ldm.training.experiments import Experiment
from ldm.training.loop import LOSSES, Trainer, Update
from ldm.training.parts import carried_config

Tree = dict[str, Any]
WEIGHTS = "model.safetensors"
PARTS = ("start", "unet", "autoencoder", "text_encoder")  # params of a recipe that name files of weights


def lay_out(module: torch.nn.Module) -> None:
    """Its weights as its device trains them fastest."""
    if has_avx512() or next(module.parameters()).device.type != "cpu":
        module.to(memory_format=torch.channels_last)
    else:
        choose_convolutions(module)


@dataclass(frozen=True)
class Report:
    """Yielded after each step; `preview` now and then: a line of text, or the picture's file."""

    update: Update
    preview: str | None = None


class Run:
    """One recipe in one folder; made again on the same folder, it goes on where it stopped."""

    def __init__(self, recipe_file: str | Path, folder: str | Path, device: str, overrides: Mapping[str, Any]) -> None:
        self.tree, self.folder = read_recipe(recipe_file, overrides), Path(folder)
        seed = self.tree["params"]["recipe"]["params"].get("seed", 0)
        torch.manual_seed(seed)  # of the first weights; everything later is keyed by step
        self.experiment: Experiment = build(self.tree, str(recipe_file))
        self.device = torch.device(device)
        if isinstance(self.experiment, DiffusionExperiment):
            lay_out(self.experiment.model.to(self.device))
        lay_out(self.experiment.trained.to(self.device))
        self.trainer = Trainer(self.experiment.trained, self.experiment.recipe, self.folder)
        self.resumed = self.trainer.resume()

    def steps(self, precision: str = "full") -> Iterator[Report]:
        """Train to the end. precision: full, or bf16 for matrix products and convolutions in bfloat16."""
        experiment, trainer = self.experiment, self.trainer
        experiment.prepare(self.folder)
        made = self.folder / f"preview-{trainer.step:06}.png"
        if self.resumed and trainer.step % experiment.recipe.preview_every == 0 and not made.exists():
            self._preview(trainer.step)  # it was killed between checkpoint and preview

        def loss(batch: Any, generator: torch.Generator) -> torch.Tensor:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16"):
                return experiment.loss(batch, generator)

        for update in trainer.run(experiment.batch, loss):
            due = update.step % experiment.recipe.preview_every == 0
            yield Report(update, self._preview(update.step) if due else None)

    def save(self, commit: str = "unknown", dtype: torch.dtype = torch.float32) -> Path:
        """The moving average as a file that `ldm.load` (or another recipe) reads, with how it came to be."""
        module = self.experiment.result(self.trainer.ema)
        tree = self.tree["params"]["model"]
        for name in ("scaling_factor", "shift_factor"):
            if hasattr(module, name):
                tree.setdefault("params", {})[name] = getattr(module, name)
        borrows = getattr(self.experiment, "borrows", {})
        save(
            module, self.folder / WEIGHTS, config=tree, dtype=dtype, metadata=self._provenance(commit), borrows=borrows
        )
        return self.folder / WEIGHTS

    def _provenance(self, commit: str) -> dict[str, str]:
        """Steps, seed, data and commit, and the same of the trained parts this run began with."""
        params, recipe = self.tree["params"], self.trainer.recipe
        found = {"steps": str(self.trainer.step), "seed": str(recipe.seed), "commit": commit}
        found |= {"batch_size": str(recipe.batch_size), "data": json.dumps(params.get("data"))}
        for part in PARTS:
            if isinstance(params.get(part), str):
                earlier = read(weights_path(params[part])).metadata
                found |= {f"{part}.{key}": value for key, value in earlier.items() if key != "config"}
        return found

    def _preview(self, step: int) -> str:
        plot_losses(self.folder / LOSSES, self.folder / "loss.png")
        preview = self.experiment.preview(self.trainer.ema)
        if isinstance(preview, str):
            return preview
        path = self.folder / f"preview-{step:06}.png"
        write_png(preview, path)
        return str(path)


def read_recipe(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Tree:
    """The experiment's tree. A model given as a path is that config file's tree; a model or a part that comes from a
    file of weights (`start`, `autoencoder`, `text_encoder`) brings its own. `overrides` are fields of `recipe`."""
    tree = load_config(path)
    params = tree.get("params")
    recipe = params.get("recipe") if isinstance(params, dict) else None
    if not isinstance(params, dict) or "model" not in params or not isinstance(recipe, dict):
        raise ValueError(f"{path}: not a training recipe, which has a model and a recipe; see configs/train")
    recipe.setdefault("params", {}).update({k: v for k, v in (overrides or {}).items() if v is not None})
    if isinstance(params["model"], str):
        params["model"] = load_config(params["model"])
    if isinstance(params.get("start"), str):
        params["model"] = carried_config(params["start"])
    for part in ("autoencoder", "text_encoder"):
        if isinstance(params.get(part), str):
            params["model"]["params"][part] = carried_config(params[part], part)
    return tree


def plot_losses(table: Path, picture: Path) -> None:
    """loss.csv (step, mean loss) as a curve. Without matplotlib there is no picture."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    if not table.exists():
        return
    with table.open() as file:
        rows = [(int(step), float(loss)) for step, loss in csv.reader(file)]
    if not rows:
        return
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*rows, strict=True), linewidth=1)
    axes.set(xlabel="step", ylabel="training loss", yscale="log")
    axes.grid(alpha=0.3)
    with atomic(picture) as out:
        figure.savefig(out, format="png", dpi=110)


def current_commit() -> str:
    """The checkout's commit, with "-dirty" if it was changed since; "unknown" outside one or without git."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    except OSError:
        return "unknown"
    return answer.stdout.strip() or "unknown"
