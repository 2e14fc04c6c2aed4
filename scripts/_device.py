"""Where to compute."""

from __future__ import annotations

import torch


def find_device(asked: str) -> str:
    """The device that was asked for, or for "auto" the fastest there is; ValueError if it is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if asked == "auto":
        return next(name for name, is_there in there.items() if is_there)
    if not there.get(asked):
        raise ValueError(f"--device {asked}: torch {torch.__version__} finds none here; use --device cpu or auto")
    return asked
