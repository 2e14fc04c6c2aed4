"""Where NaN or infinity began: what failed is done once more, with hooks on every module. Nothing is paid before."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ldm.finite import NonFiniteError, Origin, is_finite
from ldm.models.diffusion.step import Denoise
from ldm.models.latent_diffusion import LatentDiffusion

Tell = Callable[[str], object]
"""Hears, in a sentence, of what was done in another way than it was asked for."""
HALVES = (torch.float16, torch.bfloat16)


class Asked:
    """Remembers what a denoiser was asked in the step under way: a latent or a few, and no copies."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, Tensor]] = []  # (x, sigma) of each

    def remembering(self, denoise: Denoise) -> Denoise:
        def remembered(x: Tensor, sigma: Tensor) -> Tensor:
            self.calls.append((x, sigma))
            return denoise(x, sigma)

        return remembered

    @property
    def began_well(self) -> bool:
        """Whether these are the calls of the step that went wrong: of a later one, x is not finite to begin with."""
        return bool(self.calls) and is_finite(self.calls[0][0])


class Tracer:
    """Hooks on all modules; `origin` is where the first output, or first input, was not finite. It waits for a GPU."""

    def __init__(self, networks: Mapping[str, nn.Module | None]) -> None:
        """networks: with the prefix of their modules' names in what is found; None is skipped."""
        self.networks = {prefix: network for prefix, network in networks.items() if network is not None}
        self.origin: Origin | None = None
        self.largest, self.dtype = 0.0, torch.float32

    @contextmanager
    def __call__(self) -> Iterator[Tracer]:
        hooks = []
        try:
            for prefix, network in self.networks.items():
                for name, module in network.named_modules(prefix=prefix):
                    hooks.append(module.register_forward_pre_hook(self._enter(name)))
                    hooks.append(module.register_forward_hook(self._leave(name)))
            yield self
        finally:
            for hook in hooks:
                hook.remove()

    def _enter(self, name: str) -> Callable[[nn.Module, Any], None]:
        def enter(module: nn.Module, args: Any) -> None:
            self._look(args[:1], f"the input of {_named(name, module)}", None)  # masks, of -inf, come later

        return enter

    def _leave(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def leave(module: nn.Module, args: Any, output: Any) -> None:
            self._look(output, _named(name, module), module)

        return leave

    def _look(self, values: Any, place: str, module: nn.Module | None) -> None:
        if self.origin is not None:
            return
        for x in tree_leaves(values):
            if not isinstance(x, Tensor) or not x.is_floating_point() or not x.numel():
                continue
            if not is_finite(x):
                weight = None if module is None else _broken_weight(module)
                self.origin = Origin(place, x.dtype, self.largest, weight=weight)
                return
            self.largest, self.dtype = max(self.largest, float(x.detach().abs().max())), x.dtype


def _named(name: str, module: nn.Module) -> str:
    return f"{name or 'the model'} ({type(module).__name__})"


def _broken_weight(module: nn.Module) -> str | None:
    state = module.state_dict()
    return next((name for name, t in state.items() if t.is_floating_point() and not is_finite(t)), None)


def origin_of_step(
    networks: Mapping[str, nn.Module | None], make: Callable[[], Denoise], calls: Sequence[tuple[Tensor, Tensor]]
) -> Origin:
    """The origin in a step whose end is not finite. make: the denoiser of it, and the reading of its prompts anew."""
    with Tracer(networks)() as tracer:
        denoise = make()
        if tracer.origin is not None:
            return tracer.origin
        for x, sigma in calls:
            x0 = denoise(x, sigma)
            level = float(sigma.max())
            if tracer.origin is not None:
                return replace(tracer.origin, sigma=level)
            if not is_finite(x0):
                return Origin("guidance, of finite answers", x0.dtype, tracer.largest, level)
    x, sigma = calls[-1]
    return Origin("the sampler, of finite estimates", x.dtype, tracer.largest, float(sigma.max()))


def autoencoded(model: LatentDiffusion, call: Callable[[], Tensor], stage: str, tell: Tell) -> Tensor:
    """What the autoencoder answers in `call`: once more in float32 where it was not finite in half precision.

    bfloat16 would reach as far as float32, but it has three digits fewer than float16, and shows them in the picture.
    NonFiniteError, with its origin, where that does not help.
    """
    x = call()
    if is_finite(x):
        return x
    dtype = x.dtype
    if dtype in HALVES:
        with in_float32(model):
            again = call()
        if is_finite(again):
            tell(f"NaN or infinity in the autoencoder in {str(dtype).removeprefix('torch.')}: done again in float32")
            return again
    with Tracer({"autoencoder": model.autoencoder})() as tracer:
        call()
    raise NonFiniteError(stage, dtype, tracer.origin)


@contextmanager
def in_float32(model: LatentDiffusion) -> Iterator[None]:
    """A copy of the autoencoder in float32 stands in its place."""
    own = model.autoencoder
    model.autoencoder = copy.deepcopy(own).float()
    try:
        yield
    finally:
        model.autoencoder = own


def telling(notice: Tell | None) -> Tell:
    """Each sentence once; to the log, unless somebody listens."""
    told: set[str] = set()

    def tell(text: str) -> None:
        if text not in told:
            told.add(text)
            (logging.getLogger("ldm").warning if notice is None else notice)(text)

    return tell
