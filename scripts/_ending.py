"""How a command ends when it is not by itself: Ctrl-C, SIGTERM, nobody who reads, a full disk, bad input."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

UNREAD = 141  # the exit status that a shell gives of what SIGPIPE ends
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def ended(work: Callable[[], int], argv: Sequence[str] | None = None) -> int:
    """The exit status of a whole script: what `work` returns; 130 when stopped, 141 when nobody reads any more; with a
    sentence, 2 for a mistake of the user (ValueError) and 1 for a failure, where --debug shows the traceback."""
    with terminable():
        try:
            status = work()
        except SystemExit as error:  # --help, or a mistake that argparse has told of
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            return 130
        except BrokenPipeError:
            return hushed()
        except (ValueError, OSError, RuntimeError) as error:
            if "--debug" in (sys.argv if argv is None else argv):
                raise
            return told(error)
    return status if flushed() else hushed(status or UNREAD)


def told(error: Exception) -> int:
    """What went wrong, in one sentence on stderr. The exit status."""
    if isinstance(error, ValueError):
        print(f"error: {error}", file=sys.stderr)
        return 2
    why: object = full_disk(error, "then start it again") or error
    if isinstance(error, OSError) and why is error and error.filename is not None:
        why = f"{error.filename}: {error.strerror}"  # without the number
    print(f"failed: {str(why) or type(error).__name__}", file=sys.stderr)
    return 1


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM is as Ctrl-C, also while a model is loaded: KeyboardInterrupt. (While drawing, see `Interrupts`.)"""
    if threading.current_thread() is not threading.main_thread() or (
        signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL  # somebody has other plans
    ):
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def flushed() -> bool:
    """Whether all that was printed has been read, or will be."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return False
    return True


def hushed(status: int = UNREAD) -> int:
    """Nobody reads any more (`| head`), and Python would complain of it once more at its end. The exit status."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # no file, under pytest
            os.dup2(null, stream.fileno())
    os.close(null)
    return status


def full_disk(error: BaseException, remedy: str) -> str | None:
    """The sentence, if that is it. A file is whole before it has a name, so nothing has to be cleaned up."""
    if not isinstance(error, OSError) or error.errno not in FULL:
        return None
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}the disk is full; what is finished is whole and stays: make room, {remedy}"
