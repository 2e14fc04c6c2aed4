"""While drawing: the progress bar, files written as pictures are finished, and stopping politely."""

from __future__ import annotations

import argparse
import math
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from _record import describe
from PIL import Image
from tqdm import tqdm

from ldm import images
from ldm.generate import Progress, Result
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.png import Folder, write_png
from ldm.request import Item, Settings

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
    ) -> None:
        """`only`: the place in the batch of the one picture to keep, for --reproduce."""
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
        if self.only not in (None, result.index):
            return
        if not self.options.skip_save:
            path = self.folder.save(result.image, f"{{index:05}}-{result.seed}", describe(result, self.made_by))
            self.paths.append(path)
            if self.options.save_intermediates and self._frames:
                self._save_frames(path.with_name(f"{path.stem}-steps"), self._frames[result.index], result)
        if not self.options.skip_grid:
            self._for_grid.append(result)
            if len(self._for_grid) == GRID_LIMIT:
                self._save_grid()

    def finish(self) -> None:
        """Save the grid, and say where everything is."""
        if len(self._for_grid) > 1:
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

    def _save_grid(self) -> None:
        columns = self.options.n_rows or (self.options.n_samples if self.options.n_samples > 1 else None)
        info = describe(self._for_grid[0], self.made_by, shows="grid")
        grid = images.grid([result.image for result in self._for_grid], columns)
        self.grids.append(self.folder.save(grid, "grid-{index:05}", info))
        self._for_grid = []

    def _save_frames(self, folder: Path, frames: Sequence[tuple[str, Image.Image]], result: Result) -> None:
        folder.mkdir()  # the index in its name is ours alone
        for caption, frame in frames:
            name = f"{int(caption.split()[1].split('/')[0]):04}.png"
            write_png(frame, folder / name, describe(result, self.made_by, shows=caption))
        sheet = images.grid([images.captioned(frame, caption) for caption, frame in frames])
        write_png(sheet, folder / "sheet.png", describe(result, self.made_by, shows="contact sheet"))
        self.sheets.append(folder / "sheet.png")


class Bar:
    """`step 12/30 |████      | 0:05 left, images 1/4`: over all steps of all batches, on stderr."""

    def __init__(self, settings: Settings, items: Sequence[Item], batch_size: int) -> None:
        self.pictures, self._total, self._done = 0, len(items), 0
        self._bar = tqdm(
            total=settings.sampled_steps * math.ceil(len(items) / batch_size),
            desc=f"step 0/{settings.sampled_steps}",
            bar_format="{desc} |{bar}| {elapsed} gone, {remaining} left{postfix}",
            dynamic_ncols=True,
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
