"""Say what a scene shows: templates, synonyms and shuffled clauses over the facts of a `Scene`."""

from __future__ import annotations

import random
from typing import NamedTuple

from ldm.data.scenes import INVERSE, Relation, Scene, Thing

SYNONYMS = {
    "sphere": ("sphere", "sphere", "ball"),
    "cube": ("cube", "cube", "box"),
    "cylinder": ("cylinder", "cylinder", "tube"),
    "cone": ("cone",),
    "gray": ("gray", "gray", "grey"),
    "purple": ("purple", "purple", "violet"),
    "small": ("small", "small", "little", "tiny"),
    "large": ("large", "large", "big", "huge"),
    "matte": ("matte", "matte", "dull"),
    "shiny": ("shiny", "shiny", "glossy", "polished"),
    "sunny": ("on a sunny day", "under a blue sky", "in the sunshine", "on a sunny day"),
    "sunset": ("at sunset", "under a sunset sky", "at dusk", "at sunset"),
    "foggy": ("in the fog", "on a foggy day", "under a foggy sky", "on a foggy day"),
    "night": ("at night", "in the dark of night", "under a night sky", "at night"),
    "left of": ("to the left of", "left of", "on the left of"),
    "right of": ("to the right of", "right of", "on the right of"),
    "in front of": ("in front of",),
    "behind": ("behind",),
}
OPENINGS = ("", "", "", "a picture of ", "a photo of ", "there is ", "a render of ")


class Told(NamedTuple):
    text: str
    ends: tuple[int, ...]  # of each thing of the scene, where the noun that first names it ends


def caption(scene: Scene, rng: random.Random, complete: bool = True) -> str:
    """One of many true sentences about the scene."""
    return tell(scene, rng, complete).text


def tell(scene: Scene, rng: random.Random, complete: bool = True) -> Told:
    """A caption, and where it names things.

    A complete caption states the sky, every attribute of every thing and the scene's relations; otherwise some of
    them are left out at random, as people do.
    """
    keep = 1.0 if complete else rng.choice((0.4, 0.7, 0.9))
    names = [describe(thing, rng, keep) for thing in scene.things]
    relations = scene.relations if complete or rng.random() < keep else ()
    body = rng.choice(OPENINGS) + _body(scene, names, relations, rng)
    if not complete and rng.random() > keep:
        return Told(body, _ends(body, names))
    sky = _say(scene.sky, rng)
    text = f"{sky}, {body}" if rng.random() < 0.25 else f"{body} {sky}" if rng.random() < 0.8 else f"{body}, {sky}"
    return Told(text, _ends(text, names))


def _ends(text: str, names: list[str]) -> tuple[int, ...]:
    return tuple(text.index(name) + len(name) for name in names)


def describe(thing: Thing, rng: random.Random, keep: float = 1.0) -> str:
    """`a large shiny red sphere`, each word but the last kept with probability `keep`; colour with a little more."""
    words = [_say(word, rng) for word in rng.sample([thing.size, thing.material], 2) if rng.random() < keep]
    words += [_say(thing.color, rng)] if rng.random() < keep**0.3 else []
    words += [_say(thing.shape, rng)]
    return _with_article(" ".join(words))


def _body(scene: Scene, names: list[str], relations: tuple[Relation, ...], rng: random.Random) -> str:
    if not relations:
        return _listed(rng.sample(names, len(names)))
    first = _oriented(relations[0], rng)
    if rng.random() < 0.2:  # list first, relate afterwards
        stated = [f"{_short(scene, r.subject)} is {_say(r.name, rng)} {_short(scene, r.object)}" for r in relations]
        return f"{_listed(names)}, {' and '.join(stated)}"
    text = f"{names[first.subject]} {_say(first.name, rng)} {names[first.object]}"
    if len(relations) == 1:
        return text
    second = relations[1]  # its one new thing is number 2, the other has been named
    if second.subject != 2:
        second = Relation(second.object, INVERSE[second.name], second.subject)
    known = _short(scene, second.object)
    return f"{text}{rng.choice((' and ', ', and ', ', with '))}{names[2]} {_say(second.name, rng)} {known}"


def _oriented(relation: Relation, rng: random.Random) -> Relation:
    """The same fact, told from either side."""
    if rng.random() < 0.5:
        return relation
    return Relation(relation.object, INVERSE[relation.name], relation.subject)


def _short(scene: Scene, index: int) -> str:
    """`the cube` where one cube is there, `the red cube` otherwise."""
    thing = scene.things[index]
    alone = sum(other.shape == thing.shape for other in scene.things) == 1
    return f"the {thing.shape}" if alone else f"the {thing.color} {thing.shape}"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _say(word: str, rng: random.Random) -> str:
    return rng.choice(SYNONYMS.get(word, (word,)))


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
