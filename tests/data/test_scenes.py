"""The procedural world: seeded, true to its captions, and drawn where it says."""

import math
import random
import zlib
from itertools import combinations, islice

import pytest
import torch

from ldm.data import captions, raycast, scenes
from ldm.data.captions import caption
from ldm.data.datasets import ImageFolder, Scenes, as_bytes, as_pixels
from ldm.data.scenes import Relation, Scene, Thing, center, held_out, holds, project, sample_scene


def thing(shape="sphere", color="red", size="large", material="matte", x=0.0, z=0.0):
    return Thing(shape, color, size, material, x, z, yaw=0.3)


def picture(*things, sky="sunny", **options):
    return raycast.render(Scene(things, (), sky, sun_azimuth=0.5), **options)


def test_scene_is_a_function_of_its_seed_on_every_machine():
    described = repr([sample_scene(i) for i in range(50)])
    assert described == repr([sample_scene(i) for i in range(50)])
    first = sample_scene(0).things[0]
    assert (first.shape, first.color, first.size, first.material) == ("cube", "white", "large", "shiny")
    attributes = repr([t.attributes for i in range(50) for t in sample_scene(i).things])
    assert zlib.crc32(attributes.encode()) == 1558371212  # a change of the world is made knowingly


def test_every_relation_of_a_scene_holds_and_no_thing_hides():
    for seed in range(300):
        scene = sample_scene(seed)
        for relation in scene.relations:
            assert holds(scene.things[relation.subject], relation.name, scene.things[relation.object])
        for a, b in combinations(scene.things, 2):
            assert math.hypot(a.x - b.x, a.z - b.z) > a.radius + b.radius
            assert abs(center(a)[0] - center(b)[0]) > 0.13
        for t in scene.things:
            assert 0 < center(t)[0] < 1 and 0 < center(t)[1] < 1


def test_relations_are_opposites():
    left, right = thing(x=-1.0), thing(x=1.0)
    near, far = thing(z=-1.0), thing(z=1.0)
    assert holds(left, "left of", right) and holds(right, "right of", left)
    assert not holds(right, "left of", left) and not holds(left, "right of", right)
    assert holds(near, "in front of", far) and holds(far, "behind", near)
    assert not holds(left, "in front of", right) and not holds(left, "behind", right)


def test_training_and_evaluation_share_no_combination():
    trained = {signature(s) for s in map(sample_scene, range(2200)) if not held_out(s)}
    asked = {signature(s) for s in islice(scenes.evaluation_scenes(), 200)}
    assert not trained & asked
    share = sum(held_out(sample_scene(i)) for i in range(3000)) / 3000
    assert 0.07 < share < 0.13


def signature(scene):
    return scene.sky, tuple(sorted(t.attributes for t in scene.things))


def test_complete_caption_names_everything():
    words = {word: {s for s in options} for word, options in captions.SYNONYMS.items()}
    for seed in range(200):
        scene = sample_scene(seed)
        text = caption(scene, random.Random(seed))
        for wanted in [scene.sky, *(a for t in scene.things for a in t.attributes)]:
            assert any(said in text for said in words.get(wanted, {wanted})), (wanted, text)
        assert all(
            any(s in text for name in (r.name, scenes.INVERSE[r.name]) for s in words[name]) for r in scene.relations
        )


def test_captions_vary_and_incomplete_ones_say_less():
    scene = sample_scene(5)
    assert len({caption(scene, random.Random(i)) for i in range(50)}) > 30
    complete = sum(len(caption(scene, random.Random(i))) for i in range(100))
    assert sum(len(caption(scene, random.Random(i), complete=False)) for i in range(100)) < 0.9 * complete


