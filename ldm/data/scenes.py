"""A procedural world: one to three solids on a ground under a sky, each scene a pure function of its seed.

    scene = sample_scene(7)          # what is where
    captions.caption(scene, rng)    # one of many ways to say it
    raycast.render(scene)            # (3, 128, 128) in [0, 1]

World units: the ground is y = 0, x grows to the right, z away from the camera. Scenes with some combinations of
attributes are held out of training for good (`held_out`), so that an evaluation asks for what was never shown.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, count

SHAPES = ("sphere", "cube", "cylinder", "cone")
COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "gray")
SIZES = ("small", "large")
MATERIALS = ("matte", "shiny")
ATTRIBUTES = {"shape": SHAPES, "color": COLORS, "size": SIZES, "material": MATERIALS}  # of a thing
SKIES = ("sunny", "sunset", "foggy", "night")
RELATIONS = ("left of", "right of", "in front of", "behind")
INVERSE = {"left of": "right of", "right of": "left of", "in front of": "behind", "behind": "in front of"}

RADIUS = {"small": 0.48, "large": 0.86}
CAMERA_HEIGHT, CAMERA_DISTANCE, LOOK_AT_HEIGHT, TAN_HALF_FOV = 2.3, 6.0, 0.62, 0.43
PITCH = math.atan2(CAMERA_HEIGHT - LOOK_AT_HEIGHT, CAMERA_DISTANCE)

HELD_OUT_PERCENT = 10
EVALUATION_SEED = 10**9  # evaluation scenes are drawn from seeds at and above this one, training scenes below


@dataclass(frozen=True)
class Thing:
    """One solid standing on the ground at (x, z), turned by `yaw` radians about the vertical."""

    shape: str
    color: str
    size: str
    material: str
    x: float
    z: float
    yaw: float

    @property
    def radius(self) -> float:
        return RADIUS[self.size]

    @property
    def attributes(self) -> tuple[str, str, str, str]:
        return self.shape, self.color, self.size, self.material


@dataclass(frozen=True)
class Relation:
    """`things[subject]` is `name` `things[object]`."""

    subject: int
    name: str
    object: int


@dataclass(frozen=True)
class Scene:
    things: tuple[Thing, ...]
    relations: tuple[Relation, ...]
    sky: str
    sun_azimuth: float  # radians, 0 is behind the camera, positive to the left


def project(x: float, y: float, z: float) -> tuple[float, float, float]:
    """World point → (u, v, depth): u to the right and v down, both in [0, 1] inside the picture."""
    up, forward = y - CAMERA_HEIGHT, z + CAMERA_DISTANCE
    depth = forward * math.cos(PITCH) - up * math.sin(PITCH)
    above = forward * math.sin(PITCH) + up * math.cos(PITCH)
    return 0.5 + 0.5 * x / (depth * TAN_HALF_FOV), 0.5 - 0.5 * above / (depth * TAN_HALF_FOV), depth


def center(thing: Thing) -> tuple[float, float]:
    """Where the middle of the thing appears: (u, v) in [0, 1]."""
    u, v, _ = project(thing.x, thing.radius * 0.9, thing.z)
    return u, v


def holds(a: Thing, name: str, b: Thing) -> bool:
    """Whether `a` is clearly `name` `b` to a viewer: left and right as they appear, front and behind on the ground."""
    if name in ("right of", "behind"):
        return holds(b, INVERSE[name], a)
    if name == "left of":
        return center(b)[0] - center(a)[0] > 0.12
    return b.z - a.z > 0.7


def sample_scene(seed: int) -> Scene:
    """Scene number `seed`: the same everywhere, forever."""
    rng = random.Random(f"scene {seed}")
    number = rng.choices((1, 2, 3), weights=(3, 4, 4))[0]
    while True:
        things = tuple(sample_thing(rng) for _ in range(number))
        if all(map(inside_picture, things)) and all(_apart(a, b) for a, b in combinations(things, 2)):
            break
    pairs = [(0, 1), (rng.choice((0, 1)), 2)][: number - 1]
    relations = tuple(_sample_relation(things, rng.sample(pair, 2), rng) for pair in pairs)
    return Scene(things, relations, rng.choice(SKIES), math.radians(rng.uniform(15, 60)))


def evaluation_scenes(seed: int = 0) -> Iterator[Scene]:
    """Fresh scenes whose combination of attributes training has never seen."""
    return (scene for scene in map(sample_scene, count(EVALUATION_SEED + seed * 10**6)) if held_out(scene))


def held_out(scene: Scene) -> bool:
    """Whether this combination of sky and things (wherever they stand) is kept from training."""
    signature = f"{scene.sky} {sorted(thing.attributes for thing in scene.things)}"
    return zlib.crc32(signature.encode()) % 100 < HELD_OUT_PERCENT


def sample_thing(rng: random.Random) -> Thing:
    shape, color, size, material = (rng.choice(values) for values in (SHAPES, COLORS, SIZES, MATERIALS))
    x, z, yaw = rng.uniform(-2.2, 2.2), rng.uniform(-1.1, 1.3), rng.uniform(0, math.pi / 2)
    return Thing(shape, color, size, material, x, z, yaw)


def half_width(thing: Thing) -> float:
    """Half of the width it takes in the picture, as a share of the picture's width."""
    return 0.5 * thing.radius / (project(thing.x, thing.radius, thing.z)[2] * TAN_HALF_FOV)


def inside_picture(thing: Thing) -> bool:
    return abs(center(thing)[0] - 0.5) + half_width(thing) < 0.49


def _apart(a: Thing, b: Thing) -> bool:
    """Whether both can be seen and told apart: different things, not touching, the near one not hiding the far one."""
    if (a.shape, a.color) == (b.shape, b.color):
        return False
    if math.hypot(a.x - b.x, a.z - b.z) < a.radius + b.radius + 0.2:
        return False
    return abs(center(a)[0] - center(b)[0]) > max(0.14, 0.75 * (half_width(a) + half_width(b)))


def _sample_relation(things: tuple[Thing, ...], pair: list[int], rng: random.Random) -> Relation:
    subject, object = pair
    a, b = things[subject], things[object]
    names = [name for name in RELATIONS if holds(a, name, b)]
    return Relation(subject, rng.choice(names), object)
