"""The scripts' own modules, and a file with a miniature model of random weights for them to load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parents[1]

Run = Callable[..., int]


@pytest.fixture(scope="session")
def tiny_file(make_tiny: Callable[..., Path]) -> Path:
    return make_tiny("tiny")


@pytest.fixture(scope="session")
def tiny_painter(make_tiny: Callable[..., Path]) -> Path:
    """As `tiny_file`, with a network that is shown a mask and the masked picture."""
    return make_tiny("painter", {"in_channels": 9})


@pytest.fixture(scope="session")
def tiny_deep(make_tiny: Callable[..., Path]) -> Path:
    """As `tiny_file`, with a network that is shown depth."""
    return make_tiny("deep", {"in_channels": 5})


@pytest.fixture(scope="session")
def make_tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_tiny(name, unet={…}, **params)`: a file of the miniature model, with other params of it and of its UNet."""

    def make(name: str, unet: dict[str, Any] | None = None, **params: Any) -> Path:
        from ldm.config import load_config

        tree = load_config(TESTS / "tiny.yaml")
        tree["params"] |= params
        tree["params"]["unet"]["params"] |= unet or {}
        return _save(tree, tmp_path_factory.mktemp("model") / f"{name}.safetensors")

    return make


def _save(tree: dict[str, Any], path: Path) -> Path:
    import torch

    from ldm.checkpoint.load import save
    from ldm.config import build
    from ldm.models.latent_diffusion import LatentDiffusion

    torch.manual_seed(0)
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


@pytest.fixture
def sample(tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    return _runner("sample", tiny_file, tmp_path, monkeypatch)


def _runner(command: str, tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    from _cli import main

    monkeypatch.chdir(tmp_path)
    return lambda *options: main(command, ["--model", str(tiny_file), "--device", "cpu", *map(str, options)])
