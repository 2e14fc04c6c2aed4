from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from ldm.png import read_request

Run = Callable[..., int]
Capture = pytest.CaptureFixture[str]
NO_TEXT = {"target": "NoText", "params": {}}
CLASSES = {"target": "ClassEmbedder", "params": {"num_classes": 11, "embed_dim": 16}}


@pytest.fixture(scope="session")
def unconditional(make_tiny: Callable[..., Path]) -> Path:
    unet = {"context_dim": None, "transformer_depth": 0}
    return make_tiny("unconditional", unet, text_encoder=NO_TEXT, guidance_scale=1.0, parameterization="eps")


@pytest.fixture(scope="session")
def classes(make_tiny: Callable[..., Path]) -> Path:
    return make_tiny("classes", text_encoder=CLASSES, parameterization="eps")


def pixels(path: str) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def pictures(folder: str = "outputs") -> list[str]:
    return sorted(name for name in os.listdir(folder) if not name.startswith(("grid", "job")))


def test_a_model_of_pictures_alone(sample: Run, txt2img: Run, unconditional: Path, capsys: Capture) -> None:
    assert sample("--model", unconditional, "--n_samples", 4, "--steps", 2, "--seed", 3) == 0
    assert pictures() == ["00000-3.png", "00001-4.png", "00002-5.png", "00003-6.png"]
    assert len({pixels(f"outputs/{name}") for name in pictures()}) == 4
    assert len(read_request("outputs/00000-3.png")["batch"]) == 4
    assert sample("--reproduce", "outputs/00002-5.png", "--outdir", "again", "--model", unconditional) == 0
    assert "bit for bit" in capsys.readouterr().out
    assert txt2img("--reproduce", "outputs/00002-5.png", "--outdir", "again", "--model", unconditional) == 0
    assert sample("--model", unconditional, "--classes", "1") == 2
    assert "--classes 1: this model knows no classes" in capsys.readouterr().err


def test_classes_and_guidance(sample: Run, classes: Path) -> None:
    draw = ("--model", classes, "--steps", 2, "--fixed-code", "--skip-grid")
    assert sample(*draw, "--classes", "7,2", "--n_samples", 2) == 0
    requests = [read_request(f"outputs/{name}") for name in pictures()]
    assert [(r["prompt"], r["seed"]) for r in requests] == [("7", 0), ("7", 1), ("2", 0), ("2", 1)]
    drawn = [pixels(f"outputs/{name}") for name in pictures()]
    assert drawn[0] != drawn[2]  # the same noise, another class
    assert sample(*draw, "--outdir", "none", "--scale", 1) == 0
    assert sample(*draw, "--outdir", "last", "--scale", 1, "--classes", 10) == 0  # the class of no class
    assert sample(*draw, "--outdir", "seven", "--scale", 1, "--classes", 7) == 0
    none, last, seven = (pixels(f"{folder}/00000-0.png") for folder in ("none", "last", "seven"))
    assert none == last != seven != drawn[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--classes", "3,11"), "a class number from 0 to 10, not '11'"),
        (("--classes", "cat"), "--classes: 'cat' is not a list of class numbers; write it as 207,88"),
        (("--prompt", "a cat"), "--prompt a cat: no such option"),
    ],
)
def test_mistakes_get_one_sentence_and_status_2(
    sample: Run, classes: Path, capsys: Capture, options: tuple[str, ...], words: str
) -> None:
    assert sample("--model", classes, *options) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and words in err and err.count("\n") == 1, err
    assert not Path("outputs").exists() or pictures() == []


def test_a_model_of_words_is_sent_to_txt2img(sample: Run, capsys: Capture) -> None:
    assert sample("--steps", 1) == 2
    assert "this model draws from words; use txt2img.py with --prompt" in capsys.readouterr().err
