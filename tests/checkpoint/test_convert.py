"""Conversion there and back, and the report on a file: functions and scripts, on miniatures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ldm
from ldm.checkpoint import single_file
from ldm.checkpoint.convert import convert
from ldm.checkpoint.fit import stored
from ldm.checkpoint.report import report
from ldm.config import build, load_config

Script = Callable[[str], ModuleType]


@pytest.mark.parametrize("version", [1, 2])
def test_there_and_back(
    version: int, miniature: Callable[[int], dict[str, Any]], script: Script, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    tree = miniature(version)
    tensors = single_file.to_original(build(tree))
    tensors = {name: tensor.detach().half().contiguous() for name, tensor in tensors.items()}
    torch.save({"state_dict": tensors | {"betas": torch.rand(9)}}, tmp_path / "in.ckpt")

    convert(tmp_path / "in.ckpt", tmp_path / "ours.safetensors", config=tree)
    convert(tmp_path / "ours.safetensors", tmp_path / "back.safetensors", layout="original")
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) and back[name].dtype == torch.float16 for name in back)
    a, b = (ldm.load(tmp_path / f"{name}.safetensors").state_dict() for name in ("ours", "back"))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)

    arguments = [str(tmp_path / "back.safetensors"), str(tmp_path / "wide.safetensors"), "--dtype", "fp32"]
    assert script("convert").main(arguments) == 0
    wide = load_file(tmp_path / "wide.safetensors")
    assert wide.keys() == a.keys() and all(torch.equal(wide[name], a[name]) for name in wide)


def test_what_is_not_converted(script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = script("convert").main
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    assert main([str(tmp_path / "a.safetensors"), str(tmp_path / "b.ckpt")]) == 2
    assert "is not a .safetensors file; give another name" in capsys.readouterr().err
    assert main([str(tmp_path / "a.safetensors"), str(tmp_path / "a.safetensors")]) == 2
    assert "is there already; give another name" in capsys.readouterr().err
    assert main([str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")]) == 2
    assert "holds no UNet and carries no config" in capsys.readouterr().err
    assert not (tmp_path / "b.safetensors").exists()
    assert main([str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"), "--layout", "diffusers"]) == 2
    assert "is not a folder, which diffusers reads; give another name" in capsys.readouterr().err
    (tmp_path / "there").mkdir()
    assert main([str(tmp_path / "a.safetensors"), str(tmp_path / "there"), "--layout", "diffusers"]) == 2
    assert "is there already" in capsys.readouterr().err
    for name, layout in (("b.safetensors", "ldm"), ("b", "diffusers")):  # told before anything is read
        out = tmp_path / "none" / name
        assert main([str(tmp_path / "absent"), str(out), "--layout", layout]) == 2
        said = f"error: {out} cannot be written: there is no folder {out.parent}; make it first\n"
        assert capsys.readouterr().err == said


@pytest.mark.parametrize(("name", "layout"), [("out.safetensors", "original"), ("out", "diffusers")])
def test_what_another_process_has_made_meanwhile_stays(
    name: str,
    layout: str,
    script: Script,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tree = load_config(Path(__file__).parents[1] / "tiny.yaml")
    ldm.save(build(tree), tmp_path / "in.safetensors", config=tree)
    theirs = tmp_path / name if layout == "original" else tmp_path / name / "file"

    def meanwhile(*options: Any) -> dict[str, Any]:
        theirs.parent.mkdir(exist_ok=True)
        theirs.write_text("theirs")
        return stored(*options)

    for module in ("convert", "diffusers_save"):
        monkeypatch.setattr(f"ldm.checkpoint.{module}.stored", meanwhile)
    assert script("convert").main([str(tmp_path / "in.safetensors"), str(tmp_path / name), "--layout", layout]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / name} is there already; give another name\n"
    assert theirs.read_text() == "theirs" and len(list(tmp_path.iterdir())) == 2


@pytest.mark.long
def test_what_may_be_chosen(miniature: Callable[[int], dict[str, Any]], script: Script, tmp_path: Path) -> None:
    """Which UNet, what it predicts, and from a folder which files: as for load."""
    tree, main = miniature(1), script("convert").main
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(tree))
    tensors = {name: tensor.detach() for name, tensor in single_file.to_original(build(tree)).items()}
    unet = {name: tensor for name, tensor in tensors.items() if name.startswith("model.")}
    average = {f"model_ema.{name[6:].replace('.', '')}": tensor + 1 for name, tensor in unet.items()}
    save_file(tensors | average, tmp_path / "in.safetensors")

    def converted(path: Path, *options: str) -> Any:
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        out = out if "diffusers" in options else out.with_suffix(".safetensors")
        assert main([str(path), str(out), "--config", str(config), *options]) == 0
        return out

    weight = unet["model.diffusion_model.input_blocks.0.0.weight"]
    plain = ldm.load(converted(tmp_path / "in.safetensors"))
    assert torch.equal(plain.unet.conv_in.weight, weight) and plain.parameterization == "eps"
    folder = converted(tmp_path / "in.safetensors", "--ema", "--parameterization", "v", "--layout", "diffusers")
    assert json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["prediction_type"] == "v_prediction"
    half = folder / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    save_file({k: v.half() for k, v in load_file(half.with_name("diffusion_pytorch_model.safetensors")).items()}, half)
    for part in ("vae/diffusion_pytorch_model", "text_encoder/model"):
        (folder / f"{part}.safetensors").rename(folder / f"{part}.fp16.safetensors")
    back = load_file(converted(folder, "--variant", "fp16"))
    assert torch.equal(back["unet.conv_in.weight"], (weight + 1).half())


def test_report(script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.safetensors"
    unet = "model_ema.diffusion_model"
    tensors = {
        f"{unet}input_blocks00weight": torch.zeros(320, 4, 1, 1),
        f"{unet}input_blocks11transformer_blocks0attn2to_kweight": torch.zeros(1, 1024).half(),
        "first_stage_model.quant_conv.bias": torch.tensor([0.0, torch.nan]),
    }
    save_file(tensors, path)
    found = report(path)
    assert found["family"] == "SD 2.x (context 1024, 4 input channels)" and found["configs"] == ["sd-v2", "sd-v2-v"]
    assert (found["layout"], found["ema"], found["carries a config"]) == ("original", True, False)
    assert (found["holds"], found["lacks"]) == (["unet", "autoencoder"], ["text encoder"])
    assert found["unet by default"] == "EMA"
    assert [fault.count("holds no text encoder, which configs/sd-v2.yaml") for fault in found["misfit"]] == [1]
    assert found["dtypes"] == {"float32": 2, "float16": 1}
    assert found["non-finite"] == ["first_stage_model.quant_conv.bias"]
    assert found["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()

    main = script("inspect_checkpoint").main
    assert main([str(path), "--json"]) == 0 and json.loads(capsys.readouterr().out) == found
    assert main([str(path), "--no-probe"]) == 0 and "(--no-probe)\n" in capsys.readouterr().out
    assert main([str(path)]) == 0 and "lacks             text encoder\n" in capsys.readouterr().out
    assert main([str(tmp_path / "none")]) == 2 and "cannot be read" in capsys.readouterr().err


def test_the_report_reads_the_config_a_file_carries(tmp_path: Path) -> None:
    for said, config in (("v", {"params": {"parameterization": "v"}}), (None, {"params": {}}), (None, ["no config"])):
        save_file({"unet.x": torch.zeros(1)}, tmp_path / "a.safetensors", metadata={"config": json.dumps(config)})
        assert report(tmp_path / "a.safetensors")["parameterization"] == said


def test_the_report_says_what_load_would(
    miniature: Callable[[int], dict[str, Any]], script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree, path = miniature(1), tmp_path / "model.safetensors"
    tensors = {k: v.detach() for k, v in single_file.to_original(build(tree)).items()}
    carried = {"config": json.dumps(tree)}
    main = script("inspect_checkpoint").main
    save_file(tensors, path, metadata=carried)
    assert main([str(path)]) == 0 and "misfit            none\n" in capsys.readouterr().out
    save_file(tensors, path)  # of no published family: nothing to hold it against
    assert main([str(path)]) == 0 and "misfit            not known\n" in capsys.readouterr().out
    del tensors["model.diffusion_model.middle_block.0.in_layers.0.bias"]
    save_file(tensors, path, metadata=carried)
    with pytest.raises(ValueError) as refused:
        ldm.load(path)
    assert report(path)["misfit"] == [str(refused.value)] and "1 missing (unet.mid_block" in str(refused.value)


@pytest.mark.parametrize("said", ["eps", "v"])
def test_the_report_names_the_config_of_what_is_predicted(tmp_path: Path, said: str) -> None:
    unet = "model.diffusion_model"
    tensors = {
        f"{unet}.input_blocks.0.0.weight": torch.zeros(320, 4, 1, 1),
        f"{unet}.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(1, 1024),
    }
    save_file(tensors, tmp_path / "a.safetensors", metadata={"parameterization": said})
    assert report(tmp_path / "a.safetensors")["configs"] == [{"eps": "sd-v2", "v": "sd-v2-v"}[said]]
