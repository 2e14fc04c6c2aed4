"""How a row is measured: sides in turns, floors from this machine's own rates, each row in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from _bench.floors import clock, count, synchronize

GB = 1e9


@dataclass(frozen=True)
class Bench:
    """What a row is told. folder: where files of weights are, and are left for the next row."""

    folder: Path
    rounds: int = 3
    tiny: bool = False  # the same layers with few channels, few steps: shows that the row runs, and nothing else
    plot: Path | None = None
    file: Path | None = None  # a checkpoint of the user's, for `load`

    @property
    def told(self) -> dict[str, str]:
        """What the figures depend on besides the machine."""
        size = {"size": "tiny: the figures say nothing"} if self.tiny else {}
        file = {"file": str(self.file)} if self.file is not None else {}
        return {"rounds": str(self.rounds)} | size | file

    def alone(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The function's result, out of a fresh process; a tiny bench saves the seconds that one takes to begin."""
        if self.tiny:
            return function(*arguments)
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            return pool.submit(function, *arguments).result()


@dataclass(frozen=True)
class Line:
    """One line of the table: ours, and the other side, in `unit`.

    value: what `must` speaks of; None is theirs / ours, above 1 where ours is less.
    floor: what the machine's rates allow at best. error: |ours - theirs| / |theirs| of the same run's outputs.
    """

    what: str
    ours: float | None = None
    theirs: float | None = None
    must: str = ""  # ">= 1.15", "<= 0.52"
    floor: float | None = None
    error: float | None = None
    unit: str = "s"
    value: float | None = None
    note: str = ""

    @property
    def shown(self) -> float | None:
        if self.value is not None or self.ours is None or self.theirs is None:
            return self.value
        return self.theirs / self.ours

    @property
    def met(self) -> bool | None:
        """Whether it shows what it must; None where it need not, or could not be measured."""
        if not self.must or self.shown is None:
            return None
        sign, wanted = self.must.split()
        return self.shown >= float(wanted) if sign == ">=" else self.shown <= float(wanted)


@dataclass(frozen=True)
class Row:
    name: str
    about: str
    measure: Callable[[Bench], Iterator[Line]]
    gpu: bool = False


ROWS: dict[str, Row] = {}


def row(name: str, about: str, gpu: bool = False) -> Callable[[Callable[[Bench], Iterator[Line]]], Any]:
    def remember(measure: Callable[[Bench], Iterator[Line]]) -> Callable[[Bench], Iterator[Line]]:
        ROWS[name] = Row(name, about, measure, gpu)
        return measure

    return remember


# --- the process -------------------------------------------------------------------------------------------------


def settle(tiny: bool = False, *, peer: bool = True) -> None:
    """What is set for the whole process, before either side is made. tiny: one thread, which waits for no other.
    peer: diffusers will be needed; it is imported here."""
    import torch

    torch.set_num_threads(1 if tiny else cores())
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    if peer and importlib.util.find_spec("diffusers") is not None:
        import diffusers

        diffusers.utils.logging.set_verbosity_error()
        diffusers.utils.logging.disable_progress_bar()


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory(kind: str) -> int:
    """Bytes of this process in memory, now (VmRSS) or at most so far (VmHWM)."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith(kind))
        return int(line.split()[1]) << 10
    import resource  # systems without /proc tell the most only

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def forget_peak() -> None:
    """From here on VmHWM is that of what follows, where the system can forget."""
    clear_refs = Path("/proc/self/clear_refs")
    if clear_refs.exists():
        clear_refs.write_text("5")


# --- turns -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Turns:
    seconds: dict[str, float]  # of each side, the median
    outputs: dict[str, Any]  # of the warm-up
    operations: dict[str, float]  # of the warm-up, where they were counted; not of what is packed or compiled


def take_turns(sides: Mapping[str, Callable[[], Any]], rounds: int, counted: str | None = None) -> Turns:
    """A B A B …, after one call of each that warms up. counted: the side whose operations are counted in that call."""
    outputs, operations = {}, {}
    for name, call in sides.items():
        if name == counted:
            outputs[name], operations[name] = count(call)
        else:
            outputs[name] = call()
        synchronize()
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, call in sides.items():
            taken[name].append(clock(call))
    return Turns({name: statistics.median(times) for name, times in taken.items()}, outputs, operations)


def error(ours: Any, theirs: Any) -> float:
    """|ours - theirs| / |theirs|."""
    assert ours.shape == theirs.shape, f"not the same work: {tuple(ours.shape)} and {tuple(theirs.shape)}"
    ours, theirs = ours.double(), theirs.double().to(ours.device)
    return float((ours - theirs).norm() / theirs.norm())
