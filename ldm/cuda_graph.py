"""A network's call as a CUDA graph: recorded at the first step and replayed at the others, as one launch and not many.

At batch 1 a GPU finishes the hundreds of kernels of a call faster than they can be launched one by one. A graph runs
the same kernels, so pictures are the same. It reads and writes in fixed places: most of this file is about them.
https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from ldm.modules.constants import Constants
from ldm.modules.edits import edits_of, instead

MOST_GRAPHS = 8  # of a network: shapes of its inputs, and edits, that are remembered
WORTH = 8  # replays for each recording, on average, that make another worthwhile when one must go for it
WARM_UP = 2  # calls before a graph is recorded, in which libraries choose their kernels and allocate what they need

Forward = Callable[..., Tensor]


class Graph(Protocol):
    """What records a function once, and does the same with the same memory again."""

    def record(self, function: Callable[[], Tensor]) -> Tensor:
        """The tensor in which each replay leaves its result; it holds none yet."""

    def replay(self) -> None: ...


class CudaGraph:
    """pool: memory that graphs share, for they never run at once and leave nothing there but their results.
    device: the network's, which need not be the current one, and what is launched on another is in no graph."""

    def __init__(self, pool: Any, device: torch.device) -> None:
        self.graph, self.pool, self.device = torch.cuda.CUDAGraph(), pool, device

    def record(self, function: Callable[[], Tensor]) -> Tensor:
        with torch.cuda.device(self.device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    function()
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(self.graph, pool=self.pool, stream=side, capture_error_mode="thread_local"):
                return function()

    def replay(self) -> None:
        with torch.cuda.device(self.device):
            self.graph.replay()


class Recording:
    """`function` of inputs of one shape, recorded. Its first two inputs are new in each call, the condition lasts."""

    def __init__(
        self, function: Forward, inputs: tuple[Tensor | None, ...], graph: Graph, constants: Constants
    ) -> None:
        self.graph, self.constants = graph, constants
        self.given = list(inputs)
        self.places = [None if value is None else value.clone() for value in inputs]
        self.output = graph.record(lambda: function(*self.places))

    def __call__(self, inputs: tuple[Tensor | None, ...]) -> Tensor:
        for i, (place, value) in enumerate(zip(self.places, inputs, strict=True)):
            if place is None or value is None or (i >= 2 and value is self.given[i]):
                continue
            self.given[i] = value
            place.copy_(value)
            self.constants.refresh(place)
        self.graph.replay()
        return self.output.clone()  # the next replay writes there again


class Recorder:
    """An edit of a network, like those of `edits`: while it lasts, the network replays what it did before.

    Only under inference mode, without autocast (which casts weights to memory that it frees), and only as the network
    is edited by our own functions, of which each has graphs of its own. Other attention functions and hooks are
    somebody who watches: they are to be called, so then nothing is replayed, and neither after a recording that failed.
    """

    def __init__(self, network: nn.Module, new_graph: Callable[[], Graph]) -> None:
        self.network, self.new_graph = ref(network), new_graph  # weak, for it is kept as long as the network is
        self.constants, self.weights = Constants(network), places_of(network)
        self.recordings: OrderedDict[object, Recording] = OrderedDict()
        self.recorded, self.replayed, self.failed = 0, 0, False

    @contextmanager
    def __call__(self) -> Iterator[None]:
        network = self.network()
        assert network is not None
        with self.constants(), instead({network: partial(self._answer, network, network.forward)}):
            yield

    def _answer(
        self,
        network: nn.Module,
        forward: Forward,
        x: Tensor,
        t: Tensor,
        context: Tensor | None = None,
        y: Tensor | None = None,
    ) -> Tensor:
        inputs, edits = (x, t, context, y), edits_of(network)
        plain = not torch.is_inference_mode_enabled() or torch.is_autocast_enabled(x.device.type)
        if self.failed or plain or edits is None or network.training:
            return forward(*inputs)
        key = (edits, *((None if value is None else (value.shape, value.dtype)) for value in inputs))
        if key not in self.recordings and not self._record(key, forward, inputs):
            return forward(*inputs)
        self.replayed += 1
        self.recordings.move_to_end(key)
        return self.recordings[key](inputs)

    def _record(self, key: object, forward: Forward, inputs: tuple[Tensor | None, ...]) -> bool:
        """Whether it could be done, and was worthwhile."""
        if len(self.recordings) >= MOST_GRAPHS:
            if self.replayed < WORTH * self.recorded:
                return False
            self.recordings.popitem(last=False)
        try:
            self.recordings[key] = Recording(forward, inputs, self.new_graph(), self.constants)
            self.recorded += 1
        except RuntimeError as error:
            self.failed = True
            reason = str(error).partition("\n")[0]
            logging.getLogger(__name__).warning("no CUDA graph, so steps may be slower: %s", reason)
        return not self.failed


_RECORDERS: WeakKeyDictionary[nn.Module, Recorder] = WeakKeyDictionary()


def constants_of(network: nn.Module) -> Constants | Recorder:
    """The edit that spares a network what it has done before: on a CUDA device all its launches, else its constants."""
    weight = next(network.parameters())
    if not weight.is_cuda:
        return Constants(network)
    recorder = _RECORDERS.get(network)
    if recorder is None or recorder.weights != places_of(network):  # graphs outlast a job, not a move of the weights
        recorder = Recorder(network, partial(CudaGraph, torch.cuda.graph_pool_handle(), weight.device))
        _RECORDERS[network] = recorder
    return recorder


def forget(network: nn.Module) -> None:
    """Gives the memory of its graphs back."""
    _RECORDERS.pop(network, None)


def places_of(network: nn.Module) -> tuple[int, ...]:
    """Where its weights are: a graph reads them there."""
    return tuple(tensor.data_ptr() for tensor in (*network.parameters(), *network.buffers()))
