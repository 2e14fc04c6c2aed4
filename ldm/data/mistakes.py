"""Scenes that are nearly right: what a denoiser is shown so that it learns to mend them (`denoising_loss`)."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from itertools import combinations
from typing import Any

from ldm.data.scenes import ATTRIBUTES, Scene, Thing, center, inside_picture, sample_thing

ADDED, EXCHANGED, MIXED, ALTERED, LOST = "added", "exchanged", "mixed", "altered", "lost"
WEIGHTS = {ADDED: 30, EXCHANGED: 20, MIXED: 25, ALTERED: 20, LOST: 5}  # roughly how often a sampler makes each
ALIKE = 0.8  # share of added things that are a second one of what is there
TRIES = 200  # to find a place for one more


def mistaken(scene: Scene, rng: random.Random) -> Scene:
    """The scene with one mistake, so that no complete caption of `scene` is true of it: one thing too many, two related
    ones in each other's places, an attribute of one at another and the other way round, one attribute wrong, one thing
    missing. `relations` stay those of `scene`."""
    kind = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    things = list(scene.things)
    if kind == ADDED and (added := _one_more(things, rng)) is not None:
        things.append(added)
    elif kind == EXCHANGED and scene.relations:
        relation = rng.choice(scene.relations)
        i, j = relation.subject, relation.object
        a, b = things[i], things[j]
        things[i], things[j] = replace(a, x=b.x, z=b.z), replace(b, x=a.x, z=a.z)
    elif kind == MIXED and (mixed := _mixed(things, rng)) is not None:
        things = mixed
    elif kind == LOST and len(things) > 1:
        things.pop(rng.randrange(len(things)))
    else:
        i, name = rng.randrange(len(things)), rng.choice(list(ATTRIBUTES))
        others = [value for value in ATTRIBUTES[name] if value != getattr(things[i], name)]
        things[i] = _altered(things[i], name, rng.choice(others))
    return replace(scene, things=tuple(things))


def _mixed(things: list[Thing], rng: random.Random) -> list[Thing] | None:
    """Two of the things have one attribute of each other; None if no two differ by more than their places."""
    pairs = list(combinations(range(len(things)), 2))
    ways = [(i, j, name) for i, j in pairs for name in ATTRIBUTES if _differ(things[i], things[j], name)]
    if not ways:
        return None
    i, j, name = rng.choice(ways)
    mixed = list(things)
    mixed[i], mixed[j] = (_altered(things[a], name, getattr(things[b], name)) for a, b in ((i, j), (j, i)))
    return mixed


def _altered(thing: Thing, name: str, value: str) -> Thing:
    change: dict[str, Any] = {name: value}
    return replace(thing, **change)


def _differ(a: Thing, b: Thing, name: str) -> bool:
    """Whether to exchange this attribute makes another picture: not where it is the only one the things differ by, for
    that is to exchange the things."""
    others = [other for other in ATTRIBUTES if other != name]
    return getattr(a, name) != getattr(b, name) and any(getattr(a, n) != getattr(b, n) for n in others)


def _one_more(things: list[Thing], rng: random.Random) -> Thing | None:
    """A thing in a place of its own, mostly one like another; None if there is no room."""
    like = rng.choice(things)
    for _ in range(TRIES):
        new = sample_thing(rng)
        if rng.random() < ALIKE:
            new = replace(like, x=new.x, z=new.z, yaw=new.yaw)
        if inside_picture(new) and all(_clear(new, thing) for thing in things):
            return new
    return None


def _clear(a: Thing, b: Thing) -> bool:
    """Whether neither touches the other nor hides it: things may stand a little closer than in a scene."""
    return math.hypot(a.x - b.x, a.z - b.z) > a.radius + b.radius + 0.1 and abs(center(a)[0] - center(b)[0]) > 0.1
