"""The judge's scoring, on findings whose answers are known; and the Fréchet distance of known Gaussians."""

import pytest
import torch

from ldm.data.scenes import ATTRIBUTES, Relation, Scene, Thing, center, sample_scene
from ldm.metrics.evaluate import frechet_distance, fresh_prompts
from ldm.metrics.judge import CELL_CHANNELS, GRID, Finding, Judge, Seen, accuracy, cells_loss, compare


def seen(thing):
    return Seen(*thing.attributes, u=center(thing)[0], z=thing.z)


def perfect(scene):
    return Finding(tuple(map(seen, scene.things)), scene.sky)


def two():
    a = Thing("sphere", "red", "large", "shiny", -1.0, 0.0, 0.0)
    b = Thing("cube", "blue", "small", "matte", 1.0, 0.0, 0.0)
    return Scene((a, b), (Relation(0, "left of", 1),), "sunny", 0.3)


def test_what_is_seen_as_it_is_is_wholly_right_in_any_order():
    for seed in range(100):
        scene = sample_scene(seed)
        finding = perfect(scene)
        shuffled = Finding(finding.things[::-1], finding.sky)
        assert all(all(answers) for answers in compare(scene, shuffled).values())


def test_each_mistake_is_counted_where_it_belongs():
    scene = two()
    a, b = perfect(scene).things
    wrong_color = Finding((Seen("sphere", "green", "large", "shiny", a.u, a.z), b), "sunny")
    right = compare(scene, wrong_color)
    assert right["color"] == [False, True] and right["shape"] == [True, True] and right["whole"] == [False]

    first, second = (thing.attributes for thing in scene.things)
    swapped = Finding((Seen(*first, b.u, 0.0), Seen(*second, a.u, 0.0)), "sunny")
    assert compare(scene, swapped)["relation"] == [False] and all(compare(scene, swapped)["color"])

    one = compare(scene, Finding((a,), "night"))
    assert one["count"] == [False] and one["sky"] == [False] and one["shape"] == [True, False]
    assert one["relation"] == [False]
    assert compare(scene, Finding((a, b, b), "sunny"))["count"] == [False]


def test_colors_of_two_things_exchanged_are_wrong():
    scene = two()
    a, b = perfect(scene).things
    bound_wrongly = Finding(
        (Seen("sphere", "blue", "large", "shiny", a.u, a.z), Seen("cube", "red", "small", "matte", b.u, b.z)), "sunny"
    )
    assert compare(scene, bound_wrongly)["color"] == [False, False]


def test_accuracy_is_a_share_of_answers():
    scene = two()
    shares = accuracy([scene, scene], [perfect(scene), Finding(perfect(scene).things, "night")])
    assert (
        shares["sky"] == 0.5
        and shares["whole"] == 0.5
        and shares["whole, 1 or 2 objects"] == 0.5
        and shares["color"] == 1
    )


def test_cells_that_say_the_truth_have_the_least_loss_and_are_read_back():
    scene = two()
    cells = torch.full((1, CELL_CHANNELS, GRID, GRID), 0.0)
    cells[:, 0] = -12
    for t in scene.things:
        u, v = (p * GRID for p in center(t))
        cell = cells[0, :, int(v), int(u)]
        cell[0], cell[1], cell[2], cell[3] = 12, logit(u % 1), logit(v % 1), t.z
        start = 4
        for name, values in ATTRIBUTES.items():
            cell[start + values.index(getattr(t, name))] = 12
            start += len(values)
    truth = cells_loss(cells, [scene])
    assert truth < 0.01
    assert cells_loss(cells.roll(1, dims=3), [scene]) > 5

    judge = Judge()
    judge.forward = lambda image: (cells, torch.tensor([[9.0, 0, 0, 0]]))
    (finding,) = judge.look(torch.zeros(1, 3, 128, 128))
    assert all(all(answers) for answers in compare(scene, finding).values())
    places = sorted(thing.u for thing in finding.things)
    assert places == pytest.approx([center(thing)[0] for thing in scene.things], abs=1e-3)


def logit(p):
    return torch.logit(torch.tensor(p), eps=1e-6)


def test_frechet_distance_of_gaussians_with_known_answer():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(200_000, 3, generator=generator, dtype=torch.float64)
    b = 2 * torch.randn(200_000, 3, generator=generator, dtype=torch.float64) + torch.tensor([3.0, 0, 0])
    assert frechet_distance(a, b) == pytest.approx(9 + 3 * (1 + 4 - 2 * 2), rel=0.02)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_prompts_are_fresh_and_depend_on_the_seed():
    (_, one), (_, again), (_, other) = fresh_prompts(20, 0), fresh_prompts(20, 0), fresh_prompts(20, 1)
    assert one == again and not set(one) & set(other)
