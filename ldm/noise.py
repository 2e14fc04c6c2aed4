"""Randomness as a function of (seed of the image, purpose, step), drawn on the CPU.

So image i is the same alone, in a batch, after a resume, and on every device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def starting_noise(seeds: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    """(B, C, h, w) float32 on the CPU, one image per seed, of which it means what it means elsewhere."""
    return torch.cat([_draw(seed, shape) for seed in seeds])


def keyed_noise(seeds: Sequence[int], shape: Sequence[int], key: str) -> Tensor:
    """(B, *shape) float32 on the CPU: streams that are independent of each other and of starting_noise for each key."""
    return torch.cat([_draw(seed_of(f"{seed}:{key}"), shape) for seed in seeds])


class StepNoise:
    """noise(x, sigma, sigma_next) for samplers: a pure function of (seed, purpose, interval), so calls have no order.

    The interval enters with six digits, which tell the steps of 1000 apart but forget the last bits of a sigma, in
    which two machines may differ.
    """

    def __init__(self, seeds: Sequence[int], purpose: str = "sampler") -> None:
        self.seeds = tuple(seeds)
        self.purpose = purpose

    def __call__(self, x: Tensor, sigma: float | Tensor, sigma_next: float | Tensor) -> Tensor:
        """Standard-normal noise like x (B, …), one image per seed."""
        if x.shape[0] != len(self.seeds):
            raise ValueError(f"a batch of {x.shape[0]} needs as many seeds, got {len(self.seeds)}: {self.seeds}")
        key = f"{self.purpose}:{float(sigma):.5e}:{float(sigma_next):.5e}"
        return keyed_noise(self.seeds, x.shape[1:], key).to(x.dtype).to(x.device)


def _draw(seed: int, shape: Sequence[int]) -> Tensor:
    """(1, *shape), the stream torch starts from this seed."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn((1, *shape), generator=generator, dtype=torch.float32, device="cpu")


def seed_of(key: str) -> int:
    """A seed of 32 bits, since torch's CPU generator takes no more of one: the rest of a larger number is ignored."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "big")
