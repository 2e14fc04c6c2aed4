"""Where to compute, in which precision, and what a processor is set to first."""

from __future__ import annotations

import ctypes
import sys

import torch

from ldm.models.latent_diffusion import LatentDiffusion
from ldm.modules.packed import pack


def find_device(asked: str) -> str:
    """The device that was asked for, or for "auto" the fastest there is; ValueError if it is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if asked == "auto":
        return next(name for name, is_there in there.items() if is_there)
    if not there.get(asked):
        raise ValueError(f"--device {asked}: torch {torch.__version__} finds none here; use --device cpu or auto")
    return asked


def default_precision(device: str, has_bfloat16: bool | None = None) -> str:
    """Where none is asked for: on a processor that multiplies in it bfloat16, on others float32, on none float16.

    has_bfloat16: what is known of the processor; None looks.
    """
    if device != "cpu":
        return "fp16"
    return "bf16" if (multiplies_bfloat16() if has_bfloat16 is None else has_bfloat16) else "full"


def multiplies_bfloat16() -> bool:
    """Whether this processor has AVX512_BF16 or AMX; without them bfloat16 is slower than float32."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)


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


def make_ready(model: LatentDiffusion, device: str, precision: str) -> None:
    """What makes a model quick on its device, and changes no picture by more than the last bits of a float."""
    if device == "cpu":
        keep_freed_memory()
        if precision != "autocast":  # which casts weights for every call
            pack(model.unet)
            pack(model.autoencoder)
