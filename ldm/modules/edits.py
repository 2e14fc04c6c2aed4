"""Edits of a network that last for a `with` block: afterwards, and after an exception, it is the very same again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from ldm.modules.attention import Attention, AttentionBlock, AttentionFunction, BasicTransformerBlock, attention
from ldm.modules.blocks import ResnetBlock, UpBlock
from ldm.modules.unet import UNet


@contextmanager
def instead(forwards: Mapping[nn.Module, Callable[..., Tensor]]) -> Iterator[None]:
    """Each module answers by that function in place of its own `forward`; hooks stay."""
    before = {module: vars(module).get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            vars(module)["forward"] = forward
        yield
    finally:
        for module, own in before.items():
            vars(module).pop("forward", None)
            if own is not None:
                vars(module)["forward"] = own


@contextmanager
def identity_attention(
    network: nn.Module, layers: Sequence[str] = ("mid_block",), rows: slice = slice(None)
) -> Iterator[None]:
    """Perturbed attention, Ahn et al. 2024, arXiv:2403.17377: in the self-attention of the chosen layers each
    place sees itself alone. The map softmax(q kᵀ / √d) becomes the identity, and the output v.

    layers: as `self_attentions`. rows: of the batch, where this holds; the others are as ever.
    """
    chosen = self_attentions(network, layers)
    before = [layer.attention for layer in chosen]
    try:
        for layer, attention in zip(chosen, before, strict=True):
            layer.attention = partial(_values, attention, rows)
        yield
    finally:
        for layer, attention in zip(chosen, before, strict=True):
            layer.attention = attention


def _values(attention: AttentionFunction, rows: slice, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """v in these rows; q, k, v (B, heads, N, d)."""
    start, stop, _ = rows.indices(len(v))
    if stop - start == len(v):
        return v
    h = attention(q, k, v)
    return torch.cat([h[:start], v[start:stop], h[stop:]])


def self_attentions(network: nn.Module, layers: Sequence[str] = ("",)) -> list[Attention]:
    """The self-attention of all modules whose dotted name is, or lies within, one of `layers`, such as mid_block or
    up_blocks.1.attentions.0; "" is the whole network. ValueError where a name has none."""
    found: dict[int, Attention] = {}
    for name in layers:
        inside = [module for path, module in network.named_modules() if _within(path, name) and _attends(module)]
        if not inside:
            tops = ", ".join(dict.fromkeys(_top(path) for path, module in network.named_modules() if _attends(module)))
            raise ValueError(f"there is no self-attention in {name!r} of this network; it is in {tops or 'nothing'}")
        for module in inside:
            layer = module.attn1 if isinstance(module, BasicTransformerBlock) else module
            assert isinstance(layer, Attention)
            found[id(layer)] = layer
    return list(found.values())


def _within(path: str, name: str) -> bool:
    return not name or f"{path}.".startswith(f"{name}.")


def _attends(module: nn.Module) -> bool:
    """To the picture itself: with `only_cross_attention` the first of a block's two does not."""
    if isinstance(module, BasicTransformerBlock):
        return not module.only_cross_attention
    return isinstance(module, AttentionBlock)


def _top(path: str) -> str:
    """down_blocks.0.attentions.1.transformer_blocks.0 → down_blocks.0.attentions.1"""
    return path.partition(".transformer_blocks")[0]


def edits_of(network: nn.Module) -> tuple[object, ...] | None:
    """What of this file holds in a network now, something that can be compared; None where there are attention
    functions or hooks of somebody else, of whom nothing is known."""
    found: list[object] = []
    for i, module in enumerate(network.modules()):
        functions: list[object] = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        functions += [module.attention] if isinstance(module, Attention) else []
        for function in functions:
            if function is attention:
                continue
            if (known := _known(function)) is None:
                return None
            found.append((i, known))
    return tuple(found)


def _known(function: object) -> object:
    """A function of this file with its arguments, as what can be compared; None for any other."""
    if function is attention:
        return "attention"
    if not isinstance(function, partial) or function.func not in (_values, _reweigh):
        return None
    arguments = [_known(one) if callable(one) else repr(one) for one in function.args]
    return None if None in arguments else (function.func.__name__, *arguments)


@contextmanager
def freeu(network: nn.Module, b1: float, b2: float, s1: float, s2: float) -> Iterator[None]:
    """FreeU, Si et al. 2023, arXiv:2309.11497: in the two deepest levels of the way up, b amplifies half the channels
    of what comes from below (`amplified`), and s damps the lowest frequencies of what comes across from the way down
    (`damped`). 1, 1, 1, 1 changes nothing. ValueError for a network that is no `UNet`.
    """
    if not isinstance(network, UNet):
        raise ValueError(f"FreeU changes the way up of a UNet, and this is a {type(network).__name__}; leave it out")
    before = network.mid_block.resnets[-1]
    with ExitStack() as hooks:
        for block, (b, s) in zip(network.up_blocks[:2], [(b1, s1), (b2, s2)][: len(network.up_blocks)], strict=True):
            assert isinstance(block, UpBlock)
            for resnet in block.resnets:  # its input: what the one before made, and a tensor of the way down
                hook = partial(_reweigh, _width(before), b, s)
                hooks.callback(resnet.register_forward_pre_hook(hook).remove)
                before = resnet
        yield


def _width(resnet: nn.Module) -> int:
    assert isinstance(resnet, ResnetBlock)
    return resnet.conv2.out_channels


def _reweigh(width: int, b: float, s: float, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A forward pre-hook of a res-block, `width` of whose input's channels come from below."""
    x, *others = inputs
    return torch.cat([amplified(x[:, :width], b), damped(x[:, width:], s)], dim=1), *others


def amplified(x: Tensor, b: float) -> Tensor:
    """Half of the channels of x (B, C, H, W) times 1, at the place where the mean over channels is least, to b, where
    it is greatest: the paper's map. (Its first code, and diffusers', has b everywhere.)"""
    if b == 1:
        return x
    mean = x.mean(dim=1, keepdim=True)  # (B, 1, H, W)
    low, high = mean.amin(dim=(2, 3), keepdim=True), mean.amax(dim=(2, 3), keepdim=True)
    factor = 1 + (b - 1) * (mean - low) / (high - low).clamp(min=torch.finfo(x.dtype).tiny)
    half = x.shape[1] // 2
    return torch.cat([x[:, :half] * factor, x[:, half:]], dim=1)


def damped(x: Tensor, s: float) -> Tensor:
    """x (B, C, H, W) with its lowest frequencies times s.

    As in the published code these are 0 and -1 along each side; as the real part is taken, each of the pairs ±1 that
    they belong to is left at (1 + s) / 2.
    """
    if s == 1:
        return x
    height, width = x.shape[2:]
    wide = x.to(torch.promote_types(x.dtype, torch.float32))  # half precision has no transform
    factor = wide.new_ones(height, width)  # of the frequencies 0, 1, …, -1
    for row in {0, height - 1}:
        for column in {0, width - 1}:
            factor[row, column] = s
    return torch.fft.ifft2(torch.fft.fft2(wide) * factor).real.to(x.dtype)
