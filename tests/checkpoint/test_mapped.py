"""What is mapped from a file and used up takes no memory, and is still what the file says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ldm.checkpoint.fit import fill
from ldm.checkpoint.mapped import MappedFiles

NUMBERS = 1 << 23  # 16 MB in float16
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell what is mapped")


def resident_file_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssFile:"))


@pytest.fixture
def mapped(tmp_path: Path) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(NUMBERS, generator=generator).half() for name in ("weight", "bias")}
    save_file(tensors, tmp_path / "weights.safetensors")
    return load_file(tmp_path / "weights.safetensors")


def test_pages_are_given_back_and_read_again(mapped: dict[str, Tensor]) -> None:
    total = mapped["weight"].double().sum()
    before = resident_file_bytes()
    assert MappedFiles().give_back(mapped["weight"])
    assert before - resident_file_bytes() >= 0.9 * 2 * NUMBERS
    assert mapped["weight"].double().sum() == total


def test_memory_of_no_file_is_let_alone() -> None:
    tensor = torch.ones(NUMBERS)
    assert not MappedFiles().give_back(tensor)
    assert bool((tensor == 1).all())


def test_a_file_mapped_later_is_let_alone(tmp_path: Path) -> None:
    files = MappedFiles()
    save_file({"weight": torch.ones(NUMBERS)}, tmp_path / "weights.safetensors")
    tensor = load_file(tmp_path / "weights.safetensors")["weight"]
    assert not files.give_back(tensor)


def test_a_cast_model_leaves_no_page_of_its_file(mapped: dict[str, Tensor]) -> None:
    with torch.device("meta"):
        norm = nn.LayerNorm(NUMBERS)
    total = sum(tensor.double().sum() for tensor in mapped.values())
    before = resident_file_bytes()
    fill(norm, mapped, Path("weights.safetensors"), "a test")
    assert before - resident_file_bytes() >= 0.75 * 4 * NUMBERS  # torch reads pages of its own meanwhile
    assert norm.bias.dtype == torch.float32
    assert norm.weight.double().sum() + norm.bias.double().sum() == total
