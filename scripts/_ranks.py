"""A job that several processes share, as torchrun starts them: `torchrun --nproc-per-node 4 scripts/txt2img.py …`.

Each process draws every n-th batch, whole, so that its pictures are those of one process bit for bit; the first speaks
for all.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _manifest import Job

T = TypeVar("T")
PATIENCE = timedelta(days=30)  # for each other: a share of a large job takes long


def launched() -> tuple[int, int]:
    """(rank, how many there are), by the environment; (0, 1) for a process that is alone."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


class Ranks:
    """A context: inside, the processes of a job know each other."""

    def __init__(self) -> None:
        self.rank, self.count = launched()

    def __enter__(self) -> Ranks:
        if self.count > 1:
            import torch

            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", self.rank)) % torch.cuda.device_count())
            torch.distributed.init_process_group("gloo", timeout=PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        if self.count > 1:
            import torch

            torch.distributed.destroy_process_group()

    def shared(self, value: T) -> T:
        """What the first process gives, for all."""
        if self.count == 1:
            return value
        import torch

        box: list[Any] = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def gathered(self, value: T) -> list[T]:
        """What each gives, for the first when all are there; nothing for the others."""
        if self.count == 1:
            return [value]
        import torch

        box: list[Any] | None = [None] * self.count if self.rank == 0 else None
        torch.distributed.gather_object(value, box, dst=0)
        return box or []

    def told(self, options: argparse.Namespace) -> argparse.Namespace:
        """The first one's, whose seed may be random; it alone resumes, and watches where time goes."""
        options = self.shared(options)
        if self.rank > 0:
            options.resume, options.profile = False, None
        return options

    @contextmanager
    def entered(self, job: Job) -> Iterator[Job]:
        """Inside, the first process holds the job, and each has the `places` that are its own."""
        with job if self.rank == 0 else nullcontext():
            path, job.there, places = self.shared((job.path, job.there, job.places))
            if self.rank > 0 and path is not None:
                job.take(path)
            job.places = self.own(places, job.batch_size)
            yield job

    def own(self, places: Sequence[int], batch_size: int) -> list[int]:
        """Of the places of whole batches, every n-th batch's."""
        return [place for i, place in enumerate(places) if i // batch_size % self.count == self.rank]
