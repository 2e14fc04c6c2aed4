"""A scene with a mistake has exactly one."""

import random
from collections import Counter
from dataclasses import replace

from ldm.data.mistakes import mistaken
from ldm.data.scenes import ATTRIBUTES, holds, inside_picture, sample_scene


def mistake(scene, wrong):
    """Which one it is, by comparing things; fails where there is none, or more than one."""
    before, after = [thing.attributes for thing in scene.things], [thing.attributes for thing in wrong.things]
    assert (scene.sky, scene.relations) == (wrong.sky, wrong.relations)
    if len(after) == len(before) + 1:
        assert wrong.things[:-1] == scene.things and inside_picture(wrong.things[-1])
        return "added"
    if len(after) == len(before) - 1:
        assert set(wrong.things) < set(scene.things)
        return "lost"
    pairs = [(a, b) for a, b in zip(scene.things, wrong.things, strict=True) if a != b]
    if before == after:
        (a, moved), (b, other) = pairs
        assert (moved.x, moved.z, other.x, other.z) == (b.x, b.z, a.x, a.z)
        assert not all(holds(wrong.things[r.subject], r.name, wrong.things[r.object]) for r in scene.relations)
        return "exchanged"
    if len(pairs) == 2:
        (a, mixed), (b, other) = pairs
        (name,) = [name for name in ATTRIBUTES if getattr(a, name) != getattr(mixed, name)]
        assert (mixed, other) == (replace(a, **{name: getattr(b, name)}), replace(b, **{name: getattr(a, name)}))
        assert sorted(before) != sorted(after)  # not two whole things exchanged
        return "mixed"
    ((a, b),) = pairs
    assert sum(getattr(a, name) != getattr(b, name) for name in ATTRIBUTES) == 1 and (a.x, a.z) == (b.x, b.z)
    return "altered"


def test_there_is_one_mistake_of_each_kind_as_often_as_meant():
    scenes = [sample_scene(seed) for seed in range(400)]
    kinds = Counter(mistake(s, mistaken(s, random.Random(i))) for i, s in enumerate(scenes))
    assert kinds["added"] > 80 and kinds["mixed"] > 40
    assert min(kinds[name] for name in ("exchanged", "altered", "lost")) > 8


def test_most_added_things_are_a_second_one():
    rng, twice, added = random.Random(0), 0, 0
    for scene in map(sample_scene, range(200)):
        wrong = mistaken(scene, rng)
        if len(wrong.things) > len(scene.things):
            added += 1
            twice += wrong.things[-1].attributes in [thing.attributes for thing in scene.things]
    assert 0.7 < twice / added < 0.95


def test_the_same_numbers_make_the_same_mistake():
    scene = sample_scene(3)
    assert mistaken(scene, random.Random(5)) == mistaken(scene, random.Random(5)) != scene
