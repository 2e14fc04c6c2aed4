"""What verifying checksums costs: seconds to read 2.15 GB, from the disk and from memory; and GB/s of several codes."""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import _installed  # noqa: F401
import torch
from _ending import ended

from ldm.checkpoint import checksums, read
from ldm.checkpoint.fit import check_finite
from ldm.checkpoint.write import write

CODES: dict[str, Callable[[bytes], object]] = {
    "crc32": zlib.crc32,
    "adler32": zlib.adler32,
    "blake2b": lambda block: hashlib.blake2b(block).digest(),
    "sha256": lambda block: hashlib.sha256(block).digest(),
}


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    block = os.urandom(1 << 26) * 4
    for name, code in CODES.items():
        print(f"{name:8} {len(block) / min(seconds(lambda code=code: code(block)) for _ in range(3)) / 1e9:.2f} GB/s")
    with tempfile.TemporaryDirectory() as folder:
        path, pool = Path(folder) / "model.safetensors", torch.randn(1 << 24).half()
        write(path, {f"tensor.{i}": pool for i in range(64)})
        for cold in (True, False):
            for verified in (False, True):
                best = min(loading(path, cold, verified) for _ in range(3))
                where = "the disk" if cold else "memory"
                print(f"from {where}, {'verified' if verified else 'not verified'}: {best:.2f} s")


def loading(path: Path, cold: bool, verified: bool) -> float:
    """Read, and look for NaN, as `load` does."""
    if cold:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    fault = checksums.fault
    try:
        if not verified:
            checksums.fault = lambda *_: None
        return seconds(lambda: check_finite(read.read(path).tensors, path))
    finally:
        checksums.fault = fault


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    raise SystemExit(ended(main))
