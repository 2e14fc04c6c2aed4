"""The scripts' own modules, and a file with a miniature model of random weights for them to load."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS.parent / "scripts"))  # as `python scripts/txt2img.py` does

Run = Callable[..., int]


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _miniature(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture(scope="session")
def tiny_painter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `tiny_file`, with a network that is shown a mask and the masked picture."""
    return _miniature(tmp_path_factory.mktemp("model") / "painter.safetensors", in_channels=9)


@pytest.fixture(scope="session")
def tiny_deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `tiny_file`, with a network that is shown depth."""
    return _miniature(tmp_path_factory.mktemp("model") / "deep.safetensors", in_channels=5)


def _miniature(path: Path, **unet: int) -> Path:
    import torch

    from ldm.checkpoint.load import save
    from ldm.config import build, load_config
    from ldm.models.latent_diffusion import LatentDiffusion

    torch.manual_seed(0)
    tree = load_config(TESTS / "tiny.yaml")
    tree["params"]["unet"]["params"] |= unet
    model = build(tree, "tiny.yaml", expected=LatentDiffusion)
    for parameter in model.unet.parameters():  # some are zero at first, and a network that answers 0 draws noise
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    save(model, path, config=tree)
    return path


@pytest.fixture
def txt2img(tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`txt2img(*options) -> exit status`, with the miniature model, in an empty folder of its own."""
    return _runner("txt2img", tiny_file, tmp_path, monkeypatch)


@pytest.fixture
def img2img(tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    return _runner("img2img", tiny_file, tmp_path, monkeypatch)


@pytest.fixture(params=["plain", "painter"])
def inpaint(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """With a model of pictures, and with one that is shown the mask."""
    file = request.getfixturevalue("tiny_file" if request.param == "plain" else "tiny_painter")
    return _runner("inpaint", file, tmp_path, monkeypatch)


@pytest.fixture
def depth2img(tiny_deep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    return _runner("depth2img", tiny_deep, tmp_path, monkeypatch)


def _runner(command: str, tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    from _cli import main

    monkeypatch.chdir(tmp_path)
    return lambda *options: main(command, ["--model", str(tiny_file), "--device", "cpu", *map(str, options)])
