"""When memory runs out: fewer pictures at once, then a smaller piece of one at once, and then a sentence."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from ldm.cuda_graph import forget
from ldm.items import Item
from ldm.models.diffusion.tiles import blended, decoded, usual_overlap
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.provenance import Tell, autoencoded

Drawn = TypeVar("Drawn")
Tiles = tuple[int, int]
SMALLEST_TILE = 16  # in latent pixels: of less, a decoder knows too little of what surrounds them
PHRASES = ("DefaultCPUAllocator", "can't allocate memory", "out of memory", "bad_alloc", "Failed to allocate memory")


class NotEnoughMemoryError(RuntimeError):
    """There is not enough for a single picture; the message says of what size, and the remedy."""

    def __init__(self, doing: str) -> None:
        super().__init__(
            f"out of memory while {doing}, and there is nothing left to halve; "
            "draw a smaller picture, in a lower precision, or on a device with more memory"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it is one of the ways in which torch, or a library under it, says so: a CPU has only a RuntimeError."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in PHRASES)


def halving(
    items: Sequence[Item],
    batch_size: int,
    draw: Callable[[tuple[Item, ...], int], Drawn],
    free: Callable[[], None],
    tell: Tell,
) -> Iterator[tuple[tuple[Item, ...], Drawn]]:
    """Batches with what `draw(batch, done)` makes of each, done being how many items came before.

    A batch that memory does not suffice for is drawn again in halves, as are those after it. No half reaches over the
    end of its batch, so that a job that goes on with any batch has the same halves. Each picture's noise is of its own
    seed, so they are the same ones but for the last bits of floats, which depend on the company.
    """
    size, done = batch_size, 0
    while done < len(items):
        end = min(len(items), done // batch_size * batch_size + batch_size)
        batch = tuple(items[done : min(done + size, end)])
        failed = False
        try:
            drawn = draw(batch, done)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                raise NotEnoughMemoryError(f"drawing the one picture of seed {batch[0].seed}") from error
            failed = True
        if failed:  # outside of `except`, where the error would keep alive all that was half done
            free()
            size = (len(batch) + 1) // 2
            tell(f"out of memory with {len(batch)} pictures at once: from here on {size} at once, of the same seeds")
            continue
        yield batch, drawn
        done += len(batch)


def pixels_of(model: LatentDiffusion, z: Tensor, tiles: Tiles | None, stage: str, tell: Tell) -> Tensor:
    """Finite pixels (1, 3, H, W) of a latent (1, C, h, w). tiles: (size, overlap) in latent pixels to begin with."""

    def decode(tiles: Tiles | None) -> Tensor:
        factor = model.autoencoder.downsample_factor
        return model.decode(z) if tiles is None else decoded(model.decode, z, *tiles, factor)

    return _in_tiles(model, decode, "decod", (z.shape[-2], z.shape[-1]), tiles, stage, tell)


def latent_of(model: LatentDiffusion, pixels: Tensor, stage: str, tell: Tell) -> Tensor:
    """The finite latent (1, C, h, w), the mean of its distribution, of pixels (1, 3, H, W) in [-1, 1]."""
    factor = model.autoencoder.downsample_factor
    height, width = pixels.shape[-2] // factor, pixels.shape[-1] // factor

    def mean(pixels: Tensor) -> Tensor:
        posterior = model.encode(pixels)
        return posterior if isinstance(posterior, Tensor) else posterior.mode()

    def part(rows: slice, columns: slice) -> Tensor:
        y, x = (slice(cells.start * factor, cells.stop * factor) for cells in (rows, columns))
        return mean(pixels[..., y, x])

    def encode(tiles: Tiles | None) -> Tensor:
        return mean(pixels) if tiles is None else blended(part, height, width, *tiles)

    return _in_tiles(model, encode, "encod", (height, width), None, stage, tell)


def _in_tiles(
    model: LatentDiffusion,
    work: Callable[[Tiles | None], Tensor],
    verb: str,
    sides: tuple[int, int],
    tiles: Tiles | None,
    stage: str,
    tell: Tell,
) -> Tensor:
    """What the autoencoder answers: in tiles, of half the size each time that memory runs out.

    sides: (h, w) of the latent. In tiles the autoencoder's norms and attention see less of the picture, so the answer
    differs: `tell` hears of it. NonFiniteError, NotEnoughMemoryError.
    """
    factor = model.autoencoder.downsample_factor
    while True:
        try:
            return autoencoded(model, partial(work, tiles), stage, tell)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            smaller = max(sides) // 2 if tiles is None else tiles[0] // 2
            if smaller < SMALLEST_TILE:
                height, width = (side * factor for side in sides)
                raise NotEnoughMemoryError(f"{verb}ing one picture of {width}x{height} pixels") from error
        tiles = smaller, usual_overlap(smaller)
        free_memory(model)
        side = smaller * factor
        tell(f"out of memory in the autoencoder: {verb}ed in tiles of {side} pixels, whose tones may differ a little")


def free_memory(*models: LatentDiffusion | None) -> None:
    """Give back what is held for the next time: recorded graphs, and what the allocator keeps."""
    for model in models:
        if model is not None:
            forget(model.unet)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
