"""What layers make of the condition alone, made once: cross-attention's keys and values, SDXL's added embedding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from ldm.modules.attention import BasicTransformerBlock
from ldm.modules.edits import instead
from ldm.modules.unet import UNet


class _Made(NamedTuple):
    answer: Tensor
    version: int | None  # of the tensor that it was made of, which a write in place changes
    forward: Callable[[Tensor], Tensor]  # what made it


class Constants:
    """An edit of a network, like those of `edits`: while it lasts, each layer that reads nothing but the condition
    answers the very tensor that it was given before with the very answer that it gave.

    Which tensor, not which numbers: a context is the same in every step only where it is the same object. Answers live
    as long as what they were made of. Where gradients are wanted nothing is kept. Weights must not change meanwhile.
    """

    def __init__(self, network: nn.Module) -> None:
        self.layers = list(_layers_of_the_condition(network))
        self._made = WeakTensorKeyDictionary()  # tensor → {layer: what it made of it}

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with instead({layer: partial(self._answer, layer, layer.forward) for layer in self.layers}):
            yield

    def _answer(self, layer: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return forward(x)
        made: dict[nn.Module, _Made] = self._made.setdefault(x, {})
        version = None if x.is_inference() else x._version
        if layer not in made or made[layer].version != version:
            made[layer] = _Made(forward(x), version, forward)
        return made[layer].answer

    def refresh(self, x: Tensor) -> None:
        """Every answer to x again and in place, for those who read it where it is: x has other numbers now."""
        for made in self._made.get(x, {}).values():
            made.answer.copy_(made.forward(x))


def _layers_of_the_condition(network: nn.Module) -> Iterator[nn.Module]:
    if not isinstance(network, UNet):
        return
    yield from (layer for layer in (network.class_embedding, network.add_embedding) if layer is not None)
    for block in network.modules():
        if network.context_dim is not None and isinstance(block, BasicTransformerBlock) and not _is_compiled(block):
            for attention in [block.attn2] + [block.attn1] * block.only_cross_attention:
                yield from (attention.to_k, attention.to_v)


def _is_compiled(module: nn.Module) -> bool:
    """Then it is one piece, in which nothing can be put in another's place."""
    return module._compiled_call_impl is not None
