"""Files that are whole or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


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


def _umask() -> int:
    """The process's file mode mask, which mkstemp ignores."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
