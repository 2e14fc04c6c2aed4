"""Which of torch's kernels `scaled_dot_product_attention` runs, where one is to be pinned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}


@contextmanager
def pinned(name: str | None) -> Iterator[None]:
    """None and auto leave the choice to torch. Kernels differ in the last bits of what they answer.

    What the named one cannot do, such as a text tower's mask or the wide heads of an autoencoder in float32, the next
    that can does.
    """
    if name is None or name == "auto":
        yield
        return
    others = () if name == "math" else (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
    with sdpa_kernel(list(dict.fromkeys((BACKENDS[name], *others))), set_priority=True):
        yield


def check_backend(name: str | None, device: torch.device | str, dtype: torch.dtype) -> None:
    """ValueError where torch has no such kernel for the device and the dtype: it is tried."""
    if name is None or name == "auto":
        return
    q = torch.zeros(1, 1, 8, 64, device=device, dtype=dtype)  # (B, heads, N, d)
    try:
        with torch.inference_mode(), sdpa_kernel(BACKENDS[name]):
            F.scaled_dot_product_attention(q, q, q)
    except RuntimeError as error:
        kind = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"--attention {name}: torch {torch.__version__} has none for {kind} on {device}; use auto"
        ) from error
