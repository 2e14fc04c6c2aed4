"""Layers whose weights lie in memory as oneDNN multiplies them, which else it arranges anew in every call.

For drawing on a CPU: `pack` goes over a network that is filled, and `unpack` takes it back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldm.modules.attention import GEGLU, PointwiseConv

OPS = torch.ops.mkldnn
DTYPES = (torch.float32, torch.bfloat16)
UNCHANGED: tuple[Any, ...] = ("none", [], "")  # a product goes through no function on its way out
SIDE = 32  # of the input that a convolution packs for: always the same, so that the last bits of a picture are too


class Packed(nn.Module):
    """Stands before a layer's class. In place of its parameter `weight` the layer holds the packed one.

    Where gradients or autocast are on, or another dtype comes in, it computes as ever, and `weight` is a plain copy,
    which `state_dict` gets too. What moves, casts, trains or loads the layer makes it plain first.
    """

    packed: Tensor

    def packing(self) -> Tensor:
        """The plain weight, packed."""
        raise NotImplementedError

    def product(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x) if self.takes(x) else super().forward(x)  # type: ignore[misc]  # of the layer's class

    def takes(self, x: Tensor) -> bool:
        return not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or x.dtype != self.packed.dtype)

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
        self._forget(self.__dict__)
        self.__class__ = PLAIN[type(self)]  # type: ignore[assignment]
        self.register_parameter("weight", weight)
        self.register_parameter("bias", bias)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles, which know no packed tensors: see `__setstate__`."""
        state = self.__dict__ | {"_parameters": {"weight": self.weight, **self._parameters}}
        self._forget(state)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.pack()

    @staticmethod
    def _forget(state: dict[str, Any]) -> None:
        for name in ("packed", "gate"):
            state.pop(name, None)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.weight
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], *args: Any) -> None:
        self.plain()._load_from_state_dict(state_dict, *args)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        return self.plain()._apply(fn, recurse)

    def train(self, mode: bool = True) -> Any:
        return self.plain().train() if mode else super().train(False)


class PackedRows(Packed):
    """Multiplies rows of numbers, (…, in) -> (…, out)."""

    def packing(self) -> Tensor:
        packed: Tensor = OPS._reorder_linear_weight(self.weight.detach().flatten(1))
        return packed

    def product(self, x: Tensor) -> Tensor:
        out: Tensor = OPS._linear_pointwise(x, self.packed, self.bias, *UNCHANGED)
        return out


class PackedLinear(PackedRows, nn.Linear):  # type: ignore[override]  # a weight that is not there to be set
    pass


class PackedPointwiseConv(PackedRows, PointwiseConv):
    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return super().weight.view(self.out_channels, self.in_channels, 1, 1)


class PackedHalves(PackedRows, nn.Linear):
    """The projection of a GEGLU as two, so that neither of its halves is written down but as what becomes of it."""

    gate: Tensor

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        parameter = self._parameters.get("weight")
        return torch.cat([self.packed.to_dense(), self.gate.to_dense()]) if parameter is None else parameter

    def packing(self) -> Tensor:
        first, second = self.weight.detach().chunk(2)
        self.gate = OPS._reorder_linear_weight(second.contiguous())
        packed: Tensor = OPS._reorder_linear_weight(first.contiguous())
        return packed

    def product(self, x: Tensor) -> Tensor:
        halves = zip((self.packed, self.gate), self.biases(), strict=True)
        return torch.cat([OPS._linear_pointwise(x, half, bias, *UNCHANGED) for half, bias in halves], dim=-1)

    def gated(self, x: Tensor) -> Tensor:
        first, second = self.biases()
        gate = OPS._linear_pointwise(x, self.gate, second, "gelu", [], "none")  # the exact gelu, not that by tanh
        out: Tensor = OPS._linear_pointwise.binary(x, gate, self.packed, first, "mul")
        return out

    def biases(self) -> tuple[Tensor | None, ...]:
        return (None, None) if self.bias is None else self.bias.chunk(2)


class PackedGEGLU(GEGLU):
    def forward(self, x: Tensor) -> Tensor:
        proj: nn.Module = self.proj
        return proj.gated(x) if isinstance(proj, PackedHalves) and proj.takes(x) else super().forward(x)


class PackedConv2d(Packed, nn.Conv2d):  # type: ignore[override]
    """Gives channels_last, and wants it."""

    def packing(self) -> Tensor:
        weight = self.weight.detach().contiguous(memory_format=torch.channels_last)
        shape = (1, self.in_channels, SIDE, SIDE)
        packed: Tensor = OPS._reorder_convolution_weight(weight, *self.where(), shape)
        return packed

    def product(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        out: Tensor = OPS._convolution_pointwise(x, self.packed, self.bias, *self.where(), *UNCHANGED)
        return out

    def where(self) -> tuple[Any, ...]:
        return self.padding, self.stride, self.dilation, self.groups


PACKED: dict[type[nn.Module], type[Packed]] = {
    nn.Linear: PackedLinear,
    nn.Conv2d: PackedConv2d,
    PointwiseConv: PackedPointwiseConv,
}
PLAIN = {packed: plain for plain, packed in PACKED.items()} | {PackedHalves: nn.Linear}


def pack(network: nn.Module) -> None:
    """Pack every linear layer and convolution of a network on a CPU that lies in float32 or bfloat16; no other changes.

    Only layers of exactly these classes: one that a subclass changed keeps its ways.
    """
    for module in network.modules():
        if isinstance(module, GEGLU) and type(module.proj) is nn.Linear:
            module.__class__ = PackedGEGLU
            _pack(module.proj, PackedHalves)
        elif type(module) in PACKED:
            _pack(module, PACKED[type(module)])


def _pack(module: nn.Module, kind: type[Packed]) -> None:
    weight = module.weight
    pads_otherwise = isinstance(module, nn.Conv2d) and (
        module.padding_mode != "zeros" or isinstance(module.padding, str)
    )
    if weight.device.type == "cpu" and _is_packed_here(weight.dtype) and not pads_otherwise:
        module.__class__ = kind  # type: ignore[assignment]
        assert isinstance(module, Packed)
        module.pack()


def _is_packed_here(dtype: torch.dtype) -> bool:
    """oneDNN packs bfloat16 on some processors only; on the others layers stay plain."""
    return dtype in DTYPES and (dtype != torch.bfloat16 or bool(OPS._is_mkldnn_bf16_supported()))


def unpack(network: nn.Module) -> None:
    """Take `pack` back: every weight is a plain parameter, the same bit for bit."""
    for module in network.modules():
        if isinstance(module, Packed):
            module.plain()
        elif isinstance(module, PackedGEGLU):
            module.__class__ = GEGLU  # type: ignore[assignment]
