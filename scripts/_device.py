"""Where to compute, and in which precision."""

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