def test_a_relation_told_from_either_side_is_the_same_fact():
    a, b = thing(color="red", x=-1.0), thing("cube", "blue", x=1.0)
    scene = Scene((a, b), (Relation(0, "left of", 1),), "sunny", 0.5)
    for i in range(100):
        text = caption(scene, random.Random(i))
        if " is to the" in text or " is left" in text or " is right" in text or " is on the" in text:
            text = text.split(", ")[-1]  # "a red sphere and a blue cube, the sphere is left of the cube"
        sphere, cube = (max(text.find(word) for word in words) for words in (("sphere", "ball"), ("cube", "box")))
        assert ("left of" in text) == (sphere < cube), text


def test_picture_shows_the_thing_where_it_is_projected():
    for shape in scenes.SHAPES:
        t = thing(shape, "red", x=0.9, z=0.4)
        empty, full = picture(samples=1), picture(t, samples=1)
        u, v = center(t)
        pixel = full[:, int(v * 128), int(u * 128)]
        assert pixel[0] > 0.25 and pixel[0] > 2 * pixel[1], shape
        assert torch.equal(full[:, :10], empty[:, :10])  # sky far above it


def test_horizon_is_level_and_sky_is_above():
    empty = picture(samples=1)
    _, horizon, _ = project(0.0, 0.0, 1e6)
    above, below = empty[:, int(horizon * 128) - 2], empty[:, int(horizon * 128) + 12]
    assert torch.allclose(above, above[:, :1].expand_as(above), atol=0.02)
    assert above[2].mean() > above[0].mean() and below[0].mean() > below[2].mean()  # blue over sand


@pytest.mark.parametrize("sky", scenes.SKIES)
def test_pictures_are_finite_and_in_range(sky):
    things = (thing("cube", "white", x=-1.2), thing("cone", "gray", material="shiny", x=1.2))
    image = picture(*things, sky=sky, samples=2)
    assert image.isfinite().all() and image.min() >= 0 and image.max() <= 1


def test_shadow_falls_away_from_the_sun_and_gloss_mirrors():
    matte, shiny = picture(thing(), samples=1), picture(thing(material="shiny"), samples=1)
    ground = picture(samples=1)
    darker = (ground - matte).mean(0) > 0.1
    _, columns = darker[80:].nonzero(as_tuple=True)
    assert columns.float().mean() > 64  # the sun stands on the left
    assert shiny.max() > matte.max()


def test_antialiasing_refines_towards_the_same_picture():
    t = thing("cone", "blue")
    fine = picture(t, samples=6)
    errors = [(picture(t, samples=n) - fine).square().mean().sqrt().item() for n in (1, 3)]
    assert errors[1] < 0.6 * errors[0]


def test_bytes_round_trip():
    levels = torch.arange(256, dtype=torch.float32) / 255
    assert torch.equal(as_bytes(levels), torch.arange(256, dtype=torch.uint8))
    assert as_pixels(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]


def test_scenes_dataset_keeps_its_pictures(tmp_path):
    data = Scenes(12, str(tmp_path))
    assert len(data) == sum(not held_out(sample_scene(i)) for i in range(12))
    again = Scenes(12, str(tmp_path))
    assert torch.equal(again.image(3), as_bytes(raycast.render(data.scenes[3])))


def test_image_folder(tmp_path):
    from PIL import Image

    Image.new("RGB", (64, 32), (255, 0, 0)).save(tmp_path / "a-red_field.png")
    Image.new("RGB", (20, 40), (0, 0, 255)).save(tmp_path / "b.jpg")
    (tmp_path / "b.txt").write_text("a blue field\n\nsomething blue\n")
    data = ImageFolder(str(tmp_path), size=16)
    assert [data.image(i).shape for i in range(2)] == [(3, 16, 16)] * 2
    assert data.image(0)[0].min() == 255 and data.image(0)[1].max() == 0
    assert data.caption(0, random.Random(0)) == "a red field"
    assert {data.caption(1, random.Random(i)) for i in range(20)} == {"a blue field", "something blue"}
    with pytest.raises(ValueError, match="no picture"):
        ImageFolder(str(tmp_path / "nowhere"))
