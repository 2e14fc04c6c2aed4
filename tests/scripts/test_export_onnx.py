"""ONNX files: onnxruntime computes what torch does, and the scripts draw the same pictures with it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ldm
from ldm.checkpoint import onnx_export
from ldm.checkpoint.onnx_export import COMPARED, TRACED, Row, compare, graphs, write
from ldm.checkpoint.onnx_folder import UNET, load_onnx
from ldm.config import build, load_config
from ldm.png import read_request
from ldm.prompt import parse

Capture = pytest.CaptureFixture[str]
DRAW = ("--prompt", "a large red sphere", "--steps", "2")


def txt2img(*options: object) -> int:
    from _cli import main

    return main("txt2img", ["--device", "cpu", *map(str, options)])


def export(*options: object) -> int:
    import export_onnx

    return export_onnx.main([*map(str, options)])


def pixels(path: str) -> np.ndarray[Any, Any]:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


@pytest.mark.long
def test_scenes_is_drawn_with_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    assert export("scenes", "--out", "graphs") == 0
    rows = re.findall(r"^\| (\w+\.onnx) +\| .* \| +(\S+) \|$", capsys.readouterr().out, re.M)
    assert [name for name, _ in rows] == ["text_encoder.onnx", "unet.onnx", "encoder.onnx", "decoder.onnx"]
    assert all(0 < float(relative) <= 1e-4 for _, relative in rows)

    onnx = ("--backend", "onnx", "--model", "graphs")
    for name, more in (("one", ()), ("long", ("--prompt", "a (red:1.4) cube BREAK at night", "--scale", 1, "--W", 64))):
        assert txt2img(*DRAW, *more, "--outdir", f"{name}-torch") == 0
        assert txt2img(*DRAW, *more, *onnx, "--outdir", name) == 0
        ours, theirs = pixels(f"{name}/00000-0.png"), pixels(f"{name}-torch/00000-0.png")
        assert np.abs(ours - theirs).max() <= 1 and np.ptp(theirs) > 60
    assert read_request("one/00000-0.png")["backend"] == "onnx"
    assert txt2img("--reproduce", "one/00000-0.png", "--outdir", "again") == 0
    assert "bit for bit" in capsys.readouterr().out

    model, plain = load_onnx("graphs"), ldm.load("scenes")
    assert model.parameterization == "v" and model.image_size == 128 and model.concat_channels == 0
    image = Image.open("one/00000-0.png")
    drawn = [next(ldm.img2img(m, "a red cube", image, strength=0.5, steps=2, seed=3)).image for m in (model, plain)]
    assert np.abs(np.subtract(*(np.asarray(one).astype(int) for one in drawn))).max() <= 1
    with pytest.raises(ValueError, match="clip_skip is 2, but ONNX files hold the family's own states"):
        next(ldm.txt2img(model, "a", clip_skip=2, steps=1))
    with pytest.raises(ValueError, match="there is no self-attention in 'mid_block'"):
        next(ldm.txt2img(model, "a", guidance=ldm.Guidance(pag=3.0), steps=1))
    passage = parse("a (blue:1.3) cone").schedule(1)[0][1][0].passage
    states, wanted = (m.condition([passage]).context for m in (model, plain))
    assert torch.allclose(states, wanted, atol=1e-4)


def kin(name: str) -> dict[str, Any]:
    """A config of another family, with as few layers as show what is its own."""
    tree = load_config(Path(__file__).parents[1] / "tiny.yaml")
    params = tree["params"]
    if name == "sdxl":  # two towers, a pooled vector, y, and a mask beside the latent
        tower = {**params["text_encoder"]["params"], "layers": 2, "layer": "penultimate", "final_norm": False}
        towers = [
            {"target": "OpenCLIPTextEncoder", "params": {**tower, **more}} for more in ({}, {"projection_dim": 8})
        ]
        params["text_encoder"] = {"target": "TwoTowers", "params": dict(zip(("first", "second"), towers, strict=True))}
        params["framing_embedding"] = {"target": "FramingEmbedding", "params": {"numbers": ["target_height"], "dim": 4}}
        params["unet"]["params"] |= {"context_dim": 32, "y_dim": 12, "in_channels": 9}
    else:  # classes, and codes
        params["text_encoder"] = {"target": "ClassEmbedder", "params": {"num_classes": 4, "embed_dim": 16}}
        params["unet"]["params"] |= {"num_classes": 5}
        params["autoencoder"]["target"] = "VQModel"
        params["autoencoder"]["params"] |= {"num_codes": 16, "block_out_channels": [8, 8]}
    return tree


@pytest.mark.long
@pytest.mark.parametrize(
    "name, exported",  # those of its graphs that scenes has not: seconds each
    [
        ("sdxl", {"text_encoder.onnx": ("states", "pooled")}),
        ("classes", {"text_encoder.onnx": ("states",), "decoder.onnx": ("image",)}),
    ],
)
def test_kin(
    name: str,
    exported: dict[str, tuple[str, ...]],
    tmp_path: Path,
    filled: Callable[[torch.nn.Module], torch.nn.Module],
) -> None:
    model = filled(build(kin(name))).eval()
    others = {graph.file: graph for graph in graphs(model, COMPARED)}
    assert list(others) == ["text_encoder.onnx", "unet.onnx", "encoder.onnx", "decoder.onnx"]
    assert set(others[UNET].inputs) == {"x", "t", "context", "y"}
    assert others["encoder.onnx"].outputs == (("mean", "logvar") if name == "sdxl" else ("z",))
    for graph in graphs(model, TRACED):
        if graph.file in exported:
            assert tuple(graph.outputs) == exported[graph.file]
            write(graph, tmp_path)
            row = compare(graph, others[graph.file].inputs, tmp_path)
            assert row.relative <= 1e-4 and row.nodes > 0, row


# --- mistakes ----------------------------------------------------------------------------------------------------


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder that looks like one of ours."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "graphs"
    folder.mkdir()
    (folder / "config.yaml").write_text((Path(__file__).parents[1] / "tiny.yaml").read_text())
    (folder / UNET).write_bytes(b"no graph")
    return "graphs"


def test_a_folder_that_cannot_be_used(broken: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx = ("--backend", "onnx", "--model", broken)
    assert txt2img(*DRAW, *onnx) == 2
    assert "graphs/unet.onnx: onnxruntime cannot use it (" in capsys.readouterr().err
    assert txt2img(*DRAW, "--backend", "tensorrt", "--model", broken) == 2
    assert "onnxruntime has no TensorrtExecutionProvider here, only " in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", None)
        assert txt2img(*DRAW, *onnx) == 2
    assert "needs onnxruntime; pip install onnxruntime" in capsys.readouterr().err
    Path(broken, UNET).unlink()
    assert txt2img(*DRAW, *onnx) == 2
    assert (
        "not a folder of ONNX files (config.yaml and unet.onnx are missing); make one with" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "options, said",
    [
        (("--pag", 3), "--pag needs --backend torch: it edits the network"),
        (("--freeu", "1.3,1.4,0.9,0.2"), "--freeu needs --backend torch: it edits the network"),
        (("--vae", "scenes"), "--vae needs --backend torch: give it to scripts/export_onnx.py"),
        (("--clip-skip", 2), "--clip-skip needs --backend torch"),
        (("--explain",), "--explain needs --backend torch: explain the model that was exported"),
        (("--precision", "bf16"), "--precision bf16 needs --backend torch: ONNX files are in float32"),
    ],
)
def test_what_graphs_cannot(broken: str, options: tuple[object, ...], said: str, capsys: Capture) -> None:
    assert txt2img(*DRAW, "--backend", "onnx", "--model", broken, *options) == 2
    assert said in capsys.readouterr().err


def test_nothing_is_overwritten_and_no_wrong_graph_is_kept(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "precious").write_text("mine")
    assert export("scenes", "--out", tmp_path / "there") == 2
    assert "is there already; name a new folder" in capsys.readouterr().err
    assert export("scenes", "--out", tmp_path / "no" / "such") == 2
    assert "there is no folder" in capsys.readouterr().err

    def wrong(*_: object) -> Iterator[Row]:
        yield Row("unet.onnx", 1, 1, 0.3, 0.2)

    monkeypatch.setattr(onnx_export, "export", wrong)
    assert export("scenes", "--out", tmp_path / "new") == 1
    assert "unet.onnx differs from torch by 2.0e-01, more than 0.0001; not written" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert export("scenes", "--out", tmp_path / "new") == 2
    assert "exporting needs onnx, onnxscript, onnxruntime; pip install" in capsys.readouterr().err
