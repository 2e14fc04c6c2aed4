"""Tensors -> a .safetensors file: whole or not there, with checksums in it that `read` verifies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ldm.checkpoint import checksums
from ldm.checkpoint.read import CheckpointError
from ldm.files import atomic

DTYPES = {  # in the order in which the safetensors library lays them
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    exclusive: bool = False,
) -> None:
    """Ordered by dtype, then by name; exclusive as in `atomic`. CheckpointError for a dtype that the format has not."""
    order = list(DTYPES)
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    odd = next((name for name, tensor in kept.items() if tensor.dtype not in DTYPES), None)
    if odd is not None:
        raise CheckpointError(f"{path}: {odd} is of {kept[odd].dtype}, which no .safetensors file holds; convert it")
    entries, end = {}, 0
    for name in sorted(kept, key=lambda name: (order.index(kept[name].dtype), name)):
        start, end = end, end + kept[name].numel() * kept[name].element_size()
        entries[name] = {
            "dtype": DTYPES[kept[name].dtype],
            "shape": list(kept[name].shape),
            "data_offsets": [start, end],
        }
    names = checksums.in_order(entries)
    header = _header(entries, metadata or {}, checksums.of_tensors([kept[name] for name in names]))
    with atomic(path, exclusive=exclusive) as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in names:
            file.write(checksums.as_bytes(kept[name]))


def _header(entries: Mapping[str, object], metadata: Mapping[str, str], crcs: list[int]) -> bytes:
    def padded(header_crc: int) -> bytes:
        about = {**metadata, **checksums.MARK, checksums.KEY: checksums.text(header_crc, crcs)}
        plain = json.dumps({"__metadata__": about, **entries}, ensure_ascii=False, separators=(",", ":")).encode()
        return plain + b" " * (-len(plain) % 8)

    return padded(checksums.of_header(padded(0), checksums.text(0, crcs)))
