"""Prompts that change on the way, that are several at once, and that differ within a batch."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import ldm
from ldm.config import build, load_config
from ldm.guidance import Guidance
from ldm.items import Item
from ldm.models.diffusion.denoiser import Conditioning
from ldm.models.diffusion.guidance import guided
from ldm.models.diffusion.prompted import Scene, composed, prompted
from ldm.models.encoders import ClassEmbedder
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.prompting import interpolate, tell
from ldm.sampling import sample
from ldm.settings import resolve

TINY = Path(__file__).parent / "tiny.yaml"
LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"


@pytest.fixture(scope="module")
def tiny() -> LatentDiffusion:
    """In float64, so that what differs is not rounding."""
    torch.manual_seed(0)
    model = build(load_config(TINY), "tiny.yaml", expected=LatentDiffusion).eval()
    for parameter in model.unet.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return model.double()


def draw(model: Any, items: list[Item], **options: Any) -> Tensor:
    with torch.inference_mode():
        return list(sample(model, items, resolve(model, **options)))[-1].x


def named(value: float, length: int = 1) -> Conditioning:
    return Conditioning(torch.full((1, length, 1), float(value)))


class Fake:
    """x0 is the mean of the context, plus a little of x; notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, list[float]]] = []

    def __call__(self, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        assert len(x) == len(cond.context)
        means = cond.context.mean(dim=(1, 2))
        self.asked.append((float(sigma.max()), means.tolist()))
        return means[:, None, None, None] + 0.5 * x


# --- scripts --------------------------------------------------------------------------------------------------------


def test_the_level_chooses_the_scene() -> None:
    fake, x = Fake(), torch.zeros(1, 1, 1, 1)
    script = [Scene(4.0, [(1, named(1))]), Scene(2.0, [(1, named(2))]), Scene(0.5, [(1, named(3))])]
    denoise = guided(prompted(fake, [script]), Conditioning(y=torch.tensor([0])), None, 1.0)
    levels = {9.0: 1, 4.1: 1, 4.0: 2, 3.0: 2, 2.0: 3, 1.0: 3, 0.5: 3, 0.1: 3}  # what ends at a level is over there
    assert {sigma: float(denoise(x, torch.tensor(sigma))) for sigma in levels} == levels
    assert float(denoise(x, torch.tensor(4.0, dtype=torch.float64) * (1 + 1e-7))) == 2  # a rounding error is none
    each = prompted(fake, [script])(
        x.expand(3, 1, 1, 1), torch.tensor([5.0, 3.0, 1.0]), Conditioning(y=torch.zeros(3).int())
    )
    assert each.flatten().tolist() == [1, 2, 3]


def test_composition_is_its_formula() -> None:
    """u + sum of weight * scale * (x_i - u), by a denoiser that is linear in its condition."""
    fake, x, scale = Fake(), torch.randn(2, 1, 2, 2), 3.0
    parts, uncond = [(1.2, named(2.0)), (-0.5, named(7.0)), (1.0, named(4.0))], named(1.0)
    scripts = [[Scene(0.0, composed(parts, uncond))], [Scene(0.0, [(1, named(5.0))])], [Scene(0.0, [(1, uncond)])]]
    cond, away = Conditioning(y=torch.tensor([0, 1])), Conditioning(y=torch.tensor([2, 2]))
    found = guided(prompted(fake, scripts), cond, away, scale)(x, torch.tensor(1.0))
    first = 1.0 + scale * (1.2 * (2 - 1) - 0.5 * (7 - 1) + 1.0 * (4 - 1))
    assert torch.allclose(found[0], first + 0.5 * x[0], atol=1e-5)
    assert torch.allclose(found[1], 1 + scale * (5 - 1) + 0.5 * x[1], atol=1e-5)
    assert composed([(1, named(2.0))], None)[0][1].context is not None
    assert len(composed([(0.25, named(2.0)), (0.75, named(3.0))], None)) == 2  # a mean has no need of an uncond
    with pytest.raises(ValueError, match="need an unconditional"):
        composed([(1, named(2.0)), (1, named(3.0))], None)


def test_lengths_share_calls_and_no_call_is_larger_than_asked() -> None:
    fake, x = Fake(), torch.arange(4.0).view(4, 1, 1, 1)
    scripts = [[Scene(0.0, [(1, named(value, length))])] for value, length in ((1, 1), (2, 3), (3, 1), (4, 3))]
    found = prompted(fake, scripts)(x, torch.tensor(1.0), Conditioning(y=torch.arange(4)))
    assert found.flatten().tolist() == [1, 2.5, 4, 5.5]
    assert [rows for _, rows in fake.asked] == [[1, 3], [2, 4]]
    fake.asked.clear()
    many = [[Scene(0.0, [(0.2, named(value)) for value in range(5)])]]
    assert float(prompted(fake, many)(x[:1], torch.tensor(1.0), Conditioning(y=torch.tensor([0])))) == pytest.approx(2)
    assert len(fake.asked) == 5  # of the one row that was asked for


# --- from prompts ---------------------------------------------------------------------------------------------------


def heard(model: Any, item: Item, steps: int, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[Tensor]:
    """The context of each call at guidance 1."""
    calls: list[Tensor] = []
    denoiser = model.denoiser

    def spy(x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        calls.append(cond.context)
        return denoiser(x, sigma, cond)

    with monkeypatch.context() as patch:
        patch.setattr(model, "denoiser", spy)
        draw(model, [item], steps=steps, guidance_scale=1.0, **options)
    return calls


@torch.no_grad()
def test_a_schedule_switches_at_its_step(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    red, blue = (tiny.condition([f"a {word} cube"]).context for word in ("red", "blue"))
    for text, steps, switch in (
        ("a [red:blue:0.4] cube", 10, 4), ("a [red:blue:3] cube", 5, 3), ("a [red:blue:0.5] cube", 1, 0),
        ("a [red:blue:0.25] cube", 7, 1), ("a [red:blue:99] cube", 3, 3),
    ):  # fmt: skip
        calls = heard(tiny, Item(text), steps, monkeypatch)
        assert [int(torch.allclose(c, blue)) for c in calls] == [int(i >= switch) for i in range(steps)], text
        assert all(torch.allclose(c, blue if i >= switch else red) for i, c in enumerate(calls))
    calls = heard(tiny, Item("a [red|blue] cube"), 5, monkeypatch, spacing="trailing")
    assert [int(torch.allclose(c, blue)) for c in calls] == [0, 1, 0, 1, 0]
    calls = heard(tiny, Item("a [red::2] cube"), 4, monkeypatch)
    assert torch.allclose(calls[1], red) and torch.allclose(calls[2], tiny.condition(["a  cube"]).context)


@torch.no_grad()
def test_a_sampler_of_second_order_keeps_to_the_interval(tiny: Any) -> None:
    """Asked between two levels it hears what their step began with; and at the lower one, what the next begins with."""
    settings = resolve(tiny, steps=4, guidance_scale=1.0)
    sigmas = settings.levels(tiny.schedule)
    told = tell(tiny, [Item("[red:blue:2]")], sigmas, guided=False)
    fake = Fake()
    denoise = guided(told.heard_by(fake), told.cond, told.uncond, 1.0)
    x = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    red, blue = (float(tiny.condition([word]).context.mean()) for word in ("red", "blue"))
    for i, expected in enumerate([red, red, blue, blue]):
        for share in (0.0, 0.5, 0.99):
            level = sigmas[i] + share * (sigmas[i + 1] - sigmas[i])
            assert float(denoise(x, level)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        ("dpm_2", "rr rr bb b"),  # asks in the middle of a step, and in the last but at its beginning
        ("heun", "rr rb bb b"),  # asks at its end, where the next begins
        ("dpmpp_2m", "r r b b"),
    ],
)
@torch.no_grad()
def test_samplers_of_second_order(tiny: Any, sampler: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    red = tiny.condition(["red"]).context
    calls = heard(tiny, Item("[red:blue:2]"), 4, monkeypatch, sampler=sampler)
    assert ["r" if torch.allclose(c, red) else "b" for c in calls] == list(expected.replace(" ", ""))


@torch.no_grad()
def test_every_text_is_read_once(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[object] = []
    condition = tiny.condition
    monkeypatch.setattr(tiny, "condition", lambda texts, *a, **k: (read.extend(texts), condition(texts, *a, **k))[1])
    draw(tiny, [Item("[a|b] x", "[c:d:0.5]"), Item("[b|a] x AND y", "c")], steps=12, guidance_scale=2.0)
    assert len(read) == len(set(read)) == 7  # two of the first, two and y of the second; c, d


def test_an_image_is_the_same_alone_and_in_a_mixed_batch(tiny: Any) -> None:
    items = [
        Item("a red cube", "", 1),
        Item(LONG, "fog", 2),
        Item("a [red:(blue:1.4):0.5] cube", None, 3),
        Item("a cat :1.2 AND a (dog:0.8)", "[fog|rain]", 4),
        Item(f"a BREAK b AND {LONG}", LONG, 5),
    ]
    for scale in (1.0, 3.0):
        together = draw(tiny, items, steps=4, guidance_scale=scale)
        for row, item in zip(together, items, strict=True):
            alone = draw(tiny, [item], steps=4, guidance_scale=scale)[0]
            assert (row - alone).abs().max() <= 1e-5
            assert (alone - draw(tiny, [Item("", "", item.seed)], steps=4, guidance_scale=scale)[0]).abs().max() > 1e-3


def test_all_guidance_goes_with_scripts(tiny: Any) -> None:
    """PAG edits rows of a batch, and scripts reorder them; each picture has its own scale."""
    items = [Item("a red cube", "", 1), Item(f"{LONG} AND b", "fog", 2, guidance_scale=4.0), Item("[a|b]", None, 3)]
    plain = draw(tiny, items, steps=3, guidance_scale=3.0)
    for guidance in (Guidance(pag=2.0), Guidance(rescale=0.7, threshold=0.9), Guidance(interval=(0.5, 5.0))):
        together = draw(tiny, items, steps=3, guidance_scale=3.0, guidance=guidance)
        assert (together - plain).abs().amax(dim=(1, 2, 3)).min() > 1e-4
        for row, item in zip(together, items, strict=True):
            alone = draw(tiny, [item], steps=3, guidance_scale=3.0, guidance=guidance)[0]
            assert (row - alone).abs().max() <= 1e-5 * alone.abs().max()
    # a picture that needs no script is the same beside one that does
    assert torch.allclose(
        draw(tiny, [Item("a", "", 1), items[1]], steps=2, guidance=Guidance(pag=2.0))[0],
        draw(tiny, [Item("a", "", 1)], steps=2, guidance=Guidance(pag=2.0))[0],
    )


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("(a red cube:1)", "a red cube"),
        ("[a red cube:9]", ""),
        ("[a red cube::9]", "a red cube"),
        ("[a red cube|a red cube]", "a red cube"),
        (r"a \(red\) cube", None),
    ],
)
def test_prompts_that_say_the_same(tiny: Any, text: str, same: str | None) -> None:
    if same is None:  # what is escaped is read as it stands
        with torch.no_grad():
            tokens = tiny.text_encoder.tokenize(["a (red) cube"])
            assert torch.equal(tiny.condition([text]).context, tiny.text_encoder(tokens).states)
    else:
        assert torch.equal(draw(tiny, [Item(text)], steps=2), draw(tiny, [Item(same)], steps=2))


def test_a_prompt_without_syntax_is_conditioned_as_ever(tiny: Any) -> None:
    with torch.no_grad():
        sigmas = resolve(tiny, steps=3).levels(tiny.schedule)
        told = tell(tiny, [Item("a red cube", "fog"), Item("a|b: 3, and", None)], sigmas)
        assert told.scripts is None
        for cond, texts in ((told.cond, ["a red cube", "a|b: 3, and"]), (told.uncond, ["fog", ""])):
            assert torch.equal(cond.context, tiny.text_encoder(tiny.text_encoder.tokenize(texts)).states)


def test_composition_of_the_same_prompt_is_one_with_more_guidance(tiny: Any) -> None:
    twice = draw(tiny, [Item("a red cube AND a red cube")], steps=3, guidance_scale=1.5)
    assert torch.allclose(twice, draw(tiny, [Item("a red cube")], steps=3, guidance_scale=3.0), atol=1e-9)
    half = draw(tiny, [Item("a red cube:0.5 AND a red cube :0.5")], steps=3, guidance_scale=1.5)
    assert torch.allclose(half, draw(tiny, [Item("a red cube")], steps=3, guidance_scale=1.5), atol=1e-9)
    literal = draw(tiny, [Item("a", "b AND c")], steps=2, guidance_scale=2.0)
    assert torch.equal(literal, draw(tiny, [Item("a", r"b \AND c")], steps=2, guidance_scale=2.0))


def test_clip_skip_reaches_the_tower() -> None:
    tree = load_config(TINY)
    tree["params"]["text_encoder"]["params"]["layers"] = 3
    torch.manual_seed(0)
    model = build(tree, "tiny.yaml", expected=LatentDiffusion).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    drawn = [draw(model, [Item("a red cube")], steps=2, clip_skip=n) for n in (None, 1, 2, 3)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.allclose(drawn[1], drawn[2])
    assert not torch.allclose(drawn[2], drawn[3])
    with pytest.raises(ValueError, match="clip_skip is 4"):
        ldm.txt2img(model, "a", clip_skip=4)


def test_other_encoders_read_the_text_as_it_stands(tiny: Any) -> None:
    classes = copy.copy(tiny)
    classes._modules = {**tiny._modules, "text_encoder": ClassEmbedder(10, 16).double()}
    assert draw(classes, [Item("3"), Item("4", "5")], steps=1, guidance_scale=2.0).shape == (2, 4, 4, 4)
    with pytest.raises(ValueError, match=r"'\(3:1.2\)'"):
        draw(classes, [Item("(3:1.2)")], steps=1)
    with pytest.raises(ValueError, match="text encoder is not CLIP's"):
        resolve(classes, clip_skip=2)


def test_one_conditioning_holds_one_text(tiny: Any) -> None:
    for text in ("[a:b:0.5]", "[a|b]", "a AND b"):
        with pytest.raises(ValueError, match="says several things"):
            tiny.condition([text])
    assert tiny.condition(["a AND b"], negative=True).context.shape == (1, 16, 16)
    assert tiny.condition([LONG]).context.shape == (1, 32, 16)


# --- between prompts ------------------------------------------------------------------------------------------------


def test_interpolation() -> None:
    a, b = Conditioning(torch.tensor([[[2.0, 0.0]]])), Conditioning(torch.tensor([[[0.0, 4.0]]]))
    assert torch.allclose(interpolate(a, b, 0.25).context, torch.tensor([[[1.5, 1.0]]]))
    turned = interpolate(a, b, 1 / 3, "slerp").context  # 30 degrees on, and a third of the octave from 2 to 4
    assert torch.allclose(turned, 2 ** (4 / 3) * torch.tensor([[[math.cos(math.pi / 6), 0.5]]]), atol=1e-6)
    several = Conditioning(torch.tensor([[[2.0, 0.0], [1.0, 0.0], [0.0, 0.0]]]))
    others = Conditioning(torch.tensor([[[0.0, 4.0], [-3.0, 0.0], [1.0, 1.0]]]))  # turned, opposite, from nothing
    found = interpolate(several, others, 1 / 3, "slerp").context
    assert torch.allclose(found[:, :1], turned) and torch.allclose(found[0, 1], torch.tensor([-1 / 3, 0.0]), atol=1e-6)
    assert torch.isfinite(found).all()
    for way in ("lerp", "slerp"):
        for t, end in ((0.0, a), (1.0, b)):
            assert torch.allclose(interpolate(a, b, t, way).context, end.context, atol=1e-6)
        assert torch.allclose(interpolate(a, a, 0.3, way).context, a.context)
    with pytest.raises(ValueError, match=r"context is \[\(1, 1, 2\), \(1, 2, 2\)\]"):
        interpolate(a, Conditioning(torch.zeros(1, 2, 2)), 0.5)


def test_the_example_in_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / "docs" / "prompts.md").read_text(), re.S)
    monkeypatch.chdir(tmp_path)
    assert "20)" in code
    exec(compile(code.replace("20)", "1)"), "prompts.md", "exec"), {})
    with Image.open("between.png") as picture:
        assert picture.width > 5 * 128
