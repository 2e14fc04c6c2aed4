"""What makes drawing faster and draws nothing else: compiled blocks, weights as a device wants them, kept memory."""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm.models.latent_diffusion import LatentDiffusion
from ldm.modules.blocks import Upsample
from ldm.modules.conv3x3 import choose_convolutions, has_avx512
from ldm.modules.packed import pack

LARGE = 1 << 25  # numbers of a UNet, or of a tensor that is doubled, from which on memory is given back: 128 MB
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
        give_back_holes(model)


def keep_kernels() -> None:
    """Compiled kernels outlast the process, in the user's cache folder and not in /tmp; who chose a folder has it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault(CACHE, str(cache / "ldm" / "kernels"))


def keep_freed_memory() -> bool:
    """Have the C library keep what is freed, for the next tensor: one of more than 32 MB would else be mapped afresh
    each time, and the system clears its every page when it is first written to. Whether the library is one that can."""
    library = _c_library()
    if library is None:
        return False
    m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
    kept = library.mallopt(m_mmap_threshold, 1 << 30) and library.mallopt(m_trim_threshold, (1 << 31) - 1)
    return bool(kept)


def _c_library() -> ctypes.CDLL | None:
    """glibc, if it is there."""
    try:
        library = ctypes.CDLL("libc.so.6") if sys.platform.startswith("linux") else None
        return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
    except OSError:
        return None


def give_back_holes(model: LatentDiffusion) -> None:
    """Have the C library give back what it kept, before a decoder runs after a large UNet, and where the decoder's
    tensors double and are large: what was freed is too small for what comes, and would be held beside it."""
    decoder = getattr(model.autoencoder, "decoder", None)
    if not isinstance(decoder, nn.Module):
        return
    if sum(parameter.numel() for parameter in model.unet.parameters()) >= LARGE:
        decoder.register_forward_pre_hook(_trim)
    for module in decoder.modules():
        if isinstance(module, Upsample):
            module.register_forward_pre_hook(_trim_where_large)
            module.register_forward_hook(_trim_where_large)


def _trim_where_large(module: nn.Module, args: tuple[Tensor, ...], output: object = None) -> None:
    if args[0].numel() >= LARGE:
        _trim()


def _trim(*_: object) -> None:
    if (library := _c_library()) is not None:
        library.malloc_trim(0)
