"""Guidance on the command line: what is asked for is drawn, is written into the picture, and is drawn again from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from glob import glob
from pathlib import Path

import pytest
from PIL import Image

from ldm.png import read_request

Run = Callable[..., int]
Capture = pytest.CaptureFixture[str]
DRAW = ("--prompt", "a red cube", "--steps", 2)


def pixels(path: str | Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


@pytest.mark.long
def test_everything_at_once_is_reproduced(txt2img: Run, make_tiny: Callable[..., Path], capsys: Capture) -> None:
    worse = make_tiny("worse", {"layers_per_block": 2})
    options = (
        *("--scale", "0.5,1.2", "--guidance-rescale", 0.7, "--dynamic-threshold", 0.9, "--guidance_interval", "0.5,9"),
        *("--cfg-pp", "--pag-scale", 2.5, "--pag-layers", "mid_block,up_blocks.1", "--freeu", "1.1,1.2,0.9,0.2"),
        *("--autoguide", worse, "--autoguide-scale", 1.5),
    )
    assert txt2img(*DRAW, *options, "--n_samples", 3, "--skip-grid") == 0
    assert sorted(glob("*.png", root_dir="outputs")) == ["00000-0.png", "00001-1.png", "00002-2.png"]
    request = read_request("outputs/00001-1.png")
    assert len(request.pop("job")) == 64
    assert request["settings"]["guidance"] == {
        "rescale": 0.7,
        "threshold": 0.9,
        "interval": [0.5, 9.0],
        "cfg_pp": True,
        "pag": 2.5,
        "pag_layers": ["mid_block", "up_blocks.1"],
        "freeu": [1.1, 1.2, 0.9, 0.2],
        "autoguide": 1.5,
    }
    assert [one["guidance_scale"] for one in request["batch"]] == [0.5, 1.2, 0.5]
    with Image.open("outputs/00001-1.png") as image:
        text = image.text["parameters"]
    assert "CFG scale: 1.2, Seed: 1" in text
    assert "CFG Rescale phi: 0.7, Dynamic thresholding percentile: 0.9, Guidance interval: 0.5 … 9, CFG++: True" in text
    assert "PAG Scale: 2.5, FreeU: 1.1 1.2 0.9 0.2, Autoguidance model: worse, Autoguidance scale: 1.5, Version" in text
    assert txt2img("--reproduce", "outputs/00001-1.png", "--outdir", "again") == 0
    assert "bit for bit" in capsys.readouterr().out
    assert read_request("again/00000-1.png") == request
    assert txt2img("--reproduce", "outputs/00001-1.png", "--autoguide", make_tiny("other", {"head_channels": 8})) == 2
    assert "not the file that drew outputs/00001-1.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option",
    [
        ("--guidance-rescale", 1),
        ("--dynamic-threshold", 0.5),
        ("--guidance-interval", "0,1"),
        ("--cfg-pp",),
        ("--pag", 4),
        ("--freeu", "1.4,1.6,0.9,0.2"),
    ],
)
def test_each_alone_changes_the_picture(txt2img: Run, option: tuple[object, ...]) -> None:
    scale = () if option == ("--cfg-pp",) else ("--scale", 200)  # a random network hardly hears its prompt
    assert txt2img(*DRAW, *scale) == 0
    assert txt2img(*DRAW, *scale, *option) == 0
    assert pixels("outputs/00000-0.png") != pixels("outputs/00001-0.png")


def test_scales_take_turns_and_an_x_plot_is_one_line(txt2img: Run) -> None:
    assert txt2img(*DRAW, "--scale", "1,3", "--n_iter", 2, "--fixed-code", "--skip-grid") == 0
    assert txt2img(*DRAW, "--scale", 1, "--outdir", "one") == 0
    assert txt2img(*DRAW, "--outdir", "three") == 0  # the model's own scale is 3
    names = sorted(glob("*.png", root_dir="outputs"))
    assert names == ["00000-0.png", "00001-0.png"]  # of the same seed
    assert [pixels(f"outputs/{name}") for name in names] == [
        pixels(f"{folder}/00000-0.png") for folder in ("one", "three")
    ]


def test_pictures_made_before_there_was_guidance(txt2img: Run, capsys: Capture) -> None:
    from PIL.PngImagePlugin import PngInfo

    assert txt2img(*DRAW) == 0
    with Image.open("outputs/00000-0.png") as image:
        request = json.loads(image.text["ldm"])
        changes = ((lambda g: None, "old"), (lambda g: {**g, "pag": "much"}, "garbled"), (lambda g: [g], "listed"))
        for change, name in changes:
            settings = {**request["settings"], "guidance": change(request["settings"]["guidance"])}
            batch = [{k: v for k, v in one.items() if k != "guidance_scale"} for one in request["batch"]]
            if settings["guidance"] is None:
                del settings["guidance"]
            info = PngInfo()
            info.add_text("ldm", json.dumps({**request, "settings": settings, "batch": batch}))
            image.save(f"{name}.png", pnginfo=info)
    assert txt2img("--reproduce", "old.png") == 0
    assert txt2img("--reproduce", "garbled.png") == 2
    assert "garbled.png: its request is not one of ours (ValueError" in capsys.readouterr().err
    assert txt2img("--reproduce", "listed.png") == 2
    assert "listed.png: its request is not one of ours (AttributeError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--scale", "3,x"), "--scale: 'x' is not a number"),
        (("--pag", 3, "--pag-layers", "mid_block,"), "--pag-layers: 'mid_block,' has an empty name"),
        (("--scale", "3,5,7"), "--scale: 3 scales for 1 picture; --n-iter or --n-samples draws more"),
        (("--guidance-rescale", 2), "--guidance-rescale: 2 is out of range; give 0 … 1"),
        (("--dynamic-threshold", 99.5), "--dynamic-threshold: 99.5 is out of range; give 0 … 1"),
        (("--guidance-interval", 3), "'3' is not 2 numbers apart by commas, such as 0.3,5"),
        (("--guidance-interval", "5,3"), "give the lowest sigma and then the highest"),
        (("--freeu", "1,1"), "'1,1' is not 4 numbers apart by commas, such as 1.3,1.4,0.9,0.2"),
        (("--pag-layers", "mid_block"), "--pag-layers: nothing is perturbed; give --pag a scale"),
        (("--pag", 3, "--pag-layers", "mid"), "there is no self-attention in 'mid' of this network"),
        (("--autoguide-scale", 2), "--autoguide-scale: there is no model to lead away from"),
        (("--autoguide", "none.safetensors"), "--autoguide none.safetensors: there is no such file"),
        (("--cfg-pp", "--scale", 7.5), "--scale is 7.5; with CFG++ it is 0 … 1"),
    ],
)
def test_mistakes_get_one_sentence(txt2img: Run, capsys: Capture, options: tuple[object, ...], words: str) -> None:
    assert txt2img("--prompt", "a", *options) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and words in err and err.count("\n") == 1, err


@pytest.mark.parametrize("options", [("--guidance-interval", "5,3"), ("--cfg-pp", "--scale", "0.6,7.5", "--n-iter", 2)])
def test_guidance_is_checked_before_a_model_is_loaded(
    txt2img: Run, capsys: Capture, options: tuple[object, ...]
) -> None:
    assert txt2img("--prompt", "a", "--model", "nonesuch", *options) == 2
    out, err = capsys.readouterr()
    assert out == "" and ("--guidance-interval" in err or "--scale" in err) and "nonesuch" not in err
