"""--profile FOLDER: where time and memory go. A trace, a table by module, and a picture of the memory over time."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _plot import timeline
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._pytree import tree_map_only

from ldm.files import atomic, atomic_folder, write_text
from ldm.modules.packed import unpack

DEPTH = 4  # how many names deep modules are told apart: unet.down_blocks.0.attentions.1
SEEN = ("cpu_op", "user_annotation", "gpu_user_annotation", "kernel", "cpu_instant_event")


@dataclass
class Row:
    """One module in all of its calls, the modules within it included."""

    name: str
    calls: int
    seconds: float
    memory: int  # bytes that were the most at once, over what there was when it was called
    flops: int | None  # multiplications and additions of matrices; None where they cannot be counted

    def floor(self, rate: float) -> float | None:
        """The share of the time that the arithmetic alone would have taken, at this rate of FLOPs a second."""
        return None if self.flops is None or not self.seconds else self.flops / rate / self.seconds


Key = tuple[str, str]  # a module that no other called, and the shapes that it was called with


@dataclass
class Watch:
    """Names the calls of modules in the trace, and remembers with which shapes the outermost were called."""

    modules: Mapping[str, nn.Module]
    asked: Counter[Key] = field(default_factory=Counter)
    shapes: dict[Key, tuple[Any, Any]] = field(default_factory=dict)
    _open: list[record_function] = field(default_factory=list)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with ExitStack() as hooks:
            for name, module in self.modules.items():
                enter = module.register_forward_pre_hook(self._enter(name), with_kwargs=True, prepend=True)
                leave = module.register_forward_hook(self._leave, always_call=True)  # after an exception too
                hooks.callback(enter.remove)
                hooks.callback(leave.remove)
            yield

    def _enter(self, name: str) -> Any:
        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            if not self._open:
                shapes = tree_map_only(torch.Tensor, lambda x: torch.empty_like(x, device="meta"), (args, kwargs))
                key = name, str(tree_map_only(torch.Tensor, lambda x: (*x.shape, str(x.dtype)), shapes))
                self.asked[key] += 1
                self.shapes.setdefault(key, shapes)
            self._open.append(record_function(name))
            self._open[-1].__enter__()

        return enter

    def _leave(self, *_: Any) -> None:
        self._open.pop().__exit__(None, None, None)


def watched(networks: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The modules of a model that are told apart, by name; each once, under the first of its names."""
    found: dict[int, tuple[str, nn.Module]] = {}
    for top, network in networks.items():
        for path, module in network.named_modules(prefix=top):
            if path.count(".") <= DEPTH and not isinstance(module, nn.ModuleList):
                found.setdefault(id(module), (path, module))
    return dict(found.values())


@contextmanager
def profiled(folder: str | None, networks: Mapping[str, nn.Module], device: str, dtype: torch.dtype) -> Iterator[None]:
    """What is computed inside is written down in a folder, unless that is None. The block takes longer for it."""
    if folder is None:
        yield
        return
    watch = Watch(watched(networks))
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities, profile_memory=True) as profiler, watch():
        yield
        if device == "cuda":
            torch.cuda.synchronize()
    with atomic_folder(Path(folder)) as part:
        profiler.export_chrome_trace(str(part / "trace.json"))
        trace = read_trace(json.loads((part / "trace.json").read_text()), set(watch.modules), device)
        rate = matmul_rate(device, dtype)
        rows = table_rows(trace, flops(watch, device))
        write_text(part / "modules.md", table(rows, rate, f"{device}, {str(dtype).removeprefix('torch.')}") + "\n")
        outermost = {name for name, _ in watch.asked}
        spans = [(name, *span) for name in outermost for span in trace.ranges.get(name, [])]
        with atomic(part / "memory.png") as file:
            timeline(trace.times, trace.bytes, spans).save(file, format="PNG")
    print(f"profile: {folder}/trace.json (chrome://tracing, ui.perfetto.dev), modules.md, memory.png")


# --- the trace ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trace:
    ranges: dict[str, list[tuple[float, float]]]  # of each module's calls, in seconds from the beginning
    on_device: dict[str, float]  # and the seconds that its kernels took, on a GPU
    times: np.ndarray[Any, Any]  # when memory was taken or given back, rising
    bytes: np.ndarray[Any, Any]  # and how much was held from then on, beyond what there was at the beginning


