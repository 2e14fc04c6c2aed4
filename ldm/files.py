"""Files and folders that are whole or not there."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_STALE = 600.0  # seconds: writing one file takes far less, so an older part of one has no owner any more


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write that takes the place of `path` only when the block ends without an error.

    The bytes go to a hidden neighbour first and reach the disk before the name does, so that a kill or a power cut
    leaves the old file or the new one, never a half.
    """
    path = Path(path)
    handle, part = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(part, 0o666 & ~_umask())
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A folder to fill that becomes `path`, which must not be there, only when the block ends without an error."""
    path = Path(path)
    part = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    try:
        yield part
        for file in sorted(part.rglob("*")):
            handle = os.open(file, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
        os.chmod(part, 0o777 & ~_umask())
        os.rename(part, path)  # an error if there is a folder with something in it
    except BaseException:
        shutil.rmtree(part)
        raise


def sweep(folder: Path, *patterns: str) -> None:
    """Remove what killed processes left half done: files of these names that nobody has touched for a while."""
    for pattern in patterns:
        for leftover in folder.glob(pattern):
            with suppress(FileNotFoundError):  # its owner has just finished
                if time.time() - leftover.stat().st_mtime > _STALE:
                    leftover.unlink()


def _umask() -> int:
    """The process's file mode mask, which mkstemp ignores."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
