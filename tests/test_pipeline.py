from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ldm
from ldm import hints, images
from ldm.config import build, load_config
from ldm.generate import Progress, generate
from ldm.hints import Hints, NonFiniteError
from ldm.items import Item, make_items
from ldm.models.diffusion import SAMPLERS
from ldm.models.diffusion.denoiser import Conditioning
from ldm.models.diffusion.spacing import SPACINGS
from ldm.models.framing import Framing
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.noise import starting_noise
from ldm.prompt_tree import Span
from ldm.sampling import sample
from ldm.settings import Settings, resolve
from ldm.sizes import picture_size

PICTURE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def make_tiny() -> LatentDiffusion:
    torch.manual_seed(0)
    model = build(load_config(Path(__file__).parent / "tiny.yaml"), "tiny.yaml", expected=LatentDiffusion).eval()
    for parameter in model.unet.parameters():  # some are zero at first, and a network that answers 0 tests nothing
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="module")
def tiny() -> LatentDiffusion:
    return make_tiny()


@pytest.fixture
def own_tiny() -> LatentDiffusion:
    """One that a test may break."""
    return make_tiny()


def latents(model: Any, items: list[Item], settings: Settings, z: torch.Tensor | None = None) -> torch.Tensor:
    with torch.inference_mode():
        return list(sample(model, items, settings, Hints(z=z)))[-1].x


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.size == b.size and a.tobytes() == b.tobytes()


def of_job(model: Any, items: list[Item], settings: Settings) -> torch.Tensor:
    """The latents of a job, as they are after its last step."""
    ends: dict[int, torch.Tensor] = {}

    def keep(progress: Progress) -> None:
        ends.update(enumerate(progress.step.x, progress.done))

    assert [result.item for result in generate(model, items, settings, on_step=keep)] == items
    return torch.stack([ends[i] for i in range(len(items))])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_is_the_same_alone_and_in_a_batch(own_tiny: Any, sampler: str) -> None:
    tiny = own_tiny.double()  # so that what differs is not rounding, which a random network amplifies
    short: Any = {"sigmas": [2.0, 1.5]} if sampler == "dpm_adaptive" else {"steps": 4}  # it asks a random network often
    settings = resolve(tiny, sampler=sampler, **short)
    items = [Item("a red cube", "", 5), Item("a blue cone at night", "fog", 6), Item("", "", 7)]
    together = of_job(tiny, items, settings)
    for i, item in enumerate(items):
        alone = of_job(tiny, [item], settings)
        assert (together[i] - alone[0]).abs().max() <= 1e-5
        assert (tiny.decode(together[i : i + 1]) - tiny.decode(alone)).abs().max() <= 1e-5
    assert (together[0] - together[1]).abs().max() > 0.1


def test_image_i_has_seed_plus_i(tiny: Any) -> None:
    many = list(ldm.txt2img(tiny, "a red cube", seed=40, num_images=3, batch_size=2, steps=2))
    assert [result.seed for result in many] == [40, 41, 42]
    assert [len(result.batch) for result in many] == [2, 2, 1] and [result.index for result in many] == [0, 1, 0]
    third = next(ldm.txt2img(tiny, "a red cube", seed=42, steps=2))
    assert same(third.image, many[2].image) and not same(many[0].image, many[1].image)
    prompts = list(ldm.txt2img(tiny, ["a", "b"], num_images=2, steps=1))
    assert [(r.item.prompt, r.seed) for r in prompts] == [("a", 0), ("a", 1), ("b", 2), ("b", 3)]


