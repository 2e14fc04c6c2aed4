"""Tiles against the whole: exact ones but for rounding, blended ones within a bound and without a seam."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ldm.checkpoint.load import load
from ldm.data.raycast import render
from ldm.data.scenes import sample_scene
from ldm.models.autoencoder import Autoencoder, AutoencoderKL, Gaussian, IdentityAutoencoder, VQModel
from ldm.models.tiled_autoencoder import TiledAutoencoder

pytestmark = pytest.mark.usefixtures("no_grad")


def tensor(found: Gaussian | Tensor) -> Tensor:
    return torch.cat([found.mean, found.logvar], dim=1) if isinstance(found, Gaussian) else found


def make(kind: str) -> Autoencoder:
    """Levels with attention and without, whose changes of size leave odd numbers of tiles."""
    torch.manual_seed(0)
    if kind == "kl":
        return AutoencoderKL(block_out_channels=(8, 16, 16), layers_per_block=1, norm_num_groups=4).eval()
    if kind == "flat":  # no change of size, and nothing that attends
        return AutoencoderKL(block_out_channels=(8,), layers_per_block=1, mid_attention=False, norm_num_groups=4).eval()
    return VQModel(
        block_out_channels=(8, 16, 16),
        layers_per_block=2,
        attention_levels=(False, True, False),
        norm_num_groups=4,
        num_codes=32,
        scaling_factor=0.5,
        shift_factor=0.1,
    ).eval()


@pytest.mark.parametrize("size", [16, 24, 44])
@pytest.mark.parametrize("kind", ["kl", "vq", "flat"])
def test_exact_tiles_are_the_whole(kind: str, size: int) -> None:
    """1e-5 of values near 1: the order of sums is all that differs. A picture of 1.7 times the mean of the next has
    other statistics in every tile."""
    autoencoder = make(kind)
    tiles = TiledAutoencoder(autoencoder, size, exact=True)
    image = torch.randn(2, 3, 52, 36) + torch.linspace(-2, 2, 36)
    z = tensor(autoencoder.encode(image))
    torch.testing.assert_close(tensor(tiles.encode(image)), z, rtol=1e-5, atol=1e-5)
    latent = torch.randn(2, autoencoder.latent_channels, *z.shape[2:]) * 3
    whole = autoencoder.decode(latent)
    torch.testing.assert_close(tiles.decode(latent), whole, rtol=1e-5, atol=1e-5)
    blended = TiledAutoencoder(autoencoder, size).decode(latent)
    assert (blended - whole).abs().max() > 1e-3  # that is no small matter
    assert torch.equal(autoencoder.decode(latent), whole)  # and afterwards the network is as before


@pytest.mark.parametrize("exact", [False, True])
def test_a_picture_of_one_tile_is_left_whole(exact: bool) -> None:
    autoencoder = make("kl")
    tiles = TiledAutoencoder(autoencoder, 64, exact=exact)
    image = torch.randn(1, 3, 64, 32)
    assert torch.equal(tensor(tiles.encode(image)), tensor(autoencoder.encode(image)))
    z = torch.randn(1, 4, 16, 8)
    assert torch.equal(tiles.decode(z), autoencoder.decode(z))


def test_the_network_is_as_before_after_an_error() -> None:
    autoencoder = make("kl")
    tiles = TiledAutoencoder(autoencoder, 16, exact=True)
    with pytest.raises(RuntimeError):
        tiles.decode(torch.randn(1, 5, 16, 16))
    assert "forward" not in autoencoder.decoder.__dict__
    assert all("forward" not in module.__dict__ for module in autoencoder.modules())


@pytest.mark.long
def test_the_shipped_autoencoder_in_tiles() -> None:
    """Four scenes of 128 x 128 in tiles of 64. Exact tiles are the picture, to a thousandth of a gray level. Blended
    ones are off by 4 of 255 on average, as each has group norms of its own, but nowhere by a step that would show: 7
    where tiles just meet, less than 1 from any column to the next where they are blended."""
    autoencoder = load("scenes").autoencoder
    image = torch.stack([2 * render(sample_scene(i), samples=1) - 1 for i in range(4)])
    latent = autoencoder.encode(image)
    assert isinstance(latent, Gaussian)
    whole = autoencoder.decode(latent.mean)
    exact, blended = TiledAutoencoder(autoencoder, 64, exact=True), TiledAutoencoder(autoencoder, 64)
    found, mixed = exact.encode(image), blended.encode(image)
    assert isinstance(found, Gaussian) and isinstance(mixed, Gaussian)
    assert (found.mean - latent.mean).abs().max() < 1e-5
    assert (exact.decode(latent.mean) - whole).abs().max() < 1e-5
    assert (mixed.mean - latent.mean).abs().mean() < 0.2 * latent.mean.std()
    off = (blended.decode(latent.mean) - whole) * 127.5  # gray levels
    meeting = (TiledAutoencoder(autoencoder, 64, overlap=0).decode(latent.mean) - whole) * 127.5
    assert off.abs().mean() < 6
    assert jumps(off)[4:-4].max() < 1 and jumps(meeting)[64] > 4  # the picture's own edges aside


def jumps(off: Tensor) -> Tensor:
    """How much more, or less, a column is off than the one before it, on average: (W,), the first 0."""
    return torch.nn.functional.pad(off.diff(dim=-1), (1, 0)).abs().mean(dim=(0, 1, 2))


@pytest.mark.parametrize(("size", "overlap"), [(22, None), (4, None), (0, 0), (16, 16), (16, 2), (16, -4)])
def test_impossible_tiles_are_refused(size: int, overlap: int | None) -> None:
    with pytest.raises(ValueError, match=f"tile {size} with overlap .*: give multiples of 4"):
        TiledAutoencoder(make("kl"), size, overlap)


def test_exact_tiles_need_convolutions() -> None:
    with pytest.raises(ValueError, match="exact tiles are for convolutional autoencoders, not IdentityAutoencoder"):
        TiledAutoencoder(IdentityAutoencoder(), 16, exact=True)
