"""Randomness as a function of (seed of the image, purpose, step), drawn on the CPU.

So image i is the same alone, in a batch, after a resume, and on every device.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

CLOCKS = (2**10, 2**20, 2**40)
"""Noise levels in an octave of sigma, which BrownianNoise tells apart by the first that can. The first has them 0.1 %
apart at most, where 1000 steps over the nine octaves of Stable Diffusion are 0.6 %. By it, an image's step takes about
12 draws, 2 ms of a CPU core for (4, 64, 64); twice as many levels, one draw more."""
LOWEST = 2.0**-20
"""Any sigma below, in which no picture is left to draw, is this one."""


@dataclass(frozen=True)
class Variation:
    """The seed of an image whose every noise lies between those of two seeds, at 0 on the first, at 1 on the other."""

    seed: int
    other: int
    strength: float


Seed = int | Variation


def starting_noise(seeds: Sequence[Seed], shape: tuple[int, int, int]) -> Tensor:
    """(B, C, h, w) float32 on the CPU, one image per seed, of which it means what it means elsewhere."""
    return torch.cat([_draw(seed, shape) for seed in seeds])


def keyed_noise(seeds: Sequence[Seed], shape: Sequence[int], key: str) -> Tensor:
    """(B, *shape) float32 on the CPU: streams that are independent of each other and of starting_noise for each key."""
    return torch.cat([_draw(seed, shape, key) for seed in seeds])


class BrownianNoise:
    """noise(x, sigma, sigma_next) for samplers: the increments of a Brownian path W over sigma, one path per seed.

        noise = (W(sigma) - W(sigma_next)) / sqrt(sigma - sigma_next)

    It is standard normal, independent over intervals that do not overlap, and a pure function of (seed, purpose,
    interval), so calls have no order. As 20 and 40 steps follow one path, they draw one picture, in less or more
    detail. On the way up (sigma_next above sigma) it is fresh noise, keyed by the interval: what a sampler adds there
    must be independent of what it adds on its way down through the same levels.

    Each octave of sigma is Levy's construction: a straight line to a normal end and, on every half, quarter, eighth …
    of the octave, a hat with a normal height, keyed by its place in that tree (Karatzas & Shreve, Brownian Motion and
    Stochastic Calculus, section 2.3). Sigma is rounded to a tick of a clock (`CLOCKS`), which biases nothing: a path
    read at ticks has increments just as normal and independent. It forgets the last bits of a sigma, in which two
    machines may differ. An interval within one tick has another path, independent of the first, which is read by a
    finer clock; one too short for the finest (a part in 10^12) counts as a whole tick of that.

    torchsde's BrownianTree is the usual choice. But its path depends on the ends of the interval that it is made for,
    so a picture's would change with the noise that it begins with; and it is 785 lines, needs scipy and had its last
    release in 2023.
    """

    def __init__(self, seeds: Sequence[Seed], purpose: str = "sampler") -> None:
        self.seeds = tuple(seeds)
        self.purpose = purpose
        self._remembered = lru_cache(maxsize=4)(self._above_octave)  # a step begins where the one before it ended

    def __call__(self, x: Tensor, sigma: float | Tensor, sigma_next: float | Tensor) -> Tensor:
        """Standard-normal noise like x (B, …), one image per seed."""
        if x.shape[0] != len(self.seeds):
            raise ValueError(f"a batch of {x.shape[0]} needs as many seeds, got {len(self.seeds)}: {self.seeds}")
        start, end, shape = float(sigma), float(sigma_next), tuple(x.shape[1:])
        if end > start:
            return _sent(self._normal(f"{start:.5e}:{end:.5e}", shape), x)
        clock = next((clock for clock in CLOCKS if _tick(start, clock) > _tick(end, clock)), CLOCKS[-1])
        low = _tick(end, clock)
        high = max(_tick(start, clock), low + 1)
        return _sent(self._increment(high, low, clock, shape) / math.sqrt(_sigma(high, clock) - _sigma(low, clock)), x)

    def _increment(self, high: int, low: int, clock: int, shape: tuple[int, ...]) -> Tensor:
        """W at one tick of a clock less W at another, (B, *shape) float64."""
        increment = self._remembered(high, clock, shape) - self._remembered(low, clock, shape)
        for octave in range(low // clock, high // clock):
            increment = increment + self._over_octave(octave, clock, shape)
        return increment

    def _above_octave(self, tick: int, clock: int, shape: tuple[int, ...]) -> Tensor:
        """W at a tick less W where its octave begins, (B, *shape) float64."""
        octave, since = divmod(tick, clock)
        above = torch.zeros(len(self.seeds), *shape, dtype=torch.float64, device="cpu")
        for node, weight in _levy(since / clock):
            above += math.sqrt(2.0**octave) * weight * self._node(octave, node, clock, shape)
        return above

    def _over_octave(self, octave: int, clock: int, shape: tuple[int, ...]) -> Tensor:
        """W over an octave, which is as long as the sigma where it begins, (B, *shape) float64."""
        return math.sqrt(2.0**octave) * self._node(octave, 0, clock, shape).double()

    def _node(self, octave: int, node: int, clock: int, shape: tuple[int, ...]) -> Tensor:
        path = "" if clock == CLOCKS[0] else f"{clock}:"
        return self._normal(f"{path}{octave}:{node}", shape)

    def _normal(self, key: str, shape: tuple[int, ...]) -> Tensor:
        return keyed_noise(self.seeds, shape, f"{self.purpose}:{key}")


def _sent(noise: Tensor, x: Tensor) -> Tensor:
    """Like x, on its device; CUDA has its own copy when the call returns, so nobody waits."""
    return noise.to(x.dtype).to(x.device, non_blocking=not x.is_mps)


def _levy(place: float) -> Iterator[tuple[int, float]]:
    """(node, weight) of the normal numbers whose sum is a Brownian path from 0 … 1 at a place, a binary fraction.

    Node 0 is the path's end; then come the halves, quarters, … that hold the place, each with its hat function.
    """
    if place > 0:
        yield 0, place
    node, height = 1, 0.5
    while place > 0:
        yield node, height * (1 - abs(2 * place - 1))
        upper, place = divmod(2 * place, 1)
        node, height = 2 * node + int(upper), height / math.sqrt(2)


def _tick(sigma: float, clock: int) -> int:
    """The number of the nearest tick, `clock` to an octave, evenly within each."""
    mantissa, exponent = math.frexp(max(sigma, LOWEST))  # sigma = mantissa * 2^exponent, mantissa in 1/2 … 1
    return round((exponent - 1 + 2 * mantissa - 1) * clock)


def _sigma(tick: int, clock: int) -> float:
    octave, since = divmod(tick, clock)
    return 2.0**octave * (1 + since / clock)


def slerp(a: Tensor, b: Tensor, share: float, dim: int | None = None) -> Tensor:
    """From a (share 0) to b (share 1), of one shape, along the arc between their directions (Shoemake 1985).

    dim: where the vectors lie, each of which turns by itself; None turns the whole. The norm on the way is that of one
    to the power 1 - share by that of the other to the power share: where both are noise, so is what lies between, while
    a straight line would pass 30 % below the norm that noise has. Between opposites, which have no arc, the line it is.
    """
    if share in (0, 1):
        return b if share else a
    dims = tuple(range(a.ndim)) if dim is None else dim
    p, q = (v.to("cpu", torch.float64) for v in (a, b))  # not every device has float64
    norm_p, norm_q = (torch.linalg.vector_norm(v, dim=dims, keepdim=True).clamp(min=1e-300) for v in (p, q))
    angle = torch.acos((p / norm_p * (q / norm_q)).sum(dims, keepdim=True).clamp(-1, 1)) / math.pi
    ahead, behind = (part * torch.sinc(part * angle) / torch.sinc(angle) for part in (share, 1 - share))
    turned = (behind * p / norm_p + ahead * q / norm_q) * norm_p ** (1 - share) * norm_q**share
    return torch.where(angle > 1 - 1e-6, torch.lerp(p, q, share), turned).to(a.device, a.dtype)


def _draw(seed: Seed, shape: Sequence[int], key: str | None = None) -> Tensor:
    """(1, *shape), the stream torch starts from this seed, or, with a key, from a seed that is made of both."""
    if isinstance(seed, Variation):
        a, b = (_draw(one, shape, key) for one in (seed.seed, seed.other))
        return slerp(a, b, seed.strength)
    number = seed if key is None else seed_of(f"{seed}:{key}")
    generator = torch.Generator("cpu").manual_seed(number)
    return torch.randn((1, *shape), generator=generator, dtype=torch.float32, device="cpu")


def seed_of(key: str) -> int:
    """A seed of 32 bits, since torch's CPU generator takes no more of one: the rest of a larger number is ignored."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "big")
