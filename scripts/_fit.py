"""Fitting a job into the memory there is: what it would take, and what is chosen where that is too much."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from _memory import Peak, free_memory, weight_bytes, without_scores
from _outline import Outlines
from _prepare import Pictures

from ldm.items import Item
from ldm.models.autoencoder import Autoencoder, ConvolutionalAutoencoder, IdentityAutoencoder
from ldm.models.diffusion.denoiser import Conditioning
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.models.text_encoder import ChunkedTextEncoder
from ldm.models.tiled_autoencoder import TiledAutoencoder
from ldm.prompt_tree import Span
from ldm.sizes import canvas_size, picture_size

TILES = (512, 256)  # pixels, that are tried where a whole picture does not fit
FEW = 3  # tiles along a side, of which more are predicted
SHARE = 0.9  # of the free memory that a prediction may take: libraries need some besides
MOST = 64  # pictures at once, however many would fit
ROUGHLY = 32_768  # bytes for a pixel of each picture, twice what is taken by the hungriest of configs/, ddpm-cat-256


@dataclass(frozen=True)
class Choice:
    """How a job is drawn where memory decides."""

    tile: int = 0  # pixels; 0 is whole
    exact: bool = False
    offload: bool = False
    batch_size: int = 1
    needs: int = 0  # bytes predicted, weights included; 0 without a prediction
    free: int = 0
    fits: bool = True

    def said(self, plain: Choice) -> str:
        """In a line what was chosen that was not asked for, or is too much; nothing else."""
        chosen = [f"{self.batch_size} pictures at once"] if self.batch_size != plain.batch_size else []
        if self.tile != plain.tile:
            chosen.append(f"autoencoder in {'exact ' * self.exact}tiles of {self.tile}")
        if self.offload != plain.offload:
            chosen.append("parts of the model in turns")
        if self.fits and not chosen:
            return ""
        doubt = "" if self.fits else "; it may be too much: --batch-size auto or smaller pictures take less"
        what = f" ({', '.join(chosen)})" if chosen else ""
        return f"memory: {gigabytes(self.needs)} of {gigabytes(self.free)} free{what}{doubt}"

    def described(self) -> Iterator[str]:
        """For --explain."""
        free = f" (of {gigabytes(self.free)} free)" if self.free else ""
        yield f"chosen    {self.batch_size} at once{free}" + ("" if self.fits else ", which may be too many")
        if self.tile:
            yield f"          autoencoder in {'exact ' * self.exact}tiles of {self.tile} pixels"
        if self.offload:
            yield "          text encoder, network and autoencoder take turns on the device"
        if self.needs and (self.tile or self.offload):
            yield f"          {gigabytes(self.needs)} in all then"


class Demand:
    """What a job takes at work, by its outlines."""

    def __init__(self, found: Outlines, size: tuple[int, int], text: str, rows: int) -> None:
        """size (height, width) in pixels; rows of the network's batch for a picture; text: the longest prompt.

        Of a refiner and a worse model the weights are counted: they work no harder than the model.
        """
        self.model = found.model
        without_scores(self.model)
        self.rows, self.size = rows, size
        self.shape = self.model.latent_shape(*size)
        self.text = text
        self.autoencoder, self.encoder = weight_bytes(self.model.autoencoder), weight_bytes(self.model.text_encoder)
        self.network = weight_bytes(self.model) - self.autoencoder - self.encoder
        self.weights = _weights(found)
        self._drawing: dict[int, int] = {}
        self._picture: dict[tuple[int, bool], int] = {}

    def of(self, tile: int, exact: bool, offload: bool, batch_size: int) -> int:
        """Bytes at the worst moment."""
        drawing, picture = self.drawing(batch_size), self.picture(tile, exact)
        if not offload:
            return self.weights + max(drawing, picture)
        return max(self.network + drawing, self.autoencoder + picture, self.encoder)

    @torch.inference_mode()
    def drawing(self, batch_size: int) -> int:
        """Of one call of the network, for so many pictures: it grows evenly with them."""
        for count in (1, 2):
            if count not in self._drawing:
                with Peak() as peak:
                    self._call(count * self.rows)
                self._drawing[count] = peak.most
        one, two = self._drawing[1], self._drawing[2]
        return one + (batch_size - 1) * (two - one)

    def _call(self, rows: int) -> None:
        model = self.model
        is_chunked = isinstance(model.text_encoder, ChunkedTextEncoder)
        cond = model.condition([((Span(self.text),),) if is_chunked else self.text])
        context, y = (None if t is None else t.expand(rows, *t.shape[1:]) for t in (cond.context, cond.y))
        shown = model.concat_channels
        concat = torch.zeros(rows, shown, *self.shape[1:], device="meta") if shown else None
        x = torch.zeros(rows, *self.shape, device="meta")
        model.denoiser(x, torch.tensor(1.0), Conditioning(context, concat, y))

    @torch.inference_mode()
    def picture(self, tile: int, exact: bool) -> int:
        """Of decoding or encoding one picture, the larger.

        For more than a few tiles it is an upper bound, since all of them would take minutes: what a tile takes is the
        same in any picture and the rest grows with the area, so that both grow at most in proportion to it.
        """
        if (tile, exact) not in self._picture:
            autoencoder = tiled(self.model.autoencoder, tile, exact)
            like = next(autoencoder.parameters(), torch.zeros((), device="meta")).dtype
            height, width = (min(side, FEW * tile or side) for side in self.size)
            with Peak() as decoding:
                autoencoder.decode(torch.zeros(1, *self.model.latent_shape(height, width), device="meta", dtype=like))
            with Peak() as encoding:
                autoencoder.encode(torch.zeros(1, 3, height, width, device="meta", dtype=like))
            share = height * width / (self.size[0] * self.size[1])
            self._picture[tile, exact] = math.ceil(max(decoding.most, encoding.most) / share)
        return self._picture[tile, exact]


def tiled(autoencoder: Autoencoder, tile: int, exact: bool) -> Autoencoder:
    """The autoencoder, in tiles of so many pixels; itself where that is 0 or there is nothing to cut."""
    if tile == 0 or isinstance(autoencoder, IdentityAutoencoder):
        return autoencoder
    return TiledAutoencoder(autoencoder, tile, exact=exact)


def fit(
    options: argparse.Namespace,
    found: Outlines,
    items: Sequence[Item],
    pictures: Pictures,
    device: str,
    dtype: torch.dtype,
) -> Choice:
    """As `choose`; says what it has come to."""
    if options.offload and device == "cpu":
        print("--offload: there is one memory only, the CPU's; nothing is moved")
    choice = choose(options, found, items, pictures, device, dtype)
    if line := choice.said(asked(options, found.settings.at_once(len(items)))):
        print(line)
    return choice


def choose(
    options: argparse.Namespace,
    found: Outlines,
    items: Sequence[Item],
    pictures: Pictures,
    device: str,
    dtype: torch.dtype,
) -> Choice:
    """What was asked for, where it fits; else, of what was left open, the first that does.

    found: gets the networks' dtype, and attention that keeps no table of scores; nothing of it is on the device yet.
    `needs` is 0 where so much is free, or so little known, that nothing had to be predicted.
    """
    count = found.settings.at_once(len(items))
    plain, model, free = asked(options, count), found.model, free_memory(device)
    size = _size(options, model, pictures)
    is_known = options.backend == "torch" and model.low_resolution is None
    if size is None or free is None or not is_known:
        return plain
    for network in (model.unet, model.text_encoder):
        network.to(dtype)
    plain = replace(plain, free=free)
    if options.batch_size != "auto" and roughly(found, size, plain) <= SHARE * free:
        return plain  # without the seconds that a prediction takes
    demand = Demand(found, size, max((item.prompt for item in items), key=len), _rows(options, model))
    tiles = [plain.tile] if options.tile is not None else [0, *_below(model, size)]
    turns = [plain.offload] if options.offload is not None or device == "cpu" else [False, True]
    for tile, offload in product(tiles, turns):
        exact = tile > 0 if options.tile is None else plain.exact  # nobody asked for another picture
        needs = demand.of(tile, exact, offload, plain.batch_size)
        choice = Choice(tile, exact, offload, plain.batch_size, needs, free, needs <= SHARE * free)
        if choice.fits:
            return _filled(choice, demand, count) if options.batch_size == "auto" else choice
    return choice


def roughly(found: Outlines, size: tuple[int, int], choice: Choice) -> int:
    """Bytes that should be more than enough."""
    return 2 * _weights(found) + choice.batch_size * size[0] * size[1] * ROUGHLY


def asked(options: argparse.Namespace, count: int) -> Choice:
    """Without a look at the memory."""
    size = {None: options.n_samples, "auto": 1}.get(options.batch_size, options.batch_size)
    tile = 0 if options.command == "upscale" else options.tile or 0
    return Choice(tile, options.exact_tiles and tile > 0, bool(options.offload), max(1, min(size, count)))


def _filled(choice: Choice, demand: Demand, count: int) -> Choice:
    """With as many pictures at once as fit, in batches of about equal size."""
    way = (choice.tile, choice.exact, choice.offload)
    most = max(n for n in range(1, min(count, MOST) + 1) if n == 1 or demand.of(*way, n) <= SHARE * choice.free)
    even = math.ceil(count / math.ceil(count / most))
    return replace(choice, batch_size=even, needs=demand.of(*way, even))


def _weights(found: Outlines) -> int:
    """Bytes of all models together."""
    seconds = (None if found.refiner is None else found.refiner.model, found.autoguide)
    return sum(weight_bytes(model) for model in (found.model, *seconds) if model is not None)


def _below(model: LatentDiffusion, size: tuple[int, int]) -> list[int]:
    factor = model.autoencoder.downsample_factor
    if not isinstance(model.autoencoder, ConvolutionalAutoencoder):
        return []
    return [tile for tile in TILES if 2 * factor <= tile < max(size) and tile % factor == 0]


def _rows(options: argparse.Namespace, model: LatentDiffusion) -> int:
    """Of the network's batch, for one picture."""
    scales = options.scale or [model.guidance_scale]
    return 1 + (options.cfg_pp or any(scale != 1 for scale in scales)) + bool(options.pag)


def _size(options: argparse.Namespace, model: LatentDiffusion, pictures: Pictures) -> tuple[int, int] | None:
    """(height, width) of what is drawn; None for commands of which nothing is predicted."""
    asked_for = options.H, options.W
    if options.command in ("txt2img", "sample"):
        height, width = (model.image_size if side is None else side for side in asked_for)
        return height, width
    picture = pictures.get("init_img", pictures.get("depth"))
    if options.command not in ("img2img", "inpaint", "depth2img") or picture is None:
        return None
    if options.command != "inpaint":
        return picture_size(model, picture.size, *asked_for)
    left, top, right, bottom = options.outpaint
    return canvas_size(model, (picture.width + left + right, picture.height + top + bottom), *asked_for)


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