def test_noise_alone_enters_the_network_with_variance_one(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    forward = tiny.unet.forward
    monkeypatch.setattr(tiny.unet, "forward", lambda x, *a, **k: (seen.append(x), forward(x, *a, **k))[1])
    for spacing in SPACINGS:
        seen.clear()
        latents(tiny, [Item("a", "", 3)], resolve(tiny, steps=3, spacing=spacing, guidance_scale=1.0))
        assert torch.allclose(seen[0], starting_noise([3], (4, 4, 4)), atol=1e-5)
        assert len(seen) == 3


def test_strength_0_is_the_round_trip_whatever_the_prompt(tiny: Any) -> None:
    with torch.inference_mode():
        expected = images.to_images(tiny.decode(tiny.encode(images.to_tensor(PICTURE)).mode()))[0]
    for result in ldm.img2img(tiny, ["a", "b"], PICTURE, strength=0.0):
        assert same(result.image, expected)


def test_strength_1_is_txt2img(tiny: Any) -> None:
    expected = next(ldm.txt2img(tiny, "a red cube", seed=9, steps=3)).image
    assert same(next(ldm.img2img(tiny, "a red cube", PICTURE, strength=1.0, seed=9, steps=3)).image, expected)
    assert not same(next(ldm.img2img(tiny, "a red cube", PICTURE, strength=0.99, seed=9, steps=3)).image, expected)


@pytest.mark.parametrize(
    ("strength", "taken"), [(0.001, 1), (0.05, 1), (0.07, 1), (0.5, 5), (0.75, 8), (0.95, 10), (1.0, 10)]
)
def test_strength_takes_the_last_steps(tiny: Any, strength: float, taken: int) -> None:
    settings = resolve(tiny, steps=10, strength=strength)
    z = hints.encode(tiny, images.fit(PICTURE, settings.width, settings.height))
    with torch.inference_mode():
        steps = list(sample(tiny, [Item("a")], settings, Hints(z=z)))
    assert len(steps) == taken == settings.sampled_steps
    sigmas = SPACINGS[settings.spacing](tiny.schedule, 10)
    assert [step.sigma for step in steps] == sigmas[10 - taken + 1 :].tolist()


def test_a_picture_begins_with_the_noise_of_its_first_level(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[torch.Tensor, float]] = []
    denoiser = tiny.denoiser

    def spy(x: torch.Tensor, sigma: torch.Tensor, cond: Any) -> torch.Tensor:
        seen.append((x, float(sigma)))
        return denoiser(x, sigma, cond)

    monkeypatch.setattr(tiny, "denoiser", spy)
    settings = resolve(tiny, steps=10, strength=0.4, guidance_scale=1.0)
    z = hints.encode(tiny, images.fit(PICTURE, settings.width, settings.height))
    latents(tiny, [Item("a", "", 2)], settings, z)
    x, sigma = seen[0]
    assert sigma == pytest.approx(float(SPACINGS["uniform"](tiny.schedule, 10)[6]))
    assert torch.allclose(x, z + sigma * starting_noise([2], (4, 4, 4)), atol=1e-5)


def test_the_model_is_told_the_size_and_which_prompt_is_the_negative_one(
    tiny: LatentDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, condition = [], tiny.condition

    def listen(prompts: list[str], framing: Framing, *, negative: bool = False, clip_skip: int = 1) -> Conditioning:
        told.append((prompts, framing.original_height, framing.original_width, negative))
        return condition(prompts, framing, negative=negative)

    monkeypatch.setattr(tiny, "condition", listen)
    list(ldm.txt2img(tiny, "a", negative_prompt="b", height=32, width=64, steps=1, guidance_scale=2.0))
    assert told == [([((Span("a"),),)], 32, 64, False), ([((Span("b"),),)], 32, 64, True)]


def test_guidance_1_is_the_conditional_answer_alone(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    items, settings = [Item("a red cube", "fog", 0)], resolve(tiny, steps=2, guidance_scale=1.0)
    asked: list[Any] = []
    condition = tiny.condition
    monkeypatch.setattr(
        tiny, "condition", lambda prompts, *told, **how: (asked.append(prompts), condition(prompts, *told, **how))[1]
    )
    one = latents(tiny, items, settings)
    assert asked == [[((Span("a red cube"),),)]]
    assert torch.equal(one, latents(tiny, [Item("a red cube", "", 0)], settings))
    two = latents(tiny, items, resolve(tiny, steps=2, guidance_scale=2.0))
    assert not torch.allclose(one, two)
    assert not torch.allclose(
        two, latents(tiny, [Item("a red cube", "", 0)], resolve(tiny, steps=2, guidance_scale=2.0))
    )
    assert resolve(tiny).guidance_scale == tiny.guidance_scale


def test_eta_and_sampler_and_spacing_matter(tiny: Any) -> None:
    def draw(**options: Any) -> torch.Tensor:
        return latents(tiny, [Item("a")], resolve(tiny, steps=4, **options))

    plain = draw()
    assert torch.equal(plain, draw()) and torch.equal(plain, draw(sampler="ddim", eta=0.0))
    assert not torch.allclose(plain, draw(eta=1.0)) and not torch.allclose(plain, draw(spacing="trailing"))
    assert torch.allclose(draw(eta=1.0, spacing="trailing"), draw(sampler="ddpm", spacing="trailing"))


def test_a_model_may_be_best_drawn_with_another_sampler(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (resolve(tiny).sampler, resolve(tiny).spacing) == ("ddim", "uniform")
    monkeypatch.setattr(tiny, "sampler", "DPM++ 2M Karras")
    assert (resolve(tiny).sampler, resolve(tiny, sampler=None).spacing) == ("dpmpp_2m", "karras")
    assert resolve(tiny, sampler="heun").sampler == "heun"
    monkeypatch.setattr(tiny, "sampler", "euler_ancestral")
    monkeypatch.setattr(tiny, "eta", 1.5)
    assert resolve(tiny).method == "euler_ancestral at eta 1.5"
    assert [resolve(tiny, **asked).eta for asked in ({}, {"eta": 0.3}, {"sampler": "euler_ancestral"})] == [1.5, 0.3, 1]
    monkeypatch.setattr(tiny, "sampler", "dimm")
    with pytest.raises(ValueError, match="there is no sampler 'dimm'; the nearest: ddim"):
        resolve(tiny)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (40, 24), (32, 56)])
def test_any_multiple_of_8(tiny: Any, height: int, width: int) -> None:
    assert next(ldm.txt2img(tiny, "a", height=height, width=width, steps=1)).image.size == (width, height)


def test_progress_is_the_callers(tiny: Any) -> None:
    heard: list[tuple[int, int, int, int, int]] = []

    def on_step(p: Any) -> None:
        assert p.step.x0.shape == (len(p.batch), 4, 4, 4)
        heard.append((p.step.i, p.steps, len(p.batch), p.done, p.total))

    results = ldm.txt2img(tiny, "a", num_images=3, batch_size=2, steps=2, on_step=on_step)
    assert heard == []
    next(results)
    assert heard == [(0, 2, 2, 0, 3), (1, 2, 2, 0, 3)]  # the first picture is out before the last batch begins
    list(results)
    assert heard[2:] == [(0, 2, 1, 2, 3), (1, 2, 1, 2, 3)]
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_non_finite_numbers_are_named_not_drawn(own_tiny: Any) -> None:
    torch.nn.init.constant_(own_tiny.autoencoder.decoder.conv_out.bias, math.nan)
    with pytest.raises(NonFiniteError, match=r"autoencoder's decoder of seed 3, in float32"):
        list(ldm.txt2img(own_tiny, "a", steps=1, seed=3))
    torch.nn.init.constant_(own_tiny.autoencoder.encoder.conv_in.bias, math.inf)
    with pytest.raises(NonFiniteError, match="autoencoder's encoder"):
        list(ldm.img2img(own_tiny, "a", PICTURE))
    torch.nn.init.constant_(own_tiny.unet.conv_out.bias, math.nan)
    with pytest.raises(NonFiniteError, match=r"latent after step 1 of 2 \(ddim\) of seed 3"):
        list(ldm.txt2img(own_tiny, "a", steps=2, seed=3))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"height": 33}, r"height 33 .* nearest is 32"),
        ({"width": 0}, r"width 0 .* nearest is 8"),
        ({"steps": 0}, r"steps is 0; it can be 1 … 1000"),
        ({"steps": 1001}, "steps is 1001"),
        ({"sampler": "eular"}, "no sampler 'eular'; the nearest: euler, "),
        ({"spacing": "karas"}, "no spacing 'karas'; the nearest: karras"),
        ({"spacing": "trailing", "rho": 3.0}, "rho is 3, but spacing trailing has none; karras, polyexponential have"),
        ({"sigma_min": 0.1}, "sigma_min is 0.1, but spacing uniform has none; karras, exponential"),
        ({"spacing": "karras", "sigma_min": 5.0, "sigma_max": 5.0}, "takes 0 < sigma_min < sigma_max"),
        ({"sigmas": [3, 7]}, "sigmas has 7 after 3"),
        ({"timesteps": []}, "timesteps is an empty list"),
        ({"sigmas": [7], "timesteps": [7]}, "sigmas and timesteps are both given"),
        ({"sigmas": [7], "steps": 2}, "steps is 2, but a list of 1 noise levels is given"),
        ({"sigmas": [7], "rho": 2.0}, "rho is 2.0, but a list"),
        ({"eta": math.nan}, "eta is nan"),
        ({"eta": -0.5}, r"eta is -0\.5; it can be 0 .* or more"),
        ({"sampler": "tcd", "eta": 1.5}, "eta is 1.5; of tcd it is the paper's gamma, 0 … 1"),
        ({"guidance_scale": math.inf}, "guidance_scale is inf"),
        ({"seed": -1}, "seed -1"),
        ({"seed": 2**32 - 1, "num_images": 2}, "seed 4294967295 with 2 images"),
        ({"num_images": 0}, "num_images is 0"),
    ],
)
def test_bad_values_are_refused_before_anything_is_drawn(tiny: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ldm.txt2img(tiny, "a", **options)  # not even iterated


def test_samplers_and_spacings_by_the_names_of_other_programs(tiny: Any) -> None:
    def chosen(sampler: str, spacing: str | None = None) -> tuple[str, str | None]:
        settings = resolve(tiny, steps=3, sampler=sampler, spacing=spacing)
        return settings.sampler, settings.spacing

    assert chosen("ddim") == ("ddim", "uniform") and chosen("DDPMScheduler") == ("ddpm", "trailing")
    assert chosen("DDIM Karras") == ("ddim", "karras")
    assert chosen("DDIM Karras", "SGM Uniform") == ("ddim", "sgm_uniform")  # the spacing's own word wins
    assert chosen("ddpm", "automatic") == ("ddpm", "trailing")


def test_a_sampler_and_a_spacing_of_ones_own(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SPACINGS, "halves", lambda schedule, n: 2.0 ** -torch.arange(n + 1.0).double())
    monkeypatch.setitem(SAMPLERS, "mine", (SAMPLERS["ddim"][0], "halves"))
    settings = resolve(tiny, steps=3, sampler="mine")
    assert settings.levels(tiny.schedule).tolist() == [1, 0.5, 0.25, 0.125]


@pytest.mark.parametrize(
    "options",
    [
        *({"spacing": spacing, "steps": 10} for spacing in SPACINGS),
        {"spacing": "karras", "steps": 10, "sigma_min": 0.1, "rho": 3.0},
        {"sigmas": [14, 9, 6, 4, 3, 2, 1, 0.5, 0.2, 0.1]},
        {"timesteps": [999, 900, 800, 700, 600, 500, 400, 300, 200, 100]},
    ],
)
def test_from_a_picture_the_last_part_of_any_list_is_visited(tiny: Any, options: dict[str, Any]) -> None:
    whole = resolve(tiny, **options).levels(tiny.schedule)
    assert whole.shape == (11,)
    for strength, count in ((1.0, 10), (0.75, 8), (0.5, 5), (0.01, 1), (0.0, 0)):
        settings = resolve(tiny, strength=strength, **options)
        assert torch.equal(settings.levels(tiny.schedule), whole[10 - count :])
    seen: list[float] = []
    list(ldm.img2img(tiny, "a", PICTURE, strength=0.3, on_step=lambda p: seen.append(p.step.sigma), **options))
    assert seen == whole[8:].tolist()


def test_lists_of_noise_levels_and_of_timesteps_are_one(tiny: Any) -> None:
    t = [999, 600, 24]
    sigmas = tiny.schedule.sigmas[t].tolist()
    a, b = resolve(tiny, timesteps=t), resolve(tiny, sigmas=sigmas)
    assert a == b == resolve(tiny, sigmas=(*sigmas, 0), steps=3) and a.steps == 3 and a.spacing is None
    assert a == resolve(tiny, sampler="DDIM Karras", timesteps=t)  # a list wins over the spacing of a name


def test_a_setting_that_there_is_not_is_refused(tiny: Any) -> None:
    with pytest.raises(TypeError, match="no setting setps"):
        resolve(tiny, setps=3)


@pytest.mark.parametrize("strength", [-0.1, 1.1, math.nan])
def test_bad_strengths_are_refused(tiny: Any, strength: float) -> None:
    with pytest.raises(ValueError, match="strength is"):
        ldm.img2img(tiny, "a", PICTURE, strength=strength)
    with pytest.raises(ValueError, match="batch_size is 0"):
        list(generate(tiny, [Item("a")], resolve(tiny), batch_size=0))


@pytest.mark.parametrize(
    ("size", "given", "expected"),
    [
        ((32, 32), {}, (32, 32)),
        ((37, 29), {}, (32, 40)),
        ((3, 3), {}, (8, 8)),
        ((64, 64), {}, (64, 64)),
        ((400, 100), {}, (16, 64)),
        ((40, 20), {"width": 80}, (40, 80)),
        ((40, 20), {"height": 80}, (80, 160)),
        ((40, 20), {"height": 8, "width": 8}, (8, 8)),
    ],
)
def test_the_size_drawn_from_a_picture(
    tiny: Any, size: tuple[int, int], given: dict[str, int], expected: tuple[int, int]
) -> None:
    assert picture_size(tiny, size, **given) == expected


def test_prompts_are_cleaned_once_at_entry() -> None:
    odd = " a\0b \udc80 🎨"
    assert [item.prompt for item in make_items(odd, odd, 0)] == ["a b ? 🎨"]
    with pytest.raises(ValueError, match="empty"):
        make_items([], "", 0)


def test_a_misspelled_option_is_no_option(tiny: Any) -> None:
    with pytest.raises(TypeError, match="no option 'setps'; did you mean 'steps'"):
        ldm.txt2img(tiny, "a", setps=3)


def test_threads_that_share_a_model_draw_as_if_alone(tiny: LatentDiffusion) -> None:
    """Each edits the network while it draws; the steps of two would take turns, as each sleeps in its own."""

    def pictures(prompt: str, pause: float) -> list[bytes]:
        drawn = ldm.txt2img(tiny, prompt, steps=4, guidance_scale=3.0, on_step=lambda _: time.sleep(pause))
        return [result.image.tobytes() for result in drawn]

    prompts = ["a red cube", "a blue cone", "a cube and a cone"]
    alone = [pictures(prompt, 0) for prompt in prompts]
    with ThreadPoolExecutor(3) as threads:
        together = list(threads.map(pictures, prompts, (0.02, 0.03, 0.01)))
    assert together == alone and len({one[0] for one in alone}) == 3
    assert not any("forward" in vars(module) for module in tiny.modules())


def test_what_does_not_go_together_is_said_at_once(tiny: LatentDiffusion) -> None:
    with pytest.raises(ValueError, match="batch_size is 0"):
        ldm.txt2img(tiny, "a red cube", batch_size=0)  # without asking for a picture
