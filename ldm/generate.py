"""The loop that draws: items in batches, through sampler and autoencoder, to pictures one by one.

Progress bars, previews, files and devices belong to the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Lock, RLock
from weakref import WeakKeyDictionary

import torch
from PIL import Image
from torch import Tensor

from ldm import images
from ldm.finite import NonFiniteError, Origin, Watch
from ldm.hints import Hints, check_concat
from ldm.items import Item
from ldm.memory import free_memory, halving, pixels_of
from ldm.models.diffusion.step import Step
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.provenance import Asked, Tell, origin_of_step, telling
from ldm.refiner import Refiner
from ldm.sampling import NOTHING, Readers, led, sample
from ldm.settings import Settings


@dataclass(frozen=True)
class Progress:
    """What `on_step` hears after each step of a batch."""

    step: Step  # of the batch: `x` and `x0` are (B, C, h, w)
    steps: int  # how many this batch takes
    batch: tuple[Item, ...]
    done: int  # pictures finished before this batch
    total: int


@dataclass(frozen=True)
class Result:
    """A finished picture, and what it takes, besides the model and the hints, to make its every bit again."""

    image: Image.Image
    settings: Settings
    batch: tuple[Item, ...]  # drawn together: in other company the last bits of a float may differ
    index: int  # place in the batch

    @property
    def item(self) -> Item:
        return self.batch[self.index]

    @property
    def seed(self) -> int:
        return self.item.seed


OnStep = Callable[[Progress], object]

_MAKING = Lock()
_TURNS: WeakKeyDictionary[LatentDiffusion, AbstractContextManager[object]] = WeakKeyDictionary()


def generate(
    model: LatentDiffusion,
    items: Sequence[Item],
    settings: Settings,
    hints: Hints = NOTHING,
    *,
    batch_size: int = 4,
    on_step: OnStep | None = None,
    refiner: Refiner | None = None,
    autoguide: LatentDiffusion | None = None,
    notice: Tell | None = None,
) -> Iterator[Result]:
    """Draws `items`, `batch_size` at a time (or what `Settings.at_once` says), each with its own prompts and seed.
    ValueError at once for what does not go together; NonFiniteError on the way, never a black picture.

    Threads may share a model: they take turns, a batch each.

    Where memory runs out, a batch is drawn in halves, and at last a picture decoded in tiles: the same pictures but for
    the last bits of floats, or for the tiles. NotEnoughMemoryError where that does not help.
    autoguide: a worse model, to lead away from as the settings' guidance says.
    notice: hears of what was done in another way than asked for, a sentence; None leaves that to the log of `ldm`.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; draw at least 1 picture at a time")
    check_concat(model, hints)
    if settings.deep_cache > 1 and hints.tiles is not None:  # which are many calls of one step
        raise ValueError(
            f"deep_cache is {settings.deep_cache}, but the picture is drawn in tiles; leave one of them out"
        )
    if autoguide is not None:
        check_concat(autoguide, hints)
    return _drawn(model, items, settings, hints, batch_size, on_step, refiner, autoguide, telling(notice))


@torch.inference_mode()
def _drawn(
    model: LatentDiffusion,
    items: Sequence[Item],
    settings: Settings,
    hints: Hints,
    batch_size: int,
    on_step: OnStep | None,
    refiner: Refiner | None,
    autoguide: LatentDiffusion | None,
    tell: Tell,
) -> Iterator[Result]:
    readers: Readers = {}
    steps, used = settings.sampled_steps, (model, None if refiner is None else refiner.model, autoguide)

    def draw(batch: tuple[Item, ...], done: int) -> Tensor:
        heard = None if on_step is None else lambda step: on_step(Progress(step, steps, batch, done, len(items)))
        with turn(*used):
            return _latents(model, batch, settings, hints, (refiner, autoguide, readers), heard)

    for batch, latents in halving(items, settings.at_once(batch_size), draw, partial(free_memory, *used), tell):
        for index, item in enumerate(batch):  # one by one: less memory, and the first is saved while the others wait
            stage = f"the autoencoder's decoder of seed {item.seed}"
            with turn(model):
                pixels = pixels_of(model, latents[index : index + 1], hints.tiles, stage, tell)  # (1, 3, H, W)
            (picture,) = images.to_images(pixels)
            yield Result(picture if hints.finish is None else hints.finish(picture), settings, batch, index)


@contextmanager
def turn(*models: LatentDiffusion | None) -> Iterator[None]:
    """The caller's turn with these models, for which other threads wait: whoever draws edits the networks meanwhile
    (`modules.edits`), and of two at once the later would put back what the earlier has put in."""
    with _MAKING:
        locks = {id(model): _TURNS.setdefault(model, RLock()) for model in models if model is not None}
    with ExitStack() as held:
        for _, lock in sorted(locks.items()):  # in one order, or two threads could each wait for the other
            held.enter_context(lock)
        yield


Others = tuple[Refiner | None, LatentDiffusion | None, Readers]
"""Who draws along, and what was read: as `sample` takes them."""


def _latents(
    model: LatentDiffusion,
    batch: tuple[Item, ...],
    settings: Settings,
    hints: Hints,
    others: Others,
    heard: Callable[[Step], object] | None,
    at_once: bool = False,
) -> Tensor:
    """What the steps of a batch end in, (B, C, h, w). NonFiniteError with its origin; at_once: see `Watch`."""
    latents = None if hints.z is None else hints.z.expand(len(batch), -1, -1, -1)
    seeds, asked, watch = ", ".join(str(item.seed) for item in batch), Asked(), Watch(model.dtype, at_once)
    try:
        for step in sample(model, batch, settings, hints, *others, asked):
            stage = f"the latent after step {step.i + 1} of {settings.sampled_steps} ({settings.sampler})"
            watch.see(step.x, f"{stage} of seed {seeds}")
            if heard is not None:
                heard(step)
            asked.calls.clear()
            latents = step.x
        watch.report()
    except NonFiniteError as error:
        if not at_once and not asked.began_well:  # it was seen when the steps were over: again, to stop at that one
            _latents(model, batch, settings, hints, others, None, at_once=True)
        if not asked.began_well or error.origin is not None:
            raise
        origin = _origin(model, batch, settings, hints, others, asked)
        raise NonFiniteError(error.stage, error.dtype, origin) from None
    assert latents is not None
    return latents


def _origin(
    model: LatentDiffusion, batch: Sequence[Item], settings: Settings, hints: Hints, others: Others, asked: Asked
) -> Origin:
    refiner, autoguide, _ = others
    networks = {"": model, "refiner": None if refiner is None else refiner.model, "autoguide": autoguide}
    sigmas = settings.levels(model.schedule)
    make = partial(led, model, batch, settings, hints, sigmas, refiner, autoguide, {})  # which reads prompts anew
    return origin_of_step(networks, make, asked.calls)
