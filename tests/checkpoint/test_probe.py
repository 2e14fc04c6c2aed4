from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

import ldm
from ldm.checkpoint import configs, probe, single_file
from ldm.checkpoint.detect import FAMILIES, Family, Signature
from ldm.checkpoint.report import report
from ldm.config import build
from ldm.models.latent_diffusion import LatentDiffusion

Trained = Callable[[str], LatentDiffusion]


@pytest.fixture
def trained(miniature: Callable[[int], dict[str, Any]]) -> Trained:
    """`trained(parameterization)`: SD 2 in miniature, whose answers are set by hand to those of a trained network.

    All branches are off: from `conv_in`, which copies the latent n and -n, the last skip leads to `conv_out`, which
    takes silu(n) - silu(-n) = n.
    """

    def make(parameterization: str) -> LatentDiffusion:
        torch.manual_seed(0)
        tree = miniature(2)
        model = build(tree).eval()
        unet = model.unet
        last = unet.up_blocks[-1].resnets[-1].conv_shortcut.weight
        share = {"eps": 1.0, "v": 0.068, "x0": 0.0}[parameterization]  # of the noise in the answer
        mean = torch.linspace(-1, 1, 4) * (0 if parameterization == "eps" else -1)  # of all pictures
        with torch.no_grad():
            unet.conv_in.weight.zero_()
            unet.conv_in.bias.zero_()
            last.zero_()
            for c in range(4):
                unet.conv_in.weight[c, c, 1, 1], unet.conv_in.weight[4 + c, c, 1, 1] = 1, -1
                unet.conv_out.weight[c, c, 1, 1], unet.conv_out.weight[c, 4 + c, 1, 1] = share, -share
            for c in range(8):
                last[c, -unet.conv_in.out_channels + c] = 1
            unet.conv_out.bias.copy_(mean)
        return model

    return make


@pytest.fixture
def family(miniature: Callable[[int], dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The miniatures are known as a family of two configs, as SD 2 is."""
    folder = tmp_path / "configs"
    folder.mkdir()
    tree = miniature(2)
    (folder / "mini.yaml").write_text(yaml.safe_dump(tree))
    tree["params"] |= {"parameterization": "v", "image_size": 768}
    (folder / "mini-v.yaml").write_text(yaml.safe_dump(tree))
    monkeypatch.setattr(configs, "CONFIGS", folder)
    monkeypatch.setitem(FAMILIES, Signature(32, 4, 16), Family("SD in miniature", ("mini", "mini-v")))
    return str(folder / "mini.yaml")


def write(model: LatentDiffusion, path: Path, metadata: dict[str, str] | None = None) -> Path:
    tensors: dict[str, Tensor] = {k: v.detach().clone() for k, v in single_file.to_original(model).items()}
    save_file(tensors, path, metadata=metadata)
    return path


@pytest.mark.parametrize(("truth", "said"), [("eps", "eps"), ("v", "v"), ("x0", "v")])
def test_the_network_tells(trained: Trained, truth: str, said: str) -> None:
    found, share = probe.parameterization(trained(truth))
    assert found == said
    assert share == pytest.approx({"eps": 1.0, "v": 0.068, "x0": 0.0}[truth], abs=0.03)


@pytest.mark.long
@pytest.mark.parametrize(("truth", "size"), [("eps", 512), ("v", 768)])
def test_a_file_that_does_not_say_is_asked(
    trained: Trained, family: str, tmp_path: Path, truth: str, size: int
) -> None:
    model = trained(truth)
    path, notes = write(model, tmp_path / "model.safetensors"), []
    loaded = ldm.load(path, note=notes.append)
    assert (loaded.parameterization, loaded.image_size) == (truth, size)
    (note,) = notes
    assert f"this SD in miniature network predicts; asked, it answers as one of {truth} does" in note
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    assert not loaded.training and loaded.denoiser.unet is loaded.unet
    half = ldm.load(path, dtype=torch.float16, autoencoder_dtype=torch.float32)
    assert half.parameterization == truth and half.dtype == torch.float16
    assert half.decode(torch.zeros(1, 4, 2, 2)).dtype == torch.float32


@pytest.mark.long
def test_who_is_told_does_not_ask(
    trained: Trained, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(trained("v"), tmp_path / "model.safetensors")

    def asked(model: LatentDiffusion) -> tuple[str, float]:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(probe, "parameterization", asked)
    assert ldm.load(path, parameterization="eps").parameterization == "eps"
    assert ldm.load(path, config=family).parameterization == "eps"
    said = write(trained("eps"), tmp_path / "said.safetensors", {"parameterization": "v"})
    assert ldm.load(said).parameterization == "v"
    with pytest.raises(AssertionError, match="asked"):
        ldm.load(path)


@pytest.mark.long
def test_conversion_asks_too_and_writes_the_answer_down(
    trained: Trained,
    family: str,
    script: Callable[[str], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, main = write(trained("v"), tmp_path / "model.safetensors"), script("convert").main

    def convert(out: str, *options: str) -> str:
        assert main([str(path), str(tmp_path / out), *options]) == 0
        return capsys.readouterr().out

    assert "it answers as one of v does" in convert("out.safetensors", "--layout", "original", "--dtype", "fp16")
    assert convert("folder", "--layout", "diffusers").count("\n") == 1
    assert convert("said.safetensors", "--parameterization", "eps") == ""
    assert convert("unasked.safetensors", "--no-probe") == ""
    monkeypatch.setattr(probe, "parameterization", lambda model: pytest.fail("asked again"))
    said = {name: ldm.load(tmp_path / name) for name in ("out.safetensors", "said.safetensors", "unasked.safetensors")}
    assert [(m.parameterization, m.image_size) for m in said.values()] == [("v", 768), ("eps", 512), ("eps", 512)]
    scheduler = json.loads((tmp_path / "folder" / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == "v_prediction"


@pytest.mark.long
@pytest.mark.parametrize("truth", ["eps", "v"])
def test_the_report_asks_too(trained: Trained, family: str, tmp_path: Path, truth: str) -> None:
    path = write(trained(truth), tmp_path / "model.safetensors")
    found = report(path)
    assert found["parameterization"] == truth
    assert f"the network: asked, it answers as one of {truth} does" in found["told by"]
    found = report(path, ask=False)
    assert (found["parameterization"], "was not asked" in found["told by"]) == (None, True)
    told = report(write(trained("eps"), tmp_path / "told.safetensors", {"parameterization": "v"}))
    assert (told["parameterization"], told["told by"]) == ("v", "its scheduler")
    lone = {k: v for k, v in load_file(path).items() if not k.startswith("cond_stage_model.")}
    save_file(lone, tmp_path / "lone.safetensors")
    found = report(tmp_path / "lone.safetensors")
    assert found["parameterization"] is None and "could not be asked: " in found["told by"]
    assert "holds no text encoder" in found["told by"]
