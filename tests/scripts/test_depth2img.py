from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import ldm
from ldm import hints
from ldm.checkpoint import single_file
from ldm.checkpoint.read import read
from ldm.png import read_request
from ldm.settings import resolve

Run = Callable[..., int]
Capture = pytest.CaptureFixture[str]
GIVEN = ("--prompt", "a", "--steps", 2)


@pytest.fixture(autouse=True)
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(2)
    Image.fromarray(rng.integers(0, 256, (32, 40, 3), dtype=np.uint8)).save("in.png")
    y, x = np.mgrid[:32, :40]
    Image.fromarray((40000 + 3 * x + y).astype(np.uint16)).save("depth.png")  # two grays of 8 bits
    Image.fromarray((40000 + 3 * x[:, ::-1] + y).astype(np.uint16)).save("other.png")
    Image.new("L", (40, 32), 9).save("flat.png")


def pixels(path: str) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


@pytest.mark.long
def test_from_noise_and_from_a_picture_and_again(depth2img: Run, capsys: Capture) -> None:
    assert depth2img(*GIVEN, "--depth", "depth.png") == 0
    assert depth2img(*GIVEN, "--depth", "other.png") == 0
    assert pixels("outputs/00000-0.png") != pixels("outputs/00001-0.png")
    with Image.open("outputs/00000-0.png") as image:
        assert image.size == (40, 32) and "strength" not in image.text["parameters"]
    assert depth2img(*GIVEN, "--depth", "depth.png", "--init-img", "in.png", "--strength", 0.5, "--n-samples", 2) == 0
    request = read_request("outputs/00002-0.png")
    assert request["settings"]["strength"] == 0.5 and sorted(request["pictures"]) == ["depth", "init_img"]
    capsys.readouterr()
    for name in ("00000-0", "00002-0", "00003-1"):
        assert depth2img("--reproduce", f"outputs/{name}.png", "--outdir", "again") == 0
        assert "bit for bit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "--depth: name a picture of the depth, brighter is nearer, or one with --init-img"),
        (("--init-img", "in.png"), "--depth: name a picture of the depth"),
        (("--depth", "none.png"), "--depth none.png: there is no such file"),
        (("--depth", "flat.png"), "the depth map is 9 everywhere"),
        (("--depth", "depth.png", "--strength", "0.5"), "--strength is for a picture to begin from"),
        (("--depth", "depth.png", "--mask", "flat.png"), "--mask: scripts/inpaint.py takes it"),
    ],
)
def test_mistakes_get_one_sentence_and_status_2(
    depth2img: Run, capsys: Capture, options: tuple[str, ...], words: str
) -> None:
    assert depth2img("--prompt", "a", *options) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and words in err and err.count("\n") == 1, err


def test_the_right_model_and_the_right_script(depth2img: Run, txt2img: Run, tiny_file: Path, capsys: Capture) -> None:
    assert depth2img(*GIVEN, "--depth", "depth.png", "--model", tiny_file) == 2
    assert "takes 0 channels beside the latent, and here are 1; draw with scripts/txt2img.py" in capsys.readouterr().err
    deep = depth2img(*GIVEN, "--depth", "depth.png") == 0 and read_request("outputs/00000-0.png")["model"]["name"]
    assert txt2img(*GIVEN, "--model", deep) == 2
    assert "it takes a depth map: draw with scripts/depth2img.py" in capsys.readouterr().err


def test_a_file_that_holds_another_network_for_depth_loads_without_it(
    depth2img: Run, tiny_deep: Path, capsys: Capture
) -> None:
    tensors = single_file.to_original(ldm.load(tiny_deep))
    tensors["depth_model.model.pretrained.model.cls_token"] = torch.ones(1, 1, 8)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, "whole.safetensors")
    Path("whole.yaml").write_text(json.dumps(json.loads(read(tiny_deep).metadata["config"])))
    model = ("--model", "whole.safetensors", "--config", "whole.yaml")
    assert depth2img(*GIVEN, *model, "--init-img", "in.png") == 2
    assert "--depth: name a picture of the depth" in capsys.readouterr().err
    assert depth2img(*GIVEN, *model, "--depth", "depth.png") == 0
    assert depth2img(*GIVEN, "--depth", "depth.png") == 0
    assert pixels("outputs/00000-0.png") == pixels("outputs/00001-0.png")


ESTIMATOR = {"width": 16, "heads": 2, "layers": 2, "hooks": [0, 1], "stem_channels": 8, "features": 8}
ESTIMATOR |= {"stage_depths": [1, 1, 1], "norm_num_groups": 4, "positions": 4}


@pytest.mark.long
def test_a_file_that_holds_the_network_for_depth_needs_no_map(
    depth2img: Run, make_tiny: Callable[..., Path], capsys: Capture
) -> None:
    node = {"target": "DPTDepthEstimator", "params": ESTIMATOR}
    blind = make_tiny("blind", {"in_channels": 5}, depth_estimator=node)
    loaded = ldm.load(blind)
    loaded.depth_estimator.head[4].bias.data += 1  # else 0, the farthest, everywhere
    ldm.save(loaded, "seeing.safetensors", config=json.loads(read(blind).metadata["config"]))
    model = ("--model", "seeing.safetensors")
    assert depth2img(*GIVEN, *model) == 2
    assert "or one with --init-img whose depth is to be estimated" in capsys.readouterr().err
    Image.open("in.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save("mirrored.png")
    for name in ("in.png", "mirrored.png"):  # at strength 1 nothing is left of it but its depth
        assert depth2img(*GIVEN, *model, "--init-img", name, "--strength", 1) == 0
    assert pixels("outputs/00000-0.png") != pixels("outputs/00001-0.png")
    capsys.readouterr()
    assert depth2img("--reproduce", "outputs/00000-0.png", *model, "--outdir", "again") == 0
    assert "bit for bit" in capsys.readouterr().out
    settings = resolve(loaded, height=32, width=40)
    with Image.open("in.png") as image:
        estimated = hints.estimated_depth(loaded, image.convert("RGB"))
    estimated.save("estimated.tiff")
    assert depth2img(*GIVEN, *model, "--init-img", "in.png", "--depth", "estimated.tiff", "--strength", 1) == 0
    assert pixels("outputs/00002-0.png") == pixels("outputs/00000-0.png")
    with pytest.raises(ValueError, match="neither a depth map nor a picture"):
        hints.from_depth(loaded, None, settings)
