"""Pictures too large for an autoencoder's memory: it works tile by tile, blended, or exactly as on the whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ldm.models.autoencoder import Autoencoder, ConvolutionalAutoencoder, Gaussian
from ldm.models.diffusion.tiles import blended, usual_overlap
from ldm.modules.edits import instead
from ldm.modules.exact_tiles import Levels


class TiledAutoencoder(Autoencoder):
    """Any autoencoder, in tiles of `size` pixels a side; smaller pictures are left whole.

    Blended: neighbours share `overlap` pixels (a quarter of the tile), each tile has group-norm statistics and
    attention of its own, and answers are mixed by smooth weights: nearly the picture of the whole, without a seam.
    exact: the statistics are the whole picture's and attention sees all of it, so that the answer is that of the whole
    but for rounding. Each level of the network runs once for every group norm in it: several times the time.
    """

    def __init__(self, inner: Autoencoder, size: int, overlap: int | None = None, exact: bool = False) -> None:
        super().__init__()
        step = inner.downsample_factor
        overlap = usual_overlap(size, step) if overlap is None else overlap
        if size < 2 * step or size % step or overlap % step or not 0 <= overlap < size:
            raise ValueError(
                f"tile {size} with overlap {overlap}: give multiples of {step}, a tile of {2 * step} or more, "
                "and an overlap below it"
            )
        if exact and not isinstance(inner, ConvolutionalAutoencoder):
            raise ValueError(f"exact tiles are for convolutional autoencoders, not {type(inner).__name__}")
        self.inner, self.size, self.overlap, self.exact = inner, size, overlap, exact
        self.latent_channels, self.downsample_factor = inner.latent_channels, step
        self.scaling_factor, self.shift_factor = inner.scaling_factor, inner.shift_factor

    def encode(self, image: Tensor) -> Gaussian | Tensor:
        if self.exact:
            with self._by_levels():
                return self.inner.encode(image)
        is_gaussian = False

        def answer(rows: slice, columns: slice) -> Tensor:
            nonlocal is_gaussian
            found = self.inner.encode(image[..., self._pixels(rows), self._pixels(columns)])
            is_gaussian = isinstance(found, Gaussian)
            return torch.cat([found.mean, found.logvar], dim=1) if isinstance(found, Gaussian) else found

        f = self.downsample_factor
        latent = blended(answer, image.shape[-2] // f, image.shape[-1] // f, self.size // f, self.overlap // f)
        return Gaussian(*latent.chunk(2, dim=1)) if is_gaussian else latent

    def decode(self, z: Tensor) -> Tensor:
        if self.exact:
            with self._by_levels():
                return self.inner.decode(z)
        f = self.downsample_factor
        return blended(
            lambda rows, columns: self.inner.decode(z[..., rows, columns]),
            *(z.shape[-2], z.shape[-1], self.size // f, self.overlap // f, f),
        )

    def _pixels(self, cells: slice) -> slice:
        return slice(cells.start * self.downsample_factor, cells.stop * self.downsample_factor)

    @contextmanager
    def _by_levels(self) -> Iterator[None]:
        """Encoder and decoder, for the time of a call, run level by level."""
        assert isinstance(self.inner, ConvolutionalAutoencoder)
        with instead({network: Levels(network, self.size) for network in (self.inner.encoder, self.inner.decoder)}):
            yield
