"""NaN and infinity, found before they become a black picture."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Origin:
    """Where numbers first stopped being finite: see `ldm.provenance`."""

    place: str  # a module by its name in the model, the input of one, or arithmetic between them
    dtype: torch.dtype
    largest: float  # the magnitude of the largest finite number before it
    sigma: float | None = None  # the noise level, where the network was asked
    weight: str | None = None  # of the module, which is not finite itself

    def __str__(self) -> str:
        level = "" if self.sigma is None else f" at sigma {self.sigma:.4g}"
        return (
            f"it began in {self.place}, in {_name(self.dtype)}{level}, the largest number before is {self.largest:.4g}"
        )


class NonFiniteError(RuntimeError):
    """NaN or infinity where a picture should be; the message names the stage and, where it was found, the origin."""

    def __init__(self, stage: str, dtype: torch.dtype | None = None, origin: Origin | None = None) -> None:
        self.stage, self.dtype, self.origin = stage, dtype, origin
        super().__init__(stage if dtype is None else _sentence(stage, dtype, origin))


def _sentence(stage: str, dtype: torch.dtype, origin: Origin | None) -> str:
    remedy = "try full precision, or a smaller guidance scale"
    if origin is not None and origin.weight is not None:
        remedy = f"its {origin.weight} is not finite, so take another file of weights"
    found = "" if origin is None else f"{origin}; "
    return f"NaN or infinity in {stage}, in {_name(dtype)}: no picture was made of it; {found}{remedy}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def is_finite(x: Tensor) -> bool:
    return bool(torch.isfinite(x).all())


def check_finite(x: Tensor, stage: str, dtype: torch.dtype) -> None:
    if not is_finite(x):
        raise NonFiniteError(stage, dtype)


class Watch:
    """`check_finite` for the steps of a batch: on a CPU at once, elsewhere at the end, for to read a number from a GPU
    is to wait for all that it was told to do, and it idles while it is told more. at_once: everywhere."""

    def __init__(self, dtype: torch.dtype, at_once: bool = False) -> None:
        self.dtype, self.at_once = dtype, at_once
        self._seen: list[tuple[str, Tensor]] = []

    def see(self, x: Tensor, stage: str) -> None:
        self._seen.append((stage, torch.isfinite(x).all()))
        if x.is_cpu or self.at_once:
            self.report()

    def report(self) -> None:
        """NonFiniteError for the first stage that had any."""
        stages, flags = [stage for stage, _ in self._seen], [flag for _, flag in self._seen]
        self._seen.clear()
        if flags and not all(finite := torch.stack(flags).tolist()):
            raise NonFiniteError(stages[finite.index(False)], self.dtype)
