"""What --deep-cache N saves and costs with the shipped model: processor time, and how far its pictures are off.

The same prompts and seeds with and without, in one batch; differences are of 8-bit values, as means over pictures.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

import _installed  # noqa: F401
import numpy as np
from _ending import ended
from _speed import lay_out

import ldm
from ldm.models.latent_diffusion import LatentDiffusion

PROMPTS = (
    "a large shiny red sphere to the left of a small matte blue cube on a sunny day",
    "a small green cone at night",
    "two cubes at sunset",
    "a large yellow cylinder on a cloudy day",
)


def drawn(model: LatentDiffusion, steps: int, sampler: str, every: int) -> tuple[np.ndarray, float]:
    """The pictures, (N, H, W, 3), and seconds of processor time a picture, decoding in it."""
    start = time.process_time()
    options = {"steps": steps, "sampler": sampler, "deep_cache": every, "seed": 0, "batch_size": len(PROMPTS)}
    results = list(ldm.txt2img(model, list(PROMPTS), **options))
    taken = (time.process_time() - start) / len(PROMPTS)
    return np.stack([np.array(result.image, dtype=float) for result in results]), taken


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30, help="(default: %(default)s)")
    parser.add_argument("--sampler", default="ddim", help="(default: %(default)s)")
    parser.add_argument("--every", type=int, nargs="+", default=[2, 3, 5], metavar="N", help="(default: 2 3 5)")
    options = parser.parse_args(argv)
    model = ldm.load("scenes")
    lay_out(model)
    drawn(model, 1, options.sampler, 1)  # warms up
    plain, before = drawn(model, options.steps, options.sampler, 1)
    print(f"{options.sampler}, {options.steps} steps, {len(PROMPTS)} pictures: {before:.2f} s a picture")
    try:
        for every in options.every:
            pictures, taken = drawn(model, options.steps, options.sampler, every)
            off = np.abs(pictures - plain).mean(axis=(1, 2, 3))
            share, most = taken / before, off.max()
            print(f"--deep-cache {every}: {share:.2f} of that; off by {off.mean():.2f} of 255, at most {most:.2f}")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(ended(main))
