"""While drawing: the progress bar, files written as pictures are finished, and stopping politely."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from _manifest import GRID_LIMIT, Job
from _ranks import Ranks
from _record import describe
from PIL import Image
from tqdm import tqdm

from ldm import images
from ldm.files import atomic_folder
from ldm.finite import check_finite
from ldm.generate import Progress, Result
from ldm.items import Item
from ldm.memory import pixels_of
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.png import write_png
from ldm.settings import Settings


class Output:
    """Saves each picture at once, keeps the intermediate ones until then, and collects the grid."""

    def __init__(
        self,
        options: argparse.Namespace,
        job: Job,
        model: LatentDiffusion,
        settings: Settings,
        made_by: dict[str, Any],
        only: int | None,
        ranks: Ranks,
    ) -> None:
        """`only`: the place in the job of the one picture to keep, for --reproduce. ranks: who share the job."""
        self.ranks, self.drawn, self.asked = ranks, 0, len(job.todo)
        self.options, self.job, self.model, self.settings, self.only = options, job, model, settings, only
        self.made_by = made_by if job.digest is None else made_by | {"job": job.digest}
        self.paths: list[Path] = []
        self.grids: list[Path] = []
        self.sheets: list[Path] = []
        self._for_grid: dict[int, Image.Image] = {}  # by place
        self._frames: list[list[tuple[str, Image.Image]]] = []  # of each picture in the batch: (caption, picture)
        self._done = 0  # steps of the batch
        self._batch: tuple[Item, ...] = ()
        if job.there:
            print(f"{job.path}: {len(job.there)} of {len(job.items)} pictures are there already")

    def step(self, progress: Progress) -> None:
        """Decode the estimates of a step, if it is one to keep."""
        every, done = self.options.save_intermediates, progress.step.i + 1
        if progress.batch is not self._batch:  # another, or a part of one that memory did not suffice for
            self._batch, self._done, self._frames = progress.batch, 0, [[] for _ in progress.batch]
        before, self._done = self._done, done  # a sampler may skip some
        if every and (done // every > before // every or done == progress.steps):
            check_finite(progress.step.x0, f"the estimate of step {done} of {progress.steps}", self.model.dtype)
            for frames, x0 in zip(self._frames, progress.step.x0.split(1), strict=True):
                pixels = pixels_of(self.model, x0, None, f"the autoencoder's decoder after step {done}", note)
                frames.append((f"step {done}/{progress.steps}", images.to_images(pixels)[0]))

    def picture(self, result: Result, place: int) -> None:
        """Save a finished picture, unless it was there before, and how it came to be."""
        self.drawn += 1
        if self.only not in (None, place):
            return
        if not self.options.skip_save and place not in self.job.there:
            self._save(result, place)
        if not self.options.skip_grid and (self.ranks.count == 1 or self.options.skip_save):
            self._for_grid[place] = result.image
            if (place + 1) % GRID_LIMIT == 0:
                self._save_grids()

    def _save(self, result: Result, place: int) -> None:
        with self.job.stem(place) as stem:
            path = self.job.folder.path / f"{stem}.png"
            if self.options.save_intermediates and self._frames:  # first: who has the picture has all of it
                self._save_frames(path.with_name(f"{stem}-steps"), self._frames[result.index], result)
            write_png(result.image, path, describe(result, self.made_by), exclusive=True)
        self.paths.append(path)

    def finish(self) -> None:
        """Save the grid, and say where everything is; of several processes the first does, when all are done."""
        self._collect()
        if self.ranks.rank > 0:
            return
        self._save_grids()
        for one, many, paths in (
            ("picture", "pictures", self.paths),
            ("how it came to be", "sheets of how they came to be", self.sheets),
            ("grid", "grids", self.grids),
        ):
            if paths:
                print(f"{one}: {paths[0]}" if len(paths) == 1 else f"{len(paths)} {many}: {paths[0]} … {paths[-1]}")
        if not self.paths and not self.grids:
            print("nothing was saved")

    def _collect(self) -> None:
        """What the other processes have drawn is told to the first: pictures by their names, where they have any."""
        if found := self.ranks.gathered((self.drawn, self.asked, self.paths, self.sheets, self._for_grid)):
            drawn, asked, paths, sheets, pictures = zip(*found, strict=True)
            self.drawn, self.asked = sum(drawn), sum(asked)
            self.paths, self.sheets = sorted(sum(paths, [])), sorted(sum(sheets, []))
            self._for_grid = {place: image for each in pictures for place, image in each.items()}
        if self.ranks.count > 1:
            self.job.look()

    def _save_grids(self) -> None:
        """Those of which every picture is here, or on the disk."""
        columns = self.options.n_rows or (self.options.n_samples if self.options.n_samples > 1 else None)
        for path, places in self.job.missing_grids():
            if all(place in self._for_grid or place in self.job.there for place in places):
                shown = [
                    self._for_grid.pop(place, None) or images.load_image(self.job.picture(place)) for place in places
                ]
                size, start = self.job.batch_size, places[0] // self.job.batch_size * self.job.batch_size
                batch = tuple(self.job.items[start : start + size])
                first = Result(shown[0], self.settings, batch, places[0] - start)
                write_png(
                    images.grid(shown, columns), path, describe(first, self.made_by, shows="grid"), exclusive=True
                )
                self.grids.append(path)

    def _save_frames(self, folder: Path, frames: Sequence[tuple[str, Image.Image]], result: Result) -> None:
        if not folder.exists():  # from a time when the picture itself was not finished
            with atomic_folder(folder) as part:
                for caption, frame in frames:
                    name = f"{int(caption.split()[1].split('/')[0]):04}.png"
                    write_png(frame, part / name, describe(result, self.made_by, shows=caption))
                sheet = images.grid([images.captioned(frame, caption) for caption, frame in frames])
                write_png(sheet, part / "sheet.png", describe(result, self.made_by, shows="contact sheet"))
        self.sheets.append(folder / "sheet.png")


def note(text: str) -> None:
    """A line above the progress bar."""
    tqdm.write(text, file=sys.stderr)


class Bar:
    """`step 12/30 |████      | 0:05 left, images 1/4`: over all steps of all batches, on stderr."""

    def __init__(self, settings: Settings, items: Sequence[Item], hidden: bool = False) -> None:
        self.pictures, self._total = 0, len(items)
        self._bar = tqdm(
            total=settings.sampled_steps * len(items),  # steps of single pictures, however many are drawn at once
            desc=f"step 0/{settings.sampled_steps}",
            bar_format="{desc} |{bar}| {elapsed} gone, {remaining} left{postfix}",
            dynamic_ncols=True,
            disable=hidden,
        )
        self._bar.set_postfix_str(f"images 0/{self._total}")

    def step(self, progress: Progress) -> None:
        done = progress.step.i + 1
        self._bar.set_description_str(f"step {done}/{progress.steps}", refresh=False)
        now = progress.steps * progress.done + done * len(progress.batch)
        self._bar.update(now - self._bar.n)  # back, where a batch is begun again

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
        note("stopping when the pictures under way are saved; once more stops now")
