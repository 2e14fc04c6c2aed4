"""DeepCache, Ma et al. 2023, arXiv:2312.00858: what the deep levels of a UNet make changes little from step to step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from ldm.modules.edits import edits_of, instead
from ldm.modules.unet import UNet

Answers = dict[nn.Module, Any]  # of each deep block, what it answered last


class DeepCache:
    """An edit of a network, like those of `edits`: of `every` calls one is whole, and in the others all but the first
    level answers what it answered then. Approximate; with `every` 1 it is the network itself, bit for bit.

    Calls are counted for each condition (the very tensor), shape of x and edit by itself, so what one step asks in
    several calls is kept apart; what is kept lives as long as the condition. ValueError for what is no `UNet`.
    """

    def __init__(self, network: nn.Module, every: int) -> None:
        if not isinstance(network, UNet):
            raise ValueError(f"deep_cache skips levels of a UNet, and this is a {type(network).__name__}; leave it out")
        self.network, self.every = network, every
        self.deep: list[nn.Module] = [*network.down_blocks[1:], network.mid_block, *network.up_blocks[:-1]]
        self._unconditional = torch.empty(0)  # stands for the condition where there is none
        self._kept = WeakTensorKeyDictionary()  # condition → {shape and edits: (calls so far, answers)}

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with instead({self.network: partial(self._answer, self.network.forward)}):
            yield

    def _answer(
        self,
        forward: Callable[..., Tensor],
        x: Tensor,
        t: Tensor,
        context: Tensor | None = None,
        y: Tensor | None = None,
    ) -> Tensor:
        condition = next((one for one in (context, y) if one is not None), self._unconditional)
        kept: dict[object, tuple[int, Answers]] = self._kept.setdefault(condition, {})
        key = (x.shape, edits_of(self.network))
        calls, answers = kept.get(key, (0, {}))
        is_whole = calls % self.every == 0
        kept[key] = calls + 1, answers
        change = _remembering if is_whole else _recalling
        with instead({block: partial(change, answers, block, block.forward) for block in self.deep}):
            return forward(x, t, context=context, y=y)


def _remembering(answers: Answers, block: nn.Module, forward: Callable[..., Any], *inputs: Any) -> Any:
    answers[block] = forward(*inputs)
    return answers[block]


def _recalling(answers: Answers, block: nn.Module, forward: Callable[..., Any], *inputs: Any) -> Any:
    return answers[block]
