"""How much memory a computation would take: it runs on the meta device, where tensors have sizes and no numbers."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ldm.modules.attention import Attention


class Peak(TorchDispatchMode):
    """Counts the bytes of all tensors made inside that are alive at once; `most` is the largest sum so far."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: Counter[int] = Counter()  # tensors of each storage

    def __torch_dispatch__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        arguments: Sequence[Any] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        given = {value.untyped_storage()._cdata for value in _tensors(arguments)}
        answer = function(*arguments, **(options or {}))
        for tensor in _tensors([answer]):
            key, size = tensor.untyped_storage()._cdata, tensor.untyped_storage().nbytes()
            if key not in self._known and key in given:
                continue  # a view of a weight
            self.now += 0 if self._known[key] else size
            self._known[key] += 1
            weakref.finalize(tensor, self._freed, key, size)
        self.most = max(self.most, self.now)
        return answer

    def _freed(self, key: int, size: int) -> None:
        self._known[key] -= 1
        if not self._known[key]:
            del self._known[key]
            self.now -= size


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found


def without_scores(module: nn.Module) -> None:
    """Lets attention take what a fused kernel does: its answer, and no table of scores."""
    for layer in module.modules():
        if isinstance(layer, Attention):
            layer.attention = lambda q, k, v: torch.empty_like(q)


def weight_bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in (*module.parameters(), *module.buffers()))


def free_memory(device: str) -> int | None:
    """Bytes that a job may still take on the device; None where that cannot be found out."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    if device != "cpu":
        return None
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    group = Path("/sys/fs/cgroup")  # a container's limit, which the machine's numbers do not tell of
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        lines = (group / "memory.stat").read_text().splitlines()
        cached = next(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
    except (OSError, ValueError, StopIteration):  # there is none, or it is "max"
        return free
    return max(0, min(free, limit - used + cached))
