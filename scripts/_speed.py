"""What makes drawing faster and draws nothing else: compiled blocks and a GPU's layout of weights."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from ldm.models.latent_diffusion import LatentDiffusion

CACHE = "TORCHINDUCTOR_CACHE_DIR"  # torch's own name for where compiled kernels are kept


def hasten(options: argparse.Namespace, models: Sequence[LatentDiffusion | None]) -> None:
    """The networks of a job, once they are loaded."""
    for model in models:
        if model is None:
            continue
        if model.device.type == "cuda":
            model.unet.to(memory_format=torch.channels_last)
        if options.compile:
            from ldm.regions import compile_regions  # imports torch's compiler: a second

            keep_kernels()
            compile_regions(model.unet)


def keep_kernels() -> None:
    """Compiled kernels outlast the process, in the user's cache folder and not in /tmp; who chose a folder has it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault(CACHE, str(cache / "ldm" / "kernels"))
