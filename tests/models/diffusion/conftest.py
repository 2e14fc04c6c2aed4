"""A data distribution whose exact denoiser is a formula, and numbers computed on it by other implementations."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ldm.models.diffusion import SAMPLERS, Step, step

GOLDEN = Path(__file__).parents[2] / "golden"


def _normal(name: str, shape: tuple[int, ...] = (2, 4, 8, 8)) -> Tensor:
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(f"0:{name}".encode())))
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).double()


@cache
def _means() -> Tensor:
    return torch.stack([_normal(f"mixture.mean.{k}", (4, 8, 8)) for k in range(3)])


def _mixture(x: Tensor, sigma: Tensor) -> Tensor:
    """E[z | x] for z from three Gaussians of variance 1/4, x = z + sigma * noise; x: (B, 4, 8, 8)."""
    means = _means().to(x.dtype)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=x.dtype)
    sigma = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, 1, 1, 1, 1)
    variance = 0.25 + sigma**2
    distance = (x[:, None] - means).square().sum((2, 3, 4), keepdim=True)  # (B, 3, 1, 1, 1)
    share = (weights.log().reshape(1, 3, 1, 1, 1) - distance / (2 * variance)).softmax(1)
    return (share * (0.25 * x[:, None] + sigma**2 * means) / variance).sum(1)


@pytest.fixture(scope="session")
def normal() -> Callable[..., Tensor]:
    """normal(name, shape): float64 numbers that depend on the name alone, as in the golden cases."""
    return _normal


@pytest.fixture(scope="session")
def mixture() -> Callable[[Tensor, Tensor], Tensor]:
    return _mixture


@pytest.fixture
def plain_levels(monkeypatch) -> None:
    """Samplers hand a denoiser numbers, not tensors of one: what is left is cheap enough for every number of steps."""
    for sampler, _ in SAMPLERS.values():
        module = sys.modules[sampler.__module__]
        if hasattr(module, "level"):  # those without one call another's sampler
            monkeypatch.setattr(module, "level", float)
    monkeypatch.setattr(step, "level", float)


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, Tensor]]:
    """golden(name): the tensors of tests/golden/{name}.safetensors."""
    return lambda name: load_file(GOLDEN / f"{name}.safetensors")


@pytest.fixture(scope="session")
def last() -> Callable[[Iterator[Step]], Tensor]:
    """last(steps): the final x."""
    return lambda steps: list(steps)[-1].x


@pytest.fixture(scope="session")
def error() -> Callable[[Tensor, Tensor], float]:
    """error(a, b): ‖a - b‖ / ‖b‖."""
    return lambda a, b: float((a - b).norm() / b.norm())
