from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.png import read_request

Run = Callable[..., int]
Capture = pytest.CaptureFixture[str]
TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def upscaler_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from ldm.checkpoint.load import save
    from ldm.config import build, load_config

    tree = load_config(TESTS / "tiny.yaml")
    tree["params"]["unet"]["params"] |= {"in_channels": 52, "num_classes": 100}
    tree["params"]["low_resolution"] = {
        "target": "NoiseAugmentation",
        "params": {"schedule": {"target": "NoiseSchedule", "params": {}}, "max_level": 99, "fold": 4},
    }
    torch.manual_seed(0)
    model = build(tree)
    for parameter in model.unet.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    path = tmp_path_factory.mktemp("model") / "upscaler.safetensors"
    save(model, path, config=tree)
    return path


@pytest.fixture
def upscale(upscaler_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    from _cli import main

    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(2).integers(0, 256, (11, 19, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("in.png")
    return lambda *options: main("upscale", ["--model", str(upscaler_file), "--device", "cpu", *map(str, options)])


def test_a_picture_is_enlarged_and_made_again(upscale: Run, capsys: Capture) -> None:
    job = ("--init-img", "in.png", "--prompt", "a", "--steps", 1, "--tile", 16)
    assert upscale(*job, "--noise_level", 7) == 0
    with Image.open("outputs/00000-0.png") as image:
        assert image.size == (38, 22)
    assert read_request("outputs/00000-0.png")["own"] == {"noise_level": 7, "tile": 16}
    assert upscale("--reproduce", "outputs/00000-0.png", "--outdir", "again") == 0
    assert "bit for bit" in capsys.readouterr().out
    assert upscale(*job, "--noise_level", 70) == 0
    with Image.open("outputs/00000-0.png") as one, Image.open("outputs/00001-0.png") as other:
        assert one.tobytes() != other.tobytes()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "--init-img: name the picture"),
        (("--init-img", "in.png", "--H", 64), "leave them out"),
        (("--init-img", "in.png", "--noise-level", 100), "noise level 100 is outside"),
        (("--init-img", "in.png", "--tile", 20), "multiples of 8"),
        (("--init-img", "in.png", "--noise-level", "much"), "'much' is not a whole number"),
    ],
)
def test_mistakes_get_one_sentence_and_status_2(
    upscale: Run, capsys: Capture, options: tuple[object, ...], words: str
) -> None:
    assert upscale(*options) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and words in err and err.count("\n") == 1, err


def test_other_models_say_that_they_cannot(tiny_file: Path, upscale: Run, capsys: Capture) -> None:
    from _cli import main

    for command, words in (("upscale", "no upscaler"), ("variations", "does not vary pictures")):
        assert main(command, ["--model", str(tiny_file), "--device", "cpu", "--init-img", "in.png"]) == 2
        assert words in capsys.readouterr().err
