"""Layers whose weights lie in memory as oneDNN multiplies them, which else it arranges anew in every call.

For drawing on a CPU: `pack` goes over a network that is filled, and `unpack` takes it back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldm.modules.attention import GEGLU, PointwiseConv

DTYPES = (torch.float32, torch.bfloat16)
UNCHANGED = ("none", [], "")  # a product goes through no function on its way out


class Packed(nn.Module):
    """Stands before a layer's class. In place of its parameter `weight` the layer holds the packed one.

    Where gradients are on, or numbers of another dtype come in, it computes as ever, and `weight` is a plain copy, which
    `state_dict` gets too. What moves, casts, trains or loads the layer makes it plain first.
    """

    packed: Tensor
    bias: Tensor | None

    def packing(self) -> Tensor:
        """The plain weight, packed."""
        raise NotImplementedError

    def product(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x.dtype != self.packed.dtype:
            return super().forward(x)  # type: ignore[misc]  # of the layer's class
        return self.product(x)

    @property
    def weight(self) -> Tensor:
        parameter = self._parameters.get("weight")
        return self.packed.to_dense() if parameter is None else parameter

    def pack(self) -> None:
        self.packed = self.packing()
        del self._parameters["weight"]

    def plain(self) -> nn.Module:
        """The layer itself, of its own class again."""
        weight, bias = nn.Parameter(self.weight, requires_grad=False), self._parameters.pop("bias")
        self.__class__ = PLAIN[type(self)]  # type: ignore[assignment]
        del self.packed
        self.register_parameter("weight", weight)
        self.register_parameter("bias", bias)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles, which know no packed tensors: see `__setstate__`."""
        state = self.__dict__ | {"_parameters": {"weight": self.weight, **self._parameters}}
        del state["packed"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.pack()

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.weight
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], *args: Any) -> None:
        self.plain()._load_from_state_dict(state_dict, *args)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        return self.plain()._apply(fn, recurse)

    def train(self, mode: bool = True) -> nn.Module:
        return self.plain().train() if mode else super().train(False)


class PackedRows(Packed):
    """Multiplies rows of numbers, (…, in) -> (…, out)."""

    def packing(self) -> Tensor:
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach().flatten(1))
        return packed

    def product(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, *UNCHANGED)
        return out


class PackedLinear(PackedRows, nn.Linear):
    pass


class PackedPointwiseConv(PackedRows, PointwiseConv):
    @property
    def weight(self) -> Tensor:
        return super().weight.view(self.out_channels, self.in_channels, 1, 1)


class PackedConv2d(Packed, nn.Conv2d):
    """Gives channels_last, and wants it."""

    def packing(self) -> Tensor:
        weight = self.weight.detach().contiguous(memory_format=torch.channels_last)
        packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(weight, *self.where())
        return packed

    def product(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(x, self.packed, self.bias, *self.where(), *UNCHANGED)
        return out

    def where(self) -> tuple[Any, ...]:
        return self.padding, self.stride, self.dilation, self.groups


PACKED: dict[type[nn.Module], type[Packed]] = {
    nn.Linear: PackedLinear,
    nn.Conv2d: PackedConv2d,
    PointwiseConv: PackedPointwiseConv,
}
PLAIN = {packed: plain for plain, packed in PACKED.items()}


def pack(network: nn.Module) -> None:
    """Pack every linear layer and convolution of a network on a CPU that lies in float32 or bfloat16; no other changes.

    Only layers of exactly these classes: one that a subclass changed keeps its ways.
    """
    for module in network.modules():
        if type(module) in PACKED and _is_known(module):
            module.__class__ = PACKED[type(module)]  # type: ignore[assignment]
            module.pack()


def _is_known(module: nn.Module) -> bool:
    weight = module.weight
    is_plain_padding = not isinstance(module, nn.Conv2d) or module.padding_mode == "zeros" != module.padding
    return weight.device.type == "cpu" and weight.dtype in DTYPES and is_plain_padding


def unpack(network: nn.Module) -> None:
    """Take `pack` back: every weight is a plain parameter, the same bit for bit."""
    for module in network.modules():
        if isinstance(module, Packed):
            module.plain()