def read_trace(tree: Mapping[str, Any], names: set[str], device: str) -> Trace:
    """Of the profiler's chrome JSON, in which times are microseconds."""
    events = [event for event in tree["traceEvents"] if event.get("cat") in SEEN]
    start = min((float(event["ts"]) for event in events), default=0.0)
    ranges: dict[str, list[tuple[float, float]]] = {}
    on_device: Counter[str] = Counter()
    taken: list[tuple[float, int]] = []
    for event in events:
        name, at = event["name"], (float(event["ts"]) - start) / 1e6
        if name == "[memory]" and (event["args"]["Device Type"] == 0) == (device != "cuda"):
            taken.append((at, int(event["args"]["Bytes"])))
        elif name in names and event["cat"] == "user_annotation":
            ranges.setdefault(name, []).append((at, at + float(event["dur"]) / 1e6))
        elif name in names and event["cat"] == "gpu_user_annotation":
            on_device[name] += float(event["dur"]) / 1e6  # type: ignore[assignment]
    taken.sort(key=lambda one: one[0])
    times, sizes = np.array([t for t, _ in taken]), np.array([size for _, size in taken], dtype=np.int64)
    return Trace(ranges, dict(on_device), times, np.cumsum(sizes))


def table_rows(trace: Trace, counted: Mapping[str, int | None]) -> list[Row]:
    """In the order in which the modules were first called."""
    rows = []
    for name, ranges in sorted(trace.ranges.items(), key=lambda one: one[1][0]):
        seconds = trace.on_device.get(name, sum(end - begin for begin, end in ranges))
        memory = max(_held(trace, begin, end) for begin, end in ranges)
        rows.append(Row(name, len(ranges), seconds, memory, counted.get(name)))
    return rows


def _held(trace: Trace, begin: float, end: float) -> int:
    first, last = np.searchsorted(trace.times, (begin, end))
    if first == last:
        return 0
    before = int(trace.bytes[first - 1]) if first else 0
    return max(0, int(trace.bytes[first:last].max()) - before)


# --- the floor ---------------------------------------------------------------------------------------------------


def flops(watch: Watch, device: str) -> dict[str, int | None]:
    """Of each module in all of its calls, counted by torch on tensors without numbers; None where it cannot.

    It does not know packed weights' products: networks are unpacked, since they have done their work.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    total: dict[str, int | None] = {}
    for key, calls in watch.asked.items():
        name, module = key[0], watch.modules[key[0]]
        unpack(module)
        try:
            with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter, torch.no_grad():
                args, kwargs = tree_map_only(
                    torch.Tensor, lambda x: torch.empty_like(x, device=device), watch.shapes[key]
                )
                module(*args, **kwargs)
        except Exception:  # whatever a network does that knows no tensors without numbers
            total[name] = None
            continue
        for path, counts in counter.get_flop_counts().items():
            inner = name + path.removeprefix(type(module).__name__)
            if path.startswith(type(module).__name__):
                total[inner] = (total.get(inner) or 0) + calls * sum(counts.values())
    return total


def matmul_rate(device: str, dtype: torch.dtype, rounds: int = 5) -> float:
    """FLOPs a second of a large matrix product here: what nothing that consists of them can be faster than."""
    side = 8192 if device == "cuda" else 1024
    a = torch.randn(side, side).to(device, dtype)
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def table(rows: Sequence[Row], rate: float, where: str) -> str:
    names = {row.name for row in rows}
    whole = sum(row.seconds for row in rows if not _above(row.name) & names) or 1.0
    lines = [
        f"{where}. A large matrix product runs at {rate / 1e9:.1f} GFLOP/s; `floor` is the share of a module's time",
        "that its products alone would have taken at this rate. Modules within a module are counted in it, too.",
        "",
        "| module | calls | seconds | % | memory, MB | GFLOP | floor |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        floor = row.floor(rate)
        counted = "" if row.flops is None else f"{row.flops / 1e9:.2f}"
        numbers = (
            f"{row.calls} | {row.seconds:.4f} | {100 * row.seconds / whole:.1f} | {row.memory / 1e6:.1f} | {counted}"
        )
        lines.append(f"| {row.name} | {numbers} | {'' if floor is None else f'{floor:.0%}'} |")
    return "\n".join(lines)


def _above(name: str) -> set[str]:
    """What a module is in: of a.b.c, a.b and a."""
    parts = name.split(".")
    return {".".join(parts[:i]) for i in range(1, len(parts))}
