"""The one way a file gets onto the disk: files and folders that are whole or not there, whenever a process is killed.

What is under way has a hidden name that is locked as long as its writer lives (`owned`), so that the next start knows
what a dead one left and removes it (`sweep`).
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows: `sweep` goes by age alone
    fcntl = None  # type: ignore[assignment]

_STALE = 600.0  # seconds: where there are no locks, an older part of a file has no owner any more
_OURS = re.compile(r"\..*(\.[0-9a-f]{16}\.part|\d{5,}\.claim)|\.names\.claim")  # leftovers that `sweep` may touch
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@contextmanager
def atomic(path: str | Path, *, exclusive: bool = False) -> Iterator[BinaryIO]:
    """A binary file to write that takes the place of `path` only when the block ends without an error.

    The bytes go to a hidden neighbour first and reach the disk before the name does, so that a kill or a power cut
    leaves the old file or the new one, never a half. exclusive: FileExistsError where there is an old one.
    """
    path = Path(path)
    sweep(path.parent, path.name)
    part = _part(path)
    try:
        with owned(part) as handle, os.fdopen(handle, "wb", closefd=False) as file:
            yield file
            file.flush()
            os.fsync(handle)
            _link(part, path) if exclusive else os.replace(part, path)
        _sync(path.parent)
    except OSError as error:
        if error.errno in _FULL and error.filename is None:  # no system says whose bytes had no room
            error.filename = str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A folder to fill that becomes `path`, which must not be there, only when the block ends without an error."""
    path = Path(path)
    sweep(path.parent, path.name)
    part = _part(path)
    part.mkdir()
    handle = _locked(part)
    try:
        yield part
        for file in sorted(part.rglob("*")):
            _sync(file)
        _sync(part)
        os.rename(part, path)  # an error if there is a folder with something in it
        _sync(path.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    finally:
        if handle is not None:
            os.close(handle)


def usable_folder(path: str | Path) -> Path:
    """The folder, made if need be, tried, and rid of what killed processes left. ValueError if nothing can be written
    there: to be asked before the work is done that is saved there."""
    path = Path(path)
    with _refused(f"{path}: files cannot be written there", "choose another folder"):
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
        sweep(path)
    return path


def check_writable(path: str | Path) -> None:
    """The same for the name of one file, or of a folder to be made, in a folder that is there already."""
    path = Path(path)
    with _refused(f"{path}: it cannot be written", "choose another name"):
        if path.exists() and not path.is_file():
            raise ValueError("it is there, and no file")
        with owned(part := _part(path)):
            part.unlink()


def regular_size(path: str | Path) -> int:
    """Bytes in a file. ValueError for a pipe, a device, …, which may have no end, and may never be filled.

    OSError as `stat` has it, and ValueError too for a path that no file can have.
    """
    status = os.stat(path)
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise ValueError("it is a pipe or a device, not a file")
    return status.st_size


def write_text(path: str | Path, text: str) -> None:
    """The text as UTF-8, atomically."""
    with atomic(path) as file:
        file.write(text.encode())


def append_line(path: str | Path, line: str) -> None:
    """For logs that grow: one whole line in one write, on the disk when this returns.

    A kill leaves the line or nothing of it. A power cut may leave a part of the last line, which readers drop.
    """
    handle = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o666)
    try:
        os.write(handle, f"{line}\n".encode())
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def owned(path: Path) -> Iterator[int]:
    """A new file's descriptor; the file is locked inside the block. FileExistsError if there is one of this name."""
    while True:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        _lock(handle, wait=True)
        if _is(path, handle):
            break
        os.close(handle)  # it was swept in the moment before it was locked
    try:
        yield handle
    finally:
        os.close(handle)


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """A name that is ours inside the block: an empty file. FileExistsError if it is another living process's."""
    if path.exists():
        _remove_if_dead(path)
    with owned(path):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left half done in this folder, or of one name in it; not what living ones are at."""
    ours = _OURS if name is None else re.compile(rf"\.{re.escape(name)}\.[0-9a-f]{{16}}\.part")
    for entry in os.scandir(folder):
        if ours.fullmatch(entry.name):
            _remove_if_dead(Path(entry.path))


@contextmanager
def _refused(what: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: NUL in it
        why = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{what} ({why}); {remedy}") from error


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")


def _remove_if_dead(path: Path) -> None:
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # its owner has just finished; or, on Windows, a folder
        return
    try:
        is_dead = _lock(handle)
        if is_dead is None:
            is_dead = time.time() - os.fstat(handle).st_mtime > _STALE
        if is_dead and _is(path, handle):  # while it is locked, nobody else takes it away
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _locked(folder: Path) -> int | None:
    """A folder's descriptor, locked until it is closed or the process ends; None where folders have none."""
    if fcntl is None:
        return None
    handle = os.open(folder, os.O_RDONLY)
    _lock(handle, wait=True)
    return handle


def _is(path: Path, handle: int) -> bool:
    """Whether the open file is still the one of this name."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.stat(path), os.fstat(handle))
    return False


def _lock(handle: int, wait: bool = False) -> bool | None:
    """Whether the lock is ours now; None where this system, or this file system, has none."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _link(part: Path, path: Path) -> None:
    """Give it its name unless that is taken; os.replace would not ask."""
    try:
        os.link(part, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        os.replace(part, path)


def _sync(path: Path) -> None:
    """A file's bytes, or a folder's names, onto the disk."""
    if os.name == "nt":  # which opens no folder
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
