"""Weights lie in memory as their file on the disk, read page by page as they are used. What has been cast is used up:
its pages are given back, or a float16 file cast to float32 would take the space of both."""

from __future__ import annotations

import ctypes
import mmap
from bisect import bisect_right
from contextlib import suppress
from operator import itemgetter
from pathlib import Path

from torch import Tensor

Span = tuple[int, int]  # first address, and the one after the last


class MappedFiles:
    """The files that this process has mapped now, where the system tells (Linux); elsewhere none."""

    def __init__(self) -> None:
        self.mappings: list[Span] = []
        with suppress(OSError):
            lines = Path("/proc/self/maps").read_text().splitlines()
            self.mappings = sorted(_addresses(line) for line in lines if _is_of_file(line))

    def give_back(self, tensor: Tensor) -> bool:
        """Drop the whole pages of a tensor that is mapped and that nothing has written to: they are read again from the
        file if they are asked for again. Whether there were any."""
        start, stop = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        start, stop = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, stop // mmap.PAGESIZE * mmap.PAGESIZE
        if start >= stop or not tensor.is_contiguous() or not self.has(start, stop):
            return False
        madvise = ctypes.CDLL(None).madvise
        return madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), mmap.MADV_DONTNEED) == 0

    def has(self, start: int, stop: int) -> bool:
        number = bisect_right(self.mappings, start, key=itemgetter(0))  # of those that begin no later
        return number > 0 and stop <= self.mappings[number - 1][1]


def _addresses(line: str) -> Span:
    """Of a line of proc(5)'s maps: address, permissions, offset, device, inode, path."""
    first, last = line.split(maxsplit=1)[0].split("-")
    return int(first, 16), int(last, 16)


def _is_of_file(line: str) -> bool:
    return line.split(maxsplit=5)[4] != "0"
