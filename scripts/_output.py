"""While drawing: the progress bar, files written as pictures are finished, and stopping politely."""

from __future__ import annotations

import argparse
import math
import signal
import sys
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from operator import itemgetter
from pathlib import Path
from types import FrameType
from typing import Any

from _ranks import Ranks
from _record import describe
from PIL import Image
from tqdm import tqdm

from ldm import images
from ldm.generate import Progress, Result
from ldm.items import Item
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.png import Folder, write_png
from ldm.settings import Settings

GRID_LIMIT = 100  # pictures in one grid; more make several


class Output:
    """Saves each picture at once, keeps the intermediate ones until then, and collects the grid."""

    def __init__(
        self,
        options: argparse.Namespace,
        folder: Folder,
        model: LatentDiffusion,
        made_by: dict[str, Any],
        only: int | None,
        ranks: Ranks | None = None,
        places: Sequence[int] | None = None,
        first: int | None = None,
        beside: bool = False,
    ) -> None:
        """`only`: the place in the batch of the one picture to keep, for --reproduce.

        ranks: who share the job; `places` in it are those of this process's pictures, and `first` the index of the
        job's first picture. beside: save while the next pictures are drawn, which needs another device than the CPU.
        """
        self._soon = Soon(beside)
        self.ranks, self._places, self._first = Ranks() if ranks is None else ranks, places, first
        self._drawn = self.pictures = 0  # by this process, and by all of whom it knows
        self.options, self.folder, self.model, self.made_by, self.only = options, folder, model, made_by, only
        self.paths: list[Path] = []
        self.grids: list[Path] = []
        self.sheets: list[Path] = []
        self._for_grid: list[Result] = []
        self._frames: list[list[tuple[str, Image.Image]]] = []  # of each picture in the batch: (caption, picture)
        self._done = 0  # steps of the batch

    def step(self, progress: Progress) -> None:
        """Decode the estimates of a step, if it is one to keep."""
        every, done = self.options.save_intermediates, progress.step.i + 1
        before, self._done = self._done, done % progress.steps  # a sampler may skip some
        if before == 0:
            self._frames = [[] for _ in progress.batch]
        if every and (done // every > before // every or done == progress.steps):
            for frames, x0 in zip(self._frames, progress.step.x0.split(1), strict=True):
                frames.append((f"step {done}/{progress.steps}", images.to_images(self.model.decode(x0))[0]))

    def picture(self, result: Result) -> None:
        """Save a finished picture, and how it came to be."""
        number, self._drawn = self._drawn, self._drawn + 1
        self.pictures += 1
        if self.only not in (None, result.index):
            return
        index = None if self._first is None or self._places is None else self._first + self._places[number]
        frames = self._frames[result.index] if self.options.save_intermediates and self._frames else []
        self._soon(self._save, result, index, frames)

    def _save(self, result: Result, index: int | None, frames: Sequence[tuple[str, Image.Image]]) -> None:
        if not self.options.skip_save:
            info = describe(result, self.made_by)
            path = self.folder.save(result.image, f"{{index:05}}-{result.seed}", info, index)
            self.paths.append(path)
            if frames:
                self._save_frames(path.with_name(f"{path.stem}-steps"), frames, result)
        if not self.options.skip_grid:
            self._for_grid.append(result)
            if len(self._for_grid) == GRID_LIMIT and self.ranks.count == 1:
                self._save_grid()

    def finish(self) -> None:
        """Save the grid, and say where everything is; of several processes the first does when all are done."""
        self._soon.wait()
        if self.ranks.count > 1 and not self._collect():
            return
        while len(self._for_grid) > 1:
            self._save_grid()
        for one, many, paths in (
            ("picture", "pictures", self.paths),
            ("how it came to be", "sheets of how they came to be", self.sheets),
            ("grid", "grids", self.grids),
        ):
            if paths:
                print(f"{one}: {paths[0]}" if len(paths) == 1 else f"{len(paths)} {many}: {paths[0]} … {paths[-1]}")
        if not self.paths and not self.grids:
            print("nothing was saved")

    def _collect(self) -> bool:
        """What all processes have drawn, in the job's order; whether this is the one that has it."""
        assert self._places is not None
        places = self._places[: self._drawn]
        own = (places, self.paths, self.sheets, self._for_grid)
        found = self.ranks.gathered([list(zip(places, each, strict=False)) for each in own])
        if self.ranks.rank != 0:
            return False
        together = [sorted(sum(each, []), key=itemgetter(0)) for each in zip(*found, strict=True)]
        done, self.paths, self.sheets, self._for_grid = ([one for _, one in each] for each in together)
        self.pictures = len(done)
        return True

    def _save_grid(self) -> None:
        columns = self.options.n_rows or (self.options.n_samples if self.options.n_samples > 1 else None)
        shown, self._for_grid = self._for_grid[:GRID_LIMIT], self._for_grid[GRID_LIMIT:]
        info = describe(shown[0], self.made_by, shows="grid")
        grid = images.grid([result.image for result in shown], columns)
        self.grids.append(self.folder.save(grid, "grid-{index:05}", info))

    def _save_frames(self, folder: Path, frames: Sequence[tuple[str, Image.Image]], result: Result) -> None:
        folder.mkdir()  # the index in its name is ours alone
        for caption, frame in frames:
            name = f"{int(caption.split()[1].split('/')[0]):04}.png"
            write_png(frame, folder / name, describe(result, self.made_by, shows=caption))
        sheet = images.grid([images.captioned(frame, caption) for caption, frame in frames])
        write_png(sheet, folder / "sheet.png", describe(result, self.made_by, shows="contact sheet"))
        self.sheets.append(folder / "sheet.png")


class Soon:
    """Makes calls at once, or `beside` what goes on: one after the other, in a thread.

    An error of one is raised by a later call or by `wait`. What waits when the program ends is done first.
    """

    MOST = 16  # that wait, each with its picture in memory

    def __init__(self, beside: bool) -> None:
        self._thread = ThreadPoolExecutor(1) if beside else None
        self._waiting: deque[Future[None]] = deque()

    def __call__(self, function: Callable[..., None], *arguments: object) -> None:
        if self._thread is None:
            return function(*arguments)
        while self._waiting and (self._waiting[0].done() or len(self._waiting) == self.MOST):
            self._waiting.popleft().result()
        self._waiting.append(self._thread.submit(function, *arguments))

    def wait(self) -> None:
        while self._waiting:
            self._waiting.popleft().result()


class Bar:
    """`step 12/30 |████      | 0:05 left, images 1/4`: over all steps of all batches, on stderr."""

    def __init__(self, settings: Settings, items: Sequence[Item], batch_size: int, hidden: bool = False) -> None:
        self.pictures, self._total, self._done = 0, len(items), 0
        self._bar = tqdm(
            total=settings.sampled_steps * math.ceil(len(items) / batch_size),
            desc=f"step 0/{settings.sampled_steps}",
            bar_format="{desc} |{bar}| {elapsed} gone, {remaining} left{postfix}",
            dynamic_ncols=True,
            disable=hidden,
        )
        self._bar.set_postfix_str(f"images 0/{self._total}")

    def step(self, progress: Progress) -> None:
        done = progress.step.i + 1
        self._bar.set_description_str(f"step {done}/{progress.steps}", refresh=False)
        self._bar.update(done - self._done)  # a sampler may skip some
        self._done = done % progress.steps

    def picture(self) -> None:
        self.pictures += 1
        self._bar.set_postfix_str(f"images {self.pictures}/{self._total}")

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


class Interrupts:
    """The first Ctrl-C or SIGTERM sets `asked`, and the caller finishes the batch under way; a second stops at once."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Interrupts:
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        tqdm.write("stopping when the pictures under way are saved; once more stops now", file=sys.stderr)
