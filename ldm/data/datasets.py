"""What a model is trained on: pictures with captions, from a folder or from the procedural world.

A dataset is anything with `len(data)`, `data.image(i)` → (3, H, W) uint8 and `data.caption(i, rng)` → text.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ldm.config import register
from ldm.data.captions import caption
from ldm.data.mistakes import mistaken
from ldm.data.raycast import render
from ldm.data.scenes import held_out, sample_scene
from ldm.files import atomic
from ldm.images import load_image

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
CHUNK = 1000  # seeds in one file of rendered scenes


class Dataset(Protocol):
    def __len__(self) -> int: ...

    def image(self, index: int) -> Tensor:
        """(3, H, W) uint8."""
        ...

    def caption(self, index: int, rng: random.Random) -> str: ...


@register("ImageFolder")
class ImageFolder:
    """Every picture below `path`, its shorter side scaled to `size` and the middle cut out.

    The caption of `a/b.png` is the text of `a/b.txt` (one of its lines, if it has several) or, without such a file,
    the picture's name with its separators as blanks.
    """

    def __init__(self, path: str, size: int = 128) -> None:
        self.size = size
        self.files = sorted(f for f in Path(path).rglob("*") if f.suffix.lower() in PICTURES and f.is_file())
        if not self.files:
            raise ValueError(f"{path}: no picture in this folder; {', '.join(sorted(PICTURES))} are read")

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int) -> Tensor:
        picture = load_image(self.files[index])
        scale = self.size / min(picture.size)
        width, height = (max(self.size, round(side * scale)) for side in picture.size)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        picture = picture.resize((width, height)).crop((left, top, left + self.size, top + self.size))
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)

    def caption(self, index: int, rng: random.Random) -> str:
        file = self.files[index]
        text = file.with_suffix(".txt")
        if not text.exists():
            return file.stem.replace("_", " ").replace("-", " ")
        lines = [line.strip() for line in text.read_text(encoding="utf-8", errors="replace").splitlines()]
        lines = [line for line in lines if line]
        return rng.choice(lines) if lines else ""


@register("Scenes")
class Scenes:
    """The training scenes among seeds 0 … count - 1, drawn once and kept below `cache`; captions are new each time.

    complete: share of the captions that leave nothing out.
    """

    def __init__(self, count: int, cache: str, complete: float = 0.6) -> None:
        self.complete = complete
        self.scenes = [scene for scene in map(sample_scene, range(count)) if not held_out(scene)]
        starts = range(0, count, CHUNK)
        chunks = [_rendered(Path(cache), start, min(start + CHUNK, count)) for start in starts]
        self.lookup = [(chunk, i) for chunk in chunks for i in range(len(chunk))]
        assert len(self.lookup) == len(self.scenes)

    def __len__(self) -> int:
        return len(self.scenes)

    def image(self, index: int) -> Tensor:
        chunk, i = self.lookup[index]
        return torch.from_numpy(np.array(chunk[i]))

    def mistaken(self, index: int) -> Tensor:
        """(3, 128, 128) uint8: the scene with one mistake, always the same one. Drawn anew at each call, and with one
        ray a pixel, for it is only seen through noise."""
        return as_bytes(render(mistaken(self.scenes[index], random.Random(f"mistake {index}")), samples=1))

    def caption(self, index: int, rng: random.Random) -> str:
        return caption(self.scenes[index], rng, complete=rng.random() < self.complete)


def _rendered(folder: Path, start: int, stop: int) -> np.ndarray:
    """The training scenes of these seeds, (N, 3, 128, 128) uint8, mapped from a file that is made at the first call."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"scenes-{start}-{stop}.npy"
    if not path.exists():
        pictures = [as_bytes(render(s)) for s in map(sample_scene, range(start, stop)) if not held_out(s)]
        with atomic(path) as file:
            np.save(file, torch.stack(pictures).numpy())
    return np.load(path, mmap_mode="r")


def as_bytes(picture: Tensor) -> Tensor:
    """[0, 1] → uint8, rounded."""
    return (picture * 255).round().to(torch.uint8)


def as_pixels(pictures: Tensor) -> Tensor:
    """uint8 → [-1, 1] float32, as the networks see pictures."""
    return pictures.float() / 127.5 - 1
