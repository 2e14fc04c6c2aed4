"""What makes drawing faster and draws nothing else: compiled blocks, weights as a device wants them, kept memory."""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ldm.models.latent_diffusion import LatentDiffusion
from ldm.modules.conv3x3 import choose_convolutions, has_avx512
from ldm.modules.packed import pack

CACHE = "TORCHINDUCTOR_CACHE_DIR"  # torch's own name for where compiled kernels are kept


def hasten(options: argparse.Namespace, models: Sequence[LatentDiffusion | None]) -> None:
    """The networks of a job, once they are loaded."""
    for model in (model for model in models if model is not None):
        on_cpu = model.device.type == "cpu"
        if not on_cpu or not (options.compile or options.precision == "autocast"):  # which casts weights for every call
            lay_out(model)
        if options.compile:
            from ldm.regions import compile_regions  # imports torch's compiler: a second

            keep_kernels()
            compile_regions(model.unet)


def lay_out(model: LatentDiffusion) -> None:
    """Its weights as its device multiplies them fastest, for drawing alone."""
    if model.device.type == "cuda":
        model.unet.to(memory_format=torch.channels_last)
    elif model.device.type == "cpu":
        keep_freed_memory()
        arrange = pack if has_avx512() else choose_convolutions
        arrange(model.unet)
        arrange(model.autoencoder)


def keep_kernels() -> None:
    """Compiled kernels outlast the process, in the user's cache folder and not in /tmp; who chose a folder has it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault(CACHE, str(cache / "ldm" / "kernels"))


def keep_freed_memory() -> bool:
    """Have the C library keep what is freed, for the next tensor: one of more than 32 MB would else be mapped afresh
    each time, and the system clears its every page when it is first written to. Whether the library is one that can."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt  # glibc's name
    except (OSError, AttributeError):
        return False
    m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
    return bool(mallopt(m_mmap_threshold, 1 << 30)) and bool(mallopt(m_trim_threshold, (1 << 31) - 1))
