"""A thing of a rendered scene painted anew, as another: how true `inpaint` is, for `scripts/evaluate_scenes.py`."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from PIL import Image, ImageDraw

from ldm.data.captions import caption
from ldm.data.datasets import as_bytes, as_pixels
from ldm.data.raycast import render
from ldm.data.scenes import COLORS, MATERIALS, SHAPES, Scene, Thing, center, half_width
from ldm.images import to_images
from ldm.metrics.evaluate import fresh_prompts
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.pipeline import inpaint

MARGIN = 1.45  # of the mask around a thing; what lies outside of it, its shadow often, stays
BLUR = 2  # pixels


class Exchange(NamedTuple):
    before: Image.Image
    mask: Image.Image  # "L", 255 around one thing
    after: Scene  # with another thing in its place
    prompt: str  # the whole of that


def exchanges(number: int, seed: int) -> list[Exchange]:
    """From `fresh_prompts`: one thing of each gets a color that no other has, and any shape and material."""
    scenes, _ = fresh_prompts(number, seed)
    return [_exchange(scene, random.Random(f"exchange {seed} {i}")) for i, scene in enumerate(scenes)]


def _exchange(scene: Scene, rng: random.Random) -> Exchange:
    (before,) = to_images(as_pixels(as_bytes(render(scene))[None]))
    i = rng.randrange(len(scene.things))
    colors = [color for color in COLORS if color not in {thing.color for thing in scene.things}]
    shape, color, material = rng.choice(SHAPES), rng.choice(colors), rng.choice(MATERIALS)
    things = list(scene.things)
    things[i] = replace(things[i], shape=shape, color=color, material=material)
    after = replace(scene, things=tuple(things))
    return Exchange(before, _mask_around(scene.things[i], before.size), after, caption(after, rng))


def _mask_around(thing: Thing, size: tuple[int, int]) -> Image.Image:
    (width, height), (u, v) = size, center(thing)
    half = MARGIN * half_width(thing)
    mask = Image.new("L", size, 0)
    box = ((u - half) * width, (v - half) * height, (u + half) * width, (v + half) * height)
    ImageDraw.Draw(mask).rectangle(box, fill=255)
    return mask


def paint(
    model: LatentDiffusion, asked: Sequence[Exchange], seed: int, done: Callable[[], object], **options: object
) -> list[Image.Image]:
    """A picture of each, picture i with seed + i; `done` is called after each."""
    pictures = []
    for i, one in enumerate(asked):
        painted = inpaint(model, one.prompt, one.before, one.mask, mask_blur=BLUR, seed=seed + i, **options)  # type: ignore[arg-type]
        pictures.append(next(painted).image)
        done()
    return pictures
