"""NaN and infinity, found before they become a black picture."""

from __future__ import annotations

import torch
from torch import Tensor


class NonFiniteError(RuntimeError):
    """NaN or infinity where a picture should be; the message names the stage."""


def _found(stage: str, dtype: torch.dtype) -> NonFiniteError:
    return NonFiniteError(
        f"NaN or infinity in {stage}, in {str(dtype).removeprefix('torch.')}: "
        "no picture was made of it; try full precision, or a smaller guidance scale"
    )


def check_finite(x: Tensor, stage: str, dtype: torch.dtype) -> None:
    if not bool(torch.isfinite(x).all()):
        raise _found(stage, dtype)


class Watch:
    """`check_finite` for the steps of a batch: on a CPU at once, elsewhere at the end, for to read a number from a GPU
    is to wait for all that it was told to do, and it idles while it is told more."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._seen: list[tuple[str, Tensor]] = []

    def see(self, x: Tensor, stage: str) -> None:
        self._seen.append((stage, torch.isfinite(x).all()))
        if x.is_cpu:
            self.report()

    def report(self) -> None:
        """NonFiniteError for the first stage that had any."""
        stages, flags = [stage for stage, _ in self._seen], [flag for _, flag in self._seen]
        self._seen.clear()
        if flags and not all(finite := torch.stack(flags).tolist()):
            raise _found(stages[finite.index(False)], self.dtype)
