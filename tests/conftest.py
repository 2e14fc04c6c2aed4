"""Golden cases: what published implementations gave for weights and inputs that are made of names alone."""

from __future__ import annotations

import json
import math
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))  # as `python scripts/txt2img.py` does

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # so do the processes that tests start


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also the tests marked long, which take many seconds each")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what is marked long, unless all is wanted, or one test by its name."""
    if config.getoption("long") or any("::" in word for word in config.args):
        return
    long = [item for item in items if item.get_closest_marker("long")]
    items[:] = [item for item in items if item not in long]
    config.hook.pytest_deselected(items=long)


GOLDEN = Path(__file__).parent / "golden"
Layout = dict[str, list[int]]


def named_normal(name: str, shape: tuple[int, ...]) -> Tensor:
    """Standard-normal float32 numbers that depend on the name alone."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(f"0:{name}".encode())))
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


def named_weight(key: str, shape: tuple[int, ...]) -> Tensor:
    """Fan-in scaled normals for weights, 1 + 0.1 n for gains, 0.1 n for biases."""
    values = named_normal(key, shape)
    if len(shape) >= 2:
        embedding = "embedding" in key
        fan_in = shape[-1] if embedding else math.prod(shape[1:])
        return values * (0.5 if embedding else 1.0) / math.sqrt(fan_in)
    return 1 + 0.1 * values if key.endswith("weight") else 0.1 * values


@dataclass(frozen=True)
class Case:
    params: dict[str, Any]
    weights: dict[str, Tensor]
    inputs: dict[str, Tensor | None]
    outputs: dict[str, Tensor]


@pytest.fixture
def golden() -> Callable[[str], Case]:
    """The golden case of that name."""

    def load(name: str) -> Case:
        with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
            case = json.loads(file.metadata()["case"])
            outputs = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no dict)
        weights = {key: named_weight(key, tuple(shape)) for key, (shape, _) in case["layout"].items()}
        shapes = {key: shape for key, shape in case["inputs"].items() if key != "y_int"}
        inputs = {key: None if shape is None else named_normal(key, tuple(shape)) for key, shape in shapes.items()}
        if case["inputs"].get("y_int") is not None:
            inputs["y"] = torch.tensor(case["inputs"]["y_int"])
        if "timesteps" in case:
            inputs["t"] = torch.tensor(case["timesteps"])
        return Case(case["params"], weights, inputs, outputs)

    return load


@pytest.fixture
def layout() -> Callable[..., Layout]:
    """The shapes in a published file, of the keys that begin with a prefix, which is removed."""

    def load(name: str, prefix: str = "") -> Layout:
        entries = json.loads((GOLDEN / "layouts" / f"{name}.json").read_text())
        return {key.removeprefix(prefix): shape for key, (shape, _) in entries.items() if key.startswith(prefix)}

    return load


@pytest.fixture
def shapes() -> Callable[[dict[str, Tensor]], Layout]:
    return lambda state: {key: list(tensor.shape) for key, tensor in state.items()}


@pytest.fixture
def relative_error() -> Callable[[Tensor, Tensor], float]:
    return lambda found, wanted: float((found - wanted).norm() / wanted.norm())


@pytest.fixture
def filled() -> Callable[[nn.Module], nn.Module]:
    """Gives a network weights that are made of its tensors' names: none is zero, and equal names are equal weights."""

    def fill(module: nn.Module) -> nn.Module:
        module.load_state_dict({key: named_weight(key, tuple(t.shape)) for key, t in module.state_dict().items()})
        return module

    return fill


@pytest.fixture
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="session")
def awake() -> Callable[[], nn.Module]:
    """Makes the tiny model, the same each time; layers that begin as zeros have numbers, so that all of it matters."""
    from ldm.config import build, load_config

    def make() -> nn.Module:
        torch.manual_seed(0)
        model = build(load_config(Path(__file__).parent / "tiny.yaml"), "tiny.yaml").eval()
        for parameter in model.unet.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.2)
        return model

    return make
