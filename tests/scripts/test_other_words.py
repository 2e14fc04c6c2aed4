"""What people bring along from other programs and from Python, and what they are told before a weight is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from ldm.png import read_request

Run = Callable[..., int]
Capture = pytest.CaptureFixture[str]
DRAW = ("--prompt", "a red cube", "--steps", 2)
PLUGIN = """
from ldm.models.diffusion import SAMPLERS, SPACINGS, euler

def doubled(denoise, x, sigmas, *, noise, eta=0.25):
    assert eta == 0.25
    yield from euler(denoise, x, sigmas, noise=noise)

SAMPLERS["twice"] = (doubled, "own_levels")
SPACINGS["own_levels"] = lambda schedule, n: SPACINGS["karras"](schedule, n, rho=3)
"""


def pixels(path: str) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


@pytest.fixture
def plugin() -> Iterator[str]:
    from ldm.models.diffusion import SAMPLERS, SPACINGS

    Path("mine.py").write_text(PLUGIN)
    yield "mine.py"
    SAMPLERS.pop("twice", None)
    SPACINGS.pop("own_levels", None)


def test_a_plugins_sampler_and_spacing(txt2img: Run, plugin: str, capsys: Capture) -> None:
    assert txt2img(*DRAW, "--sampler", "twice") == 2
    assert "--sampler: there is no sampler 'twice'" in capsys.readouterr().err
    assert txt2img(*DRAW, "--plugin", plugin, "--sampler", "twice") == 0
    assert txt2img(*DRAW, "--sampler", "euler", "--spacing", "karras", "--rho", 3, "--outdir", "same") == 0
    assert pixels("outputs/00000-0.png") == pixels("same/00000-0.png")
    settings = read_request("outputs/00000-0.png")["settings"]
    assert (settings["sampler"], settings["spacing"], settings["eta"]) == ("twice", "own_levels", 0.25)
    with Image.open("outputs/00000-0.png") as image:
        assert ", Sampler: twice, Schedule type: own_levels, " in image.text["parameters"]
    assert txt2img("--reproduce", "outputs/00000-0.png", "--plugin", plugin, "--outdir", "again") == 0
    assert "bit for bit" in capsys.readouterr().out
    assert txt2img(*DRAW, "--plugin", plugin, "--explain", "--spacing", "own_levels") == 0
    assert "2 steps of ddim, spacing own_levels" in capsys.readouterr().out
    for wrong in ("thrice", "Karras"):
        assert txt2img(*DRAW, "--plugin", plugin, "--sampler", wrong) == 2
        assert f"there is no sampler '{wrong}'" in capsys.readouterr().err


def test_options_by_the_names_of_other_programs() -> None:
    from _cli import parse

    theirs = "--cfg-scale 5 --num_inference_steps 7 --sampler_name Euler --scheduler Karras --negative fog"
    theirs += " --batch-count 2 --num-images 3 --subseed 4 --subseed-strength 0.5 --output there"
    ours = "--scale 5 --steps 7 --sampler Euler --spacing Karras --neg fog"
    ours += " --n_iter 2 --n_samples 3 --variation-seed 4 --variation-strength 0.5 --outdir there"
    found, wanted = (vars(parse("txt2img", ["--prompt", "a", *words.split()])) for words in (theirs, ours))
    assert found == wanted and found["scale"] == (5.0,) and found["variation_strength"] == 0.5
    with pytest.raises(ValueError, match="--guidance-scale.*: 'much' is not a number"):
        parse("txt2img", ["--prompt", "a", "--guidance-scale", "much"])


def test_options_of_other_commands_are_said_to_be_theirs() -> None:
    from _cli import parse

    for words, other in (("--strength 0.5", "img2img"), ("--init-img a.png", "img2img"), ("--classes 3", "sample")):
        with pytest.raises(ValueError, match=rf"^{words.split()[0]}: scripts/{other}.py takes it"):
            parse("txt2img", ["--prompt", "a", *words.split()])
    with pytest.raises(ValueError, match="no-such.png"):  # which takes it
        parse("inpaint", ["--prompt", "a", "--strength", "0.5", "--init-img", "no-such.png"])


@pytest.mark.parametrize(
    ("said", "typed"),
    [
        (
            "sigma_min is 3 and sigma_max 1; take 0 < sigma_min",
            "--sigma-min is 3 and --sigma-max 1; take 0 < --sigma-min",
        ),
        ("eta is 1, but sampler plms has none", "--eta is 1, but sampler plms has none"),
        ("sigmas and timesteps are both given", "--sigmas and --timesteps are both given"),
        ("guidance_scale is 7; 0.6 is usual", "--scale is 7; 0.6 is usual"),
        ("height 100 is not a multiple of 16", "--H 100 is not a multiple of 16"),
        ("interval is (5, 1)", "--guidance-interval is (5, 1)"),
        ("a.ckpt: use it whole, or give autoencoder=FILE", "a.ckpt: use it whole, or give --vae FILE"),
        ("in/clip_skip/eta.png: 'sigma_min' is broken", "in/clip_skip/eta.png: 'sigma_min' is broken"),
        ("--n-iter is fine, and eta too", "--n-iter is fine, and eta too"),
    ],
)
def test_settings_are_called_what_their_options_are(said: str, typed: str) -> None:
    from _parser import as_typed

    assert as_typed(said, "txt2img") == typed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--plms", "--eta", "1"), "--eta is 1, but sampler plms has none"),
        (("--clip-skip", "9"), "--clip-skip is 9; for this text tower it can be 1"),
        (("--spacing", "karras", "--sigma-max", "20"), "--sigma-max 20; this model takes"),
        (("--pag", "3", "--pag-layers", "nowhere"), "no self-attention in 'nowhere'"),
        (("--C", "3"), "--C 3: this model has 4"),
        (("--refiner", "scenes-x4"), "and its refiner have different latents"),
        (("--autoguide", "scenes-x4"), "and its autoguide have different latents"),
    ],
)
def test_it_is_said_before_a_weight_is_read(
    txt2img: Run, capsys: Capture, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], words: str
) -> None:
    import ldm.checkpoint.load

    monkeypatch.setattr(ldm.checkpoint.load, "fill", lambda *_, **__: pytest.fail("weights were read"))
    assert txt2img(*DRAW, *options) == 2
    assert words in capsys.readouterr().err


def test_what_a_second_model_cannot_be(txt2img: Run, make_tiny: Callable[..., Path], capsys: Capture) -> None:
    painter = make_tiny("second", {"in_channels": 9})
    assert txt2img(*DRAW, "--refiner", painter) == 2
    assert "the refiner's network takes 5 channels beside the latent" in capsys.readouterr().err
    assert txt2img(*DRAW, "--autoguide", painter) == 2
    assert "takes 0 channels beside the latent, its autoguide's 5" in capsys.readouterr().err
    tower = {"target": "OpenCLIPTextEncoder", "params": {"width": 16, "heads": 2, "layers": 3, "context_length": 16}}
    deeper = make_tiny("deeper", text_encoder=tower)
    assert txt2img(*DRAW, "--model", deeper, "--refiner", deeper, "--clip-skip", 2) == 0
    shallow = make_tiny("shallow")
    assert txt2img(*DRAW, "--model", deeper, "--refiner", shallow, "--clip-skip", 2) == 2
    assert "the refiner cannot: --clip-skip is 2; for this text tower" in capsys.readouterr().err


def test_an_infinite_s_tmax_is_all(txt2img: Run, capsys: Capture) -> None:
    churn = ("--sampler", "heun", "--s-churn", 3)
    assert txt2img(*DRAW, *churn) == 0
    assert txt2img(*DRAW, *churn, "--s-tmax", "inf", "--outdir", "inf") == 0
    assert pixels("outputs/00000-0.png") == pixels("inf/00000-0.png")
    assert read_request("inf/00000-0.png")["settings"]["s_tmax"] is None
    assert txt2img("--reproduce", "inf/00000-0.png", "--outdir", "again") == 0
    assert txt2img(*DRAW, "--s-tmax", "inf") == 2
    assert "--s-tmax is inf, but sampler ddim has none" in capsys.readouterr().err
    assert txt2img(*DRAW, *churn, "--s-tmax", "nan") == 2
    assert "--s-tmax: nan is out of range" in capsys.readouterr().err


def test_networks_that_a_prompt_asks_for_are_missed_aloud(txt2img: Run, capsys: Capture) -> None:
    assert txt2img("--prompt", "a <lora:foo:0.8> cube", "--neg", "<b>", "--steps", 1) == 0
    err = capsys.readouterr().err
    assert "<lora:foo:0.8> in the prompt is read as text" in err and "<b>" not in err


def test_explain_counts_the_other_models(
    txt2img: Run, tiny_file: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ldm.models.diffusion.denoiser import Conditioning, Denoiser

    made: dict[int, int] = {}
    call = Denoiser.__call__

    def spy(self: Denoiser, x: torch.Tensor, sigma: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        made[id(self)] = made.get(id(self), 0) + 1
        return call(self, x, sigma, cond)

    job = ("--prompt", "a", "--steps", 5, "--sampler", "heun")
    job += ("--refiner", tiny_file, "--refine-at", 0.6, "--autoguide", tiny_file)
    assert txt2img("--explain", *job) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80 and "the refiner is asked below sigma" in out
    told = {}
    for name in ("network", "refiner", "autoguide"):
        count, rows = out.split(f"calls     of the {name}\n")[1].split("\n")[0].strip().split(" × ")
        told[name] = int(count)
        assert rows.startswith("1 row," if name == "autoguide" else "2 rows,")
    monkeypatch.setattr(Denoiser, "__call__", spy)
    assert txt2img(*job) == 0
    assert sorted(made.values()) == sorted(told.values()) and told["network"] == told["autoguide"] > told["refiner"]
    lines = [line.split() for line in out.splitlines()]
    weights = {line[0]: float(line[1]) for line in lines if line[-1:] == ["MB"] and len(line) == 3}
    assert weights["refiner"] == weights["autoguide"] > weights["network"]
