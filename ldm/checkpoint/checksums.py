"""Our own files say, in their metadata, what every byte of them must be: one CRC-32 per tensor, and one of the header.

A CRC-32 finds every error of a single bit, every burst of up to 32, and all but one of 4 billion others. It is no
signature: who changes a file on purpose can change its checksums.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

KEY = "checksums"  # of the header, with eight zeros for this one, and of the tensors, in the order of their bytes
MARK = {"checked": "crc32"}  # beside it, so that a file whose KEY is damaged does not look like a foreign one
_THREADS = 4
_WORTH_THREADS = 1 << 20  # numbers


def in_order(entries: Mapping[str, Any]) -> list[str]:
    """Names of a header's tensors, in the order of their bytes."""
    return sorted(entries, key=lambda name: (*entries[name]["data_offsets"], name))


def of_tensors(tensors: list[Tensor]) -> list[int]:
    """zlib lets other threads run, and a disk is faster asked by several."""
    if sum(tensor.numel() for tensor in tensors) < _WORTH_THREADS:
        return [zlib.crc32(as_bytes(tensor)) for tensor in tensors]
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda tensor: zlib.crc32(as_bytes(tensor)), tensors))


def as_bytes(tensor: Tensor) -> memoryview:
    """Its memory, uncopied; the tensor is contiguous and on the CPU."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def text(header_crc: int, crcs: list[int]) -> str:
    return " ".join(f"{crc:08x}" for crc in (header_crc, *crcs))


def of_header(header: bytes, written: str) -> int:
    """Of a header, and its length before it, that holds `written`, with its own eight digits as zeros."""
    blank = header.replace(written.encode(), b"0" * 8 + written[8:].encode(), 1)
    return zlib.crc32(len(header).to_bytes(8, "little") + blank)


def fault(
    header: bytes, entries: Mapping[str, Any], metadata: Mapping[str, Any], tensors: Mapping[str, Tensor] | None
) -> str | None:
    """What is not as it was written, in words; None if all is, or if the file is not one of ours.

    tensors: None holds the header alone against its checksum, without a look at them.
    """
    written, marked = metadata.get(KEY), any(metadata.get(key) == value for key, value in MARK.items())
    if written is None and not marked:
        return None
    if not isinstance(written, str) or not marked or written != text(of_header(header, written), _listed(written)):
        return "its header"
    if tensors is None:
        return None
    names = in_order(entries)
    expected, found = _listed(written), of_tensors([tensors[name] for name in names])
    if len(expected) != len(found):
        return "its header"
    damaged = [name for name, a, b in zip(names, expected, found, strict=True) if a != b]
    return None if not damaged else f"{damaged[0]}{f' and {len(damaged) - 1} more tensors' if damaged[1:] else ''}"


def _listed(written: str) -> list[int]:
    """The tensors' checksums; what is none of them is no number."""
    try:
        return [int(word, 16) for word in written.split()[1:]]
    except ValueError:
        return []
