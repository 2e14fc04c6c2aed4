"""What drawing takes, counted on the meta device: a call of each network and its autoencoder, per pixel; and tiles.

The figures of docs/performance.md.
"""

from __future__ import annotations

import argparse
import time

import _installed  # noqa: F401
import torch
from _ending import ended
from _fit import ROUGHLY, Demand, tiled
from _memory import Peak, without_scores
from _outline import Outlines
from torch.utils.flop_counter import FlopCounterMode

from ldm.checkpoint.configs import shipped_configs
from ldm.checkpoint.load import outline

ROWS = 3  # of the network's batch for a picture: with a prompt, without, and perturbed
SIDE = 1024  # of the picture in tiles


def by_pixel() -> None:
    """Of models that draw from noise and a prompt or class alone, those that `_fit` predicts."""
    print(f"{'KiB a pixel':<20}  side  network  autoencoder   processor time; the bound is {ROUGHLY / 1024:.0f}")
    for name in shipped_configs():
        start, model = time.process_time(), outline(name)
        if model.low_resolution is not None or "unclip" in name:  # which are shown a picture
            continue
        demand = Demand(Outlines(model, None, None, None), (model.image_size, model.image_size), "1", ROWS)
        each = [count / model.image_size**2 / 1024 for count in (demand.drawing(1), demand.picture(0, False))]
        seconds = time.process_time() - start
        print(f"{name:<20} {model.image_size:>5} {each[0]:>8.2f} {each[1]:>12.2f} {seconds:>10.1f} s", flush=True)


@torch.inference_mode()
def in_tiles(name: str = "sd-v1") -> None:
    """Of decoding one picture in float32."""
    autoencoder = outline(name).autoencoder
    without_scores(autoencoder)
    factor = autoencoder.downsample_factor
    z = torch.zeros(1, autoencoder.latent_channels, SIDE // factor, SIDE // factor, device="meta")
    whole = 0
    for tile, exact in ((0, False), (512, False), (256, False), (512, True), (256, True)):
        with Peak() as peak:
            tiled(autoencoder, tile, exact).decode(z)
        with FlopCounterMode(display=False) as count:
            tiled(autoencoder, tile, exact).decode(z)
        whole = whole or count.get_total_flops()
        how = f"{'exact ' * exact}tiles of {tile}" if tile else "whole"
        print(f"{name} {SIDE}x{SIDE} {how:<20} {peak.most / 1e9:.2f} GB, {count.get_total_flops() / whole:.2f} x")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pixels", action="store_true", help="the first table alone")
    parser.add_argument("--tiles", action="store_true", help="the second table alone")
    options = parser.parse_args()
    if not options.tiles:
        by_pixel()
    if not options.pixels:
        in_tiles()
    return 0


if __name__ == "__main__":
    raise SystemExit(ended(main))
