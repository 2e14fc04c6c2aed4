"""The row of loading: seconds, and peak memory over the file's size."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _bench.harness import Bench, Line, memory, row, settle
from _bench.weights import Checkpoint, checkpoint, described


@row("load", "SD 1, fp16 file, read from the disk: in its own dtype, and cast to float32")
def load(bench: Bench) -> Iterator[Line]:
    """Each loading in a process of its own, in rounds, of which the fastest counts; imports do not.

    What is read is read from the disk, as far as the system drops a file from its cache when asked to.
    """
    file = checkpoint(bench, "sd-v1") if bench.file is None else described(bench, bench.file)
    size = file.file.stat().st_size
    for dtype, must in (("float16", ">= 1.0"), ("float32", ">= 1.3")):
        rounds = [[bench.alone(loading, way, file, dtype) for way in WAYS] for _ in range(bench.rounds)]
        ours, theirs, least = (min(of_one, key=lambda one: one.seconds) for of_one in zip(*rounds, strict=True))
        other = None if theirs.fault else theirs.seconds
        yield Line(f"to {dtype}, from_single_file", ours.seconds, other, must, least.seconds, note=theirs.fault)
        share = ours.seconds / least.seconds
        yield Line("its time over that of reading", share, must="<= 1.5", unit="x", value=share)
        if dtype == "float16":
            peaks = ours.peak / size, None if theirs.fault else theirs.peak / size
            yield Line("its peak memory over the file's size", *peaks, "<= 1.15", unit="x", value=peaks[0])


@dataclass(frozen=True)
class Loaded:
    seconds: float  # until every weight is in memory
    peak: int  # bytes, over what imports took
    fault: str = ""  # of another library


def loading(way: str, file: Checkpoint, dtype: str) -> Loaded:
    import torch

    settle()
    try:
        load = WAYS[way](file, getattr(torch, dtype))
        evict(file.file)
        before, start = memory("VmRSS"), time.perf_counter()
        touch(load())
        return Loaded(time.perf_counter() - start, memory("VmHWM") - before)
    except Exception as error:
        if way == "ours":
            raise
        return Loaded(0.0, 0, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


def with_ldm(file: Checkpoint, dtype: Any) -> Callable[[], list[Any]]:
    import omegaconf  # noqa: F401  (what it would import while loading)

    import ldm

    load = ldm.load
    return lambda: [load(file.file, config=file.tree, dtype=dtype)]


def with_diffusers(file: Checkpoint, dtype: Any) -> Callable[[], list[Any]]:
    import torch
    from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401  (what it would import while loading)

    def load() -> list[Any]:
        parts = file.theirs_from_file(dtype).components.values()
        return [part for part in parts if isinstance(part, torch.nn.Module)]

    return load


def reading_alone(file: Checkpoint, dtype: Any) -> Callable[[], list[Any]]:
    return lambda: [reading(file.file)][:0]


WAYS: dict[str, Callable[[Checkpoint, Any], Callable[[], list[Any]]]] = {
    "ours": with_ldm,
    "theirs": with_diffusers,
    "reading": reading_alone,
}


def reading(path: Path) -> float:
    """Seconds in which the file is read, and nothing made of it."""
    start, buffer = time.perf_counter(), bytearray(1 << 22)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - start


def touch(modules: Sequence[Any]) -> None:
    """Read something of every page, since a mapped file is in memory only where it was looked at."""
    for module in modules:
        for parameter in module.parameters():
            parameter.detach().flatten()[::1024].sum()


def evict(path: Path) -> None:
    """Ask the system to forget what it knows of the file."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
