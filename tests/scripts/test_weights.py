"""Options that say which weights: of a folder's variants, averaged or not, parts from other files, a refiner."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ldm.checkpoint.read import read
from ldm.png import read_request

Run = Callable[..., int]
Capture = pytest.CaptureFixture[str]
DRAW = ("--prompt", "a red cube", "--steps", 5)
SIZES = ["original_height", "original_width", "crop_top", "crop_left"]
TOWER = {"target": "OpenCLIPTextEncoder", "params": {"width": 16, "heads": 2, "layers": 1, "projection_dim": 16}}


@pytest.fixture(scope="session")
def base(make_tiny: Callable[..., Path]) -> Path:
    return told(make_tiny, "base", [*SIZES, "target_height", "target_width"], zero_unconditional=True)


@pytest.fixture(scope="session")
def refiner(make_tiny: Callable[..., Path]) -> Path:
    return told(make_tiny, "refiner", [*SIZES, "aesthetic_score"])


def told(make_tiny: Callable[..., Path], name: str, numbers: list[str], **params: Any) -> Path:
    framing = {"target": "FramingEmbedding", "params": {"numbers": numbers, "dim": 8}}
    path = make_tiny(
        name,
        {"y_dim": 16 + 8 * len(numbers)},
        text_encoder=TOWER,
        framing_embedding=framing,
        parameterization="eps",
        **params,
    )
    weights = read(path)
    weights.tensors["unet.add_embedding.linear_1.weight"] *= 30  # so that what is told shows
    save_file(weights.tensors, path, metadata=weights.metadata)
    return path


def changed(path: Path, part: str, name: str) -> str:
    """A file whose tensors of a part are other ones."""
    weights = read(path)
    tensors = {k: v + 0.05 if k.startswith(part) else v for k, v in weights.tensors.items()}
    save_file(tensors, name, metadata=weights.metadata)
    return name


def pixels(path: str) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


@pytest.mark.long
def test_a_refiner_and_sizes(txt2img: Run, base: Path, refiner: Path, capsys: Capture) -> None:
    draw = (*DRAW, "--model", base, "--original-size", "512x640", "--crop", "16,8")
    assert txt2img(*draw, "--refiner", refiner, "--refine_at", 0.4) == 0
    assert txt2img(*draw, "--outdir", "alone") == 0
    assert txt2img(*draw, "--outdir", "later", "--refiner", refiner) == 0
    assert txt2img(*DRAW, "--model", base, "--outdir", "plain") == 0
    folders = ("outputs", "alone", "later", "plain")
    assert len({pixels(f"{folder}/00000-0.png") for folder in folders}) == 4
    request = read_request("outputs/00000-0.png")
    assert request["settings"]["original_size"] == [512, 640] and request["settings"]["crop"] == [16, 8]
    assert request["model"]["refine_at"] == 0.4 and request["model"]["parts"]["refiner"]["file"] == str(refiner)
    with Image.open("later/00000-0.png") as image:
        assert ", Refiner: refiner, Refiner switch at: 0.8, Version: " in image.text["parameters"]
    capsys.readouterr()
    assert txt2img("--reproduce", "outputs/00000-0.png", "--model", base, "--outdir", "again") == 0
    assert "bit for bit" in capsys.readouterr().out
    other = changed(refiner, "unet.", "other.safetensors")
    assert txt2img("--reproduce", "outputs/00000-0.png", "--model", base, "--refiner", other) == 2
    assert "--refiner other.safetensors: not the file that drew outputs/00000-0.png" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.parametrize(("option", "part"), [("--vae", "autoencoder."), ("--text-encoder", "text_encoder.")])
def test_a_part_from_another_file(txt2img: Run, tiny_file: Path, capsys: Capture, option: str, part: str) -> None:
    other = changed(tiny_file, "", "other.safetensors")  # everything in it differs, and one part is taken
    whole = changed(tiny_file, part, "whole.safetensors")
    assert txt2img(*DRAW, option, other) == 0
    assert txt2img(*DRAW, "--outdir", "whole", "--model", whole) == 0
    assert txt2img(*DRAW, "--outdir", "plain") == 0
    assert pixels("outputs/00000-0.png") == pixels("whole/00000-0.png") != pixels("plain/00000-0.png")
    os.rename(other, "moved.safetensors")
    assert txt2img("--reproduce", "outputs/00000-0.png") == 2
    assert "other.safetensors: cannot be read" in capsys.readouterr().err
    assert txt2img("--reproduce", "outputs/00000-0.png", option, "moved.safetensors") == 0
    assert "bit for bit" in capsys.readouterr().out


def test_what_the_network_predicts(txt2img: Run, capsys: Capture) -> None:
    assert txt2img(*DRAW, "--parameterization", "eps") == 0
    assert txt2img(*DRAW, "--outdir", "plain") == 0
    assert pixels("outputs/00000-0.png") != pixels("plain/00000-0.png")
    said = [read_request(f"{folder}/00000-0.png")["model"]["parameterization"] for folder in ("outputs", "plain")]
    assert said == ["eps", "v"]
    assert txt2img("--reproduce", "outputs/00000-0.png", "--outdir", "again") == 0
    assert "bit for bit" in capsys.readouterr().out


def test_the_averaged_network(txt2img: Run, tiny_file: Path, capsys: Capture) -> None:
    from ldm.checkpoint import single_file
    from ldm.checkpoint.load import load

    model = load(tiny_file)
    tensors = {k: v.detach().clone() for k, v in single_file.to_original(model).items()}
    unet = [name for name in tensors if name.startswith("model.diffusion_model.")]
    tensors |= {f"model_ema.{name[6:].replace('.', '')}": tensors[name] * 1.1 for name in unet}
    save_file(tensors, "both.safetensors")
    draw = (*DRAW, "--model", "both.safetensors", "--config", Path(__file__).parents[1] / "tiny.yaml")
    assert txt2img(*draw, "--ema") == 0
    assert txt2img(*draw, "--no_ema", "--outdir", "plain") == 0
    assert txt2img(*DRAW, "--outdir", "tiny") == 0
    assert pixels("outputs/00000-0.png") != pixels("plain/00000-0.png") == pixels("tiny/00000-0.png")
    again = ("--reproduce", "outputs/00000-0.png", "--model", "both.safetensors", "--outdir", "again")
    assert txt2img(*again) == 0
    assert "bit for bit" in capsys.readouterr().out
    assert txt2img(*again, "--no-ema") == 2
    assert "leave out --ema" in capsys.readouterr().err


def test_a_folders_variant(txt2img: Run, tiny_file: Path) -> None:
    tensors = load_file(tiny_file)
    for part, folder in (("unet", "unet"), ("autoencoder", "vae"), ("text_encoder", "text_encoder")):
        os.makedirs(f"folder/{folder}")
        own = {k.removeprefix(f"{part}."): v for k, v in tensors.items() if k.startswith(f"{part}.")}
        stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        save_file(own, f"folder/{folder}/{stem}.safetensors")
        half = {k: (v * (1.1 if part == "unet" else 1)).half() for k, v in own.items()}
        save_file(half, f"folder/{folder}/{stem}.fp16.safetensors")
    Path("folder/model_index.json").write_text(json.dumps({}))
    draw = (*DRAW, "--model", "folder", "--config", Path(__file__).parents[1] / "tiny.yaml")
    assert txt2img(*draw, "--variant", "fp16") == 0
    assert txt2img(*draw, "--outdir", "plain") == 0
    assert pixels("outputs/00000-0.png") != pixels("plain/00000-0.png")
    was, plain = (read_request(f"{folder}/00000-0.png")["model"] for folder in ("outputs", "plain"))
    assert was["variant"] == "fp16" and was["sha256"] == plain["sha256"]
    again = ("--reproduce", "outputs/00000-0.png", "--model", "folder", "--outdir", "again")
    assert txt2img(*again) == 0
    Path("folder/unet/config.json").write_text("{}")
    assert txt2img(*again) == 2  # not the folder that it was


def test_half_precision_decodes_in_full(txt2img: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """SDXL's autoencoder overflows in float16."""
    from ldm.models.latent_diffusion import LatentDiffusion

    decode, seen = LatentDiffusion.decode, []

    def spy(model: LatentDiffusion, z: torch.Tensor) -> torch.Tensor:
        pixels = decode(model, z)
        seen.append((model.dtype, next(model.autoencoder.parameters()).dtype, pixels.dtype))
        return pixels

    monkeypatch.setattr(LatentDiffusion, "decode", spy)
    for precision in ("fp16", "bf16", "autocast"):
        assert txt2img("--prompt", "a", "--steps", 1, "--precision", precision) == 0
    halves = [torch.float16, torch.bfloat16, torch.float32]
    assert seen == [(half, torch.float32, torch.float32) for half in halves]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--refine-at", "0.5"), "--refine-at: there is no refiner that could begin; name one with --refiner"),
        (("--refiner", "none.safetensors"), "--refiner none.safetensors: there is no such file"),
        (("--vae", "none.safetensors"), "--vae none.safetensors: there is no such file"),
        (("--text_encoder", "none.safetensors"), "--text-encoder none.safetensors: there is no such file"),
        (("--parameterization", "epsilon"), "there are eps, v, x0; did you mean eps?"),
        (("--ema",), "holds no EMA weights"),
        (("--original-size", "512"), "'512' is not HxW: two whole numbers of pixels, 1 or more"),
        (("--crop=-1,2",), "'-1,2' is not T,L: two whole numbers of pixels, 0 or more"),
        (("--crop", "1,2"), "crop is (1, 2), but this model is not told of it"),
    ],
)
def test_mistakes_get_one_sentence_and_status_2(
    txt2img: Run, capsys: Capture, options: tuple[str, ...], words: str
) -> None:
    assert txt2img("--prompt", "a", *options) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and words in err and err.count("\n") == 1, err
