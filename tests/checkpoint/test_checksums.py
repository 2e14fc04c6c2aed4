"""Our own files tell of every damage; files of others are read as they are."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm.checkpoint import checksums
from ldm.checkpoint.load import SHIPPED, load, outline, weights_path
from ldm.checkpoint.read import CheckpointError, read
from ldm.checkpoint.repeated import gathered
from ldm.checkpoint.write import DTYPES, write

ABOUT = {"config": json.dumps({"target": "Größe", "params": {"a": 1}}), "seed": "0"}


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    """One of every dtype and odd shape."""
    torch.manual_seed(0)
    many = {f"of.{name}": (torch.randn(3, 5) * 9).to(dtype) for dtype, name in DTYPES.items()}
    return many | {"nothing": torch.zeros(0, 4), "one": torch.tensor(7.0), "more": torch.randn(17, 31).t()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    def raw(tensor: Tensor) -> bytes:
        return bytes(checksums.as_bytes(tensor.contiguous()))

    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and raw(a[k]) == raw(b[k]) for k in a
    )


def test_what_is_written_is_what_others_read(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    write(tmp_path / "a.safetensors", tensors, ABOUT)
    assert same(load_file(tmp_path / "a.safetensors"), tensors)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert ABOUT.items() <= file.metadata().items() and file.metadata()["checked"] == "crc32"
    found = read(tmp_path / "a.safetensors")
    assert same(found.tensors, tensors) and found.metadata == ABOUT


def test_the_tensors_lie_as_the_library_lays_them(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    kept = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor.numel()}
    write(tmp_path / "a.safetensors", kept)
    save_file(kept, tmp_path / "b.safetensors")
    a, b = ((tmp_path / f"{name}.safetensors").read_bytes() for name in "ab")
    numbers = sum(tensor.numel() * tensor.element_size() for tensor in kept.values())
    assert a[-numbers:] == b[-numbers:]


def test_each_of_1000_flipped_bits_is_found(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = tmp_path / "a.safetensors"
    write(path, tensors, ABOUT)
    whole, rng = path.read_bytes(), random.Random(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    places = [(where, bit) for where in range(header) for bit in range(8)]  # of length, names, metadata, checksums
    rng.shuffle(places)
    places = places[:500] + [(rng.randrange(header, len(whole)), rng.randrange(8)) for _ in range(500)]
    places += [(whole.index(word) + i, 0) for word in (b'"checksums', b'"checked', b'"crc32') for i in range(len(word))]
    missed = []
    for where, bit in places:
        damaged = bytearray(whole)
        damaged[where] ^= 1 << bit
        path.write_bytes(damaged)
        try:
            read(path)
            missed.append((where, bit))
        except CheckpointError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
    assert missed == [] and len(places) > 1000


def test_the_damaged_tensors_are_named(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = tmp_path / "a.safetensors"
    write(path, tensors, ABOUT)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"a\.safetensors: of\.BOOL is not what was written .* get it again"):
        read(path)
    path.write_bytes(whole[:-16] + whole[-8:] + whole[-16:-8])  # a swap, which no sum would see
    with pytest.raises(CheckpointError, match="is not what was written"):
        read(path)


def test_an_outline_reads_no_weight_but_holds_the_header_to_its_checksum(tmp_path: Path) -> None:
    path, whole = tmp_path / "a.safetensors", weights_path("scenes-x4").read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert outline(path).image_size == outline("scenes-x4").image_size
    with pytest.raises(CheckpointError, match="is not what was written"):
        load(path)
    path.write_bytes(whole.replace(b"image_size", b"image_sise", 1))
    with pytest.raises(CheckpointError, match="its header is not what was written"):
        outline(path)


@pytest.mark.parametrize("gone", ["checksums", "checked"])
def test_a_file_that_lost_one_of_its_two_marks_is_no_foreign_one(
    tmp_path: Path, tensors: dict[str, Tensor], gone: str
) -> None:
    path = tmp_path / "a.safetensors"
    write(path, tensors)
    path.write_bytes(path.read_bytes().replace(f'"{gone}"'.encode(), b'"' + b"x" * len(gone) + b'"'))
    with pytest.raises(CheckpointError, match="its header is not what was written"):
        read(path)


def test_foreign_files_have_none_and_are_read(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    kept = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(kept, tmp_path / "b.safetensors", metadata={"format": "pt"})
    found = read(tmp_path / "b.safetensors")
    assert same(found.tensors, kept) and found.metadata == {"format": "pt"}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_carry_them_and_written_again_are_the_same(tmp_path: Path, name: str) -> None:
    with safe_open(weights_path(name), "pt") as file:
        assert {"checksums", "checked"} <= file.metadata().keys()
    found = read(weights_path(name))
    write(tmp_path / "again.safetensors", gathered(found.tensors), found.metadata)
    assert (tmp_path / "again.safetensors").read_bytes() == weights_path(name).read_bytes()
