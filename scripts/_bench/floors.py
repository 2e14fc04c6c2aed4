"""Clocks, counts of operations, and what this machine can do at best: measured, not looked up."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any


def clock(call: Callable[[], Any]) -> float:
    synchronize()
    start = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - start


def synchronize() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()


def count(call: Callable[[], Any]) -> tuple[Any, float]:
    """What the call returns, and the operations of its matrix products, convolutions and attention."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        answer = call()
    return answer, float(counter.get_total_flops())


def floor(operations: float, dtype: Any, device: str = "cpu", weights: float = 0, tiny: bool = False) -> float:
    """Seconds that this many operations take at the rate of a large product of matrices, or that these bytes of
    weights take to be read, whichever is more."""
    return max(operations / matrix_rate(dtype, device, tiny), weights / bandwidth(device, tiny))


def matrix_rate(dtype: Any, device: str = "cpu", tiny: bool = False) -> float:
    """Operations a second of torch.matmul, the best of a few."""
    import torch

    n = 256 if tiny else 8192 if device == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return 2 * n**3 / min(clock(lambda: torch.matmul(a, b)) for _ in range(6))


def bandwidth(device: str = "cpu", tiny: bool = False) -> float:
    """Bytes a second of a copy, read and written."""
    import torch

    size = 1 << 20 if tiny else (2 << 30 if device == "cuda" else 256 << 20)
    a = torch.ones(size, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    return 2 * size / min(clock(lambda: b.copy_(a)) for _ in range(6))
