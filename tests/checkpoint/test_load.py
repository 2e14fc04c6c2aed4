from __future__ import annotations

import copy
import io
import json
import pickle
import subprocess
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import ldm
from ldm.checkpoint import load as load_module
from ldm.checkpoint import single_file
from ldm.checkpoint.configs import CONFIGS
from ldm.checkpoint.meta import on_meta
from ldm.checkpoint.read import CheckpointError, read
from ldm.config import ConfigError, build, load_config
from ldm.models.autoencoder import AutoencoderKL
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.models.text_encoder import OpenCLIPTextEncoder

TINY = Path(__file__).parents[1] / "tiny.yaml"


def tiny(**unet: Any) -> dict[str, Any]:
    tree = load_config(TINY)
    tree["params"]["unet"]["params"] |= unet
    return tree


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    torch.manual_seed(0)
    return build(tiny()).eval()


@pytest.fixture(scope="module")
def saved(model: LatentDiffusion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "tiny.safetensors"
    ldm.save(model, path, config=tiny(), metadata={"steps": "7"})
    return path


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def error(path: Path, **options: Any) -> str:
    """The one sentence a bad file gives."""
    with pytest.raises(ValueError) as caught:
        ldm.load(path, **options)
    text = str(caught.value)
    assert path.name in text and "\n" not in text and "weights_only" not in text
    return text


# --- our own files -----------------------------------------------------------------------------------------------


def test_a_saved_model_loads_from_its_file_alone(model: LatentDiffusion, saved: Path) -> None:
    loaded = ldm.load(saved)
    assert same(loaded.state_dict(), model.state_dict()) and not loaded.training
    assert (loaded.parameterization, loaded.image_size, loaded.guidance_scale) == ("v", 32, 3.0)
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    with torch.no_grad():
        x, sigma = torch.randn(1, 4, 4, 4), torch.tensor(3.0)
        prompts = ["a red cube"]
        assert torch.equal(
            loaded.denoiser(x, sigma, loaded.condition(prompts)), model.denoiser(x, sigma, model.condition(prompts))
        )
    with safe_open(saved, "pt") as file:
        assert json.loads(file.metadata()["config"]) == tiny() and file.metadata()["steps"] == "7"


def test_dtypes(model: LatentDiffusion, tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    ldm.save(model, path, config=tiny(), dtype=torch.float16)
    assert {tensor.dtype for tensor in read(path).tensors.values()} == {torch.float16}
    assert {tensor.dtype for tensor in ldm.load(path).parameters()} == {torch.float32}
    mixed = ldm.load(path, dtype=torch.bfloat16, autoencoder_dtype=torch.float32)
    assert (mixed.dtype, next(mixed.autoencoder.parameters()).dtype) == (torch.bfloat16, torch.float32)
    assert next(mixed.text_encoder.parameters()).dtype == torch.bfloat16
    assert next(ldm.load(path, dtype=torch.float16).autoencoder.parameters()).dtype == torch.float16


def test_saving_is_all_or_nothing(model: LatentDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"precious")
    with pytest.raises(
        CheckpointError, match=r"the config to be stored with it.*use the config this file was made for"
    ):
        ldm.save(model, path, config=tiny(block_out_channels=[32, 64]))
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.unet.conv_in.bias[0] = torch.nan
    with pytest.raises(CheckpointError, match=r"unet.conv_in.bias holds NaN or infinity"):
        ldm.save(broken, path, config=tiny())
    with torch.no_grad():
        broken.unet.conv_in.bias[0] = 1e6
    with pytest.raises(CheckpointError, match=r"unet.conv_in.bias holds NaN or infinity as torch.float16"):
        ldm.save(broken, path, config=tiny(), dtype=torch.float16)

    def full_disk(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="no space left"):
        ldm.save(model, path, config=tiny())
    assert path.read_bytes() == b"precious" and list(tmp_path.iterdir()) == [path]


def test_shared_and_strided_tensors_are_saved_whole(model: LatentDiffusion, tmp_path: Path) -> None:
    odd = copy.deepcopy(model).to(memory_format=torch.channels_last)
    ldm.save(odd, tmp_path / "odd.safetensors", config=tiny())
    assert same(ldm.load(tmp_path / "odd.safetensors").state_dict(), model.state_dict())


def test_a_part_alone(model: LatentDiffusion, tmp_path: Path) -> None:
    path = tmp_path / "part.safetensors"
    ldm.save(model.autoencoder, path, config=tiny()["params"]["autoencoder"], dtype=torch.float16)
    part = load_module.load_part(path, AutoencoderKL)
    assert not part.training and {tensor.dtype for tensor in part.parameters()} == {torch.float32}
    with pytest.raises(ConfigError, match="'AutoencoderKL' is not a OpenCLIPTextEncoder"):
        load_module.load_part(path, OpenCLIPTextEncoder)


@pytest.mark.long
def test_building_on_meta_is_cheap() -> None:
    """Neither memory nor torch's compiler, which takes seconds to import."""
    code = (
        "import sys\nfrom ldm.checkpoint.configs import CONFIGS, load_config, build, on_meta\n"
        "with on_meta():\n    model = build(load_config(CONFIGS / 'sd-v2.yaml'))\n"
        "assert all(p.is_meta for p in model.parameters())\nassert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- original files ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[1, 2])
def original(
    request: pytest.FixtureRequest, miniature: Callable[[int], dict[str, Any]]
) -> tuple[dict[str, Any], LatentDiffusion, dict[str, Tensor]]:
    """A miniature model and its weights as an original file holds them, with all that is in such files besides."""
    torch.manual_seed(request.param)
    tree = miniature(request.param)
    model = build(tree).eval()
    tensors = {k: v.detach().clone() for k, v in single_file.to_original(model).items()}
    unet = [name for name in tensors if name.startswith("model.diffusion_model.")]
    tensors |= {f"model_ema.{name[6:].replace('.', '')}": torch.zeros(1) for name in unet}
    tensors |= {"betas": torch.rand(1000), "model_ema.decay": torch.tensor(0.999), "denoiser.sigmas": torch.rand(1000)}
    if request.param == 1:
        tensors["cond_stage_model.transformer.text_projection.weight"] = torch.rand(16, 16)
        tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    else:
        tensors["cond_stage_model.model.text_projection"] = torch.rand(16, 16)
        tensors["cond_stage_model.model.logit_scale"] = torch.tensor(4.6)
        tensors["cond_stage_model.model.attn_mask"] = torch.full((77, 77), -torch.inf).triu(1)
    return tree, model, tensors


def test_original_file(original: tuple, tmp_path: Path) -> None:
    tree, model, tensors = original
    save_file(tensors, tmp_path / "model.safetensors")
    assert same(ldm.load(tmp_path / "model.safetensors", config=tree).state_dict(), model.state_dict())

    torch.save({"state_dict": tensors, "global_step": 3, "best": np.float64(0.5)}, tmp_path / "model.ckpt")
    assert same(ldm.load(tmp_path / "model.ckpt", config=tree).state_dict(), model.state_dict())

    torch.save({"state_dict": tensors}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    assert same(ldm.load(tmp_path / "old.ckpt", config=tree).state_dict(), model.state_dict())


def test_the_scale_a_file_measured_is_taken(original: tuple, tmp_path: Path) -> None:
    tree, model, tensors = original
    save_file(tensors | {"scale_factor": torch.tensor(0.25)}, tmp_path / "measured.safetensors")
    loaded = ldm.load(tmp_path / "measured.safetensors", config=tree)
    assert loaded.autoencoder.scaling_factor == 0.25 != model.autoencoder.scaling_factor
    assert tree["params"]["autoencoder"]["params"].get("scaling_factor") != 0.25


def test_ema(original: tuple, tmp_path: Path) -> None:
    """The averaged copy has names without dots. It is taken when asked for, or when there is no other."""
    tree, model, tensors = original
    path = tmp_path / "model.safetensors"
    plain = {k: v for k, v in tensors.items() if not k.startswith("model_ema.")}
    unet = {k: v for k, v in plain.items() if k.startswith("model.diffusion_model.")}
    average = {f"model_ema.{k[6:].replace('.', '')}": v + 1 for k, v in unet.items()}
    average["model_ema.decay"] = torch.ones(())
    assert len(average) == len(unet) + 1

    def conv_in(**options: Any) -> Tensor:
        return ldm.load(path, config=tree, **options).unet.conv_in.weight

    save_file(plain | average, path)
    assert torch.equal(conv_in(), model.unet.conv_in.weight)
    assert torch.equal(conv_in(use_ema=True), model.unet.conv_in.weight + 1)
    save_file({k: v for k, v in plain.items() if k not in unet} | average, path)
    assert torch.equal(conv_in(), model.unet.conv_in.weight + 1)
    assert "holds EMA weights only; leave use_ema out" in error(path, config=tree, use_ema=False)
    save_file(plain, path)
    assert "holds no EMA weights; leave use_ema out" in error(path, config=tree, use_ema=True)


def test_wrapped_names_and_nested_dicts(original: tuple, tmp_path: Path) -> None:
    tree, model, tensors = original
    path = tmp_path / "model.ckpt"
    wrapped: dict[str, Any] = {f"module.{name}": tensor for name, tensor in tensors.items()}
    torch.save({"model": {"state_dict": wrapped}, "epoch": 3}, path)
    assert same(ldm.load(path, config=tree).state_dict(), model.state_dict())
    endless: dict[str, Any] = dict(tensors)
    endless["state_dict"] = endless
    torch.save(endless, path)
    assert same(ldm.load(path, config=tree).state_dict(), model.state_dict())


def test_pruned_file_and_where_the_rest_comes_from(original: tuple, tmp_path: Path) -> None:
    tree, model, tensors = original
    path, vae = tmp_path / "model.safetensors", tmp_path / "vae.safetensors"
    prefix = "first_stage_model."
    first_stage = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    save_file(first_stage, vae)
    save_file({k: v for k, v in tensors.items() if not k.startswith("first_stage_model.")}, path)
    assert "holds no autoencoder, which the given config describes; use a complete file, or give autoencoder=FILE" in (
        error(path, config=tree)
    )
    assert same(ldm.load(path, config=tree, autoencoder=vae).state_dict(), model.state_dict())
    assert ldm.load(path, config=tree, autoencoder=vae, parameterization="v").parameterization == "v"


def test_original_file_of_another_family(tmp_path: Path) -> None:
    """Context 1024 and linear projections where 768 and convolutions are expected: one sentence, not pages."""
    with on_meta():
        shape = {
            name: tensor.shape for name, tensor in build(load_config(CONFIGS / "sd-v2.yaml")).unet.state_dict().items()
        }
    key = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    prefix = "model.diffusion_model."
    theirs = "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    tensors = {
        f"{prefix}{theirs}": torch.zeros(shape[key]),
        f"{prefix}input_blocks.0.0.weight": torch.zeros(320, 4, 3, 3),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    text = error(tmp_path / "model.safetensors", config="sd-v1")
    assert "this file is SD 2.x (context 1024, 4 input channels), but configs/sd-v1.yaml is for SD 1.x" in text
    assert text.endswith("use the config sd-v2 or sd-v2-v")
    tensors[f"{prefix}input_blocks.0.0.weight"] = torch.zeros(320, 9, 3, 3)
    save_file(tensors, tmp_path / "model.safetensors")
    assert "this file is SD 2.x inpainting (context 1024, 9 input" in error(
        tmp_path / "model.safetensors", config="sd-v2"
    )


# --- files that do not fit ---------------------------------------------------------------------------------------


def changed(saved: Path, path: Path, change: Callable[[dict[str, Tensor]], object], **metadata: str) -> Path:
    contents = read(saved)
    change(contents.tensors)
    save_file(contents.tensors, path, metadata=contents.metadata | metadata)
    return path


def drop(*prefixes: str) -> Callable[[dict[str, Tensor]], object]:
    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith(prefixes)]:
            del tensors[name]

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop("unet.conv_in."), "2 missing (unet.conv_in.weight, unet.conv_in.bias)"),
        (drop("unet.mid_block."), "missing (unet.mid_block.resnets.0.norm1.weight, "),
        (
            drop("text_encoder."),
            "holds no text encoder, which the config in bad.safetensors describes; use a complete file",
        ),
        (drop("autoencoder."), "holds no autoencoder"),
        (drop("unet."), "holds no unet"),
        (
            lambda t: t.update({f"extra.{i}": torch.zeros(1) for i in range(9)}),
            "9 unexpected (extra.0, extra.1, extra.2, extra.3, extra.4, …)",
        ),
        (
            lambda t: t.update({"unet.conv_out.bias": torch.zeros(7)}),
            "1 of another shape (unet.conv_out.bias (7,) instead of (4,))",
        ),
        (
            lambda t: t["autoencoder.quant_conv.bias"].fill_(torch.inf),
            "autoencoder.quant_conv.bias holds NaN or infinity",
        ),
    ],
)
def test_misfits(saved: Path, tmp_path: Path, change: Callable, words: str) -> None:
    assert words in error(changed(saved, tmp_path / "bad.safetensors", change))


def test_every_misfit_comes_in_one_error(saved: Path, tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors["unet.konv_in.bias"] = tensors.pop("unet.conv_in.bias")
        tensors["unet.conv_out.bias"] = torch.zeros(7)

    text = error(changed(saved, tmp_path / "bad.safetensors", change))
    assert "1 missing (unet.conv_in.bias), 1 unexpected (unet.konv_in.bias), 1 of another shape" in text


def test_the_carried_config_is_checked_like_any_other(saved: Path, tmp_path: Path) -> None:
    for config, words in [("{", "not readable as YAML"), ('{"target": "os.system"}', "unknown target 'os.system'")]:
        assert words in error(changed(saved, tmp_path / "bad.safetensors", lambda t: None, config=config))


def test_which_config(saved: Path, model: LatentDiffusion, tmp_path: Path) -> None:
    path = tmp_path / "bare.safetensors"
    save_file(read(saved).tensors, path)
    text = error(path)
    assert "a UNet of no published family (context 16, 4 input channels, width 32) and carries no config" in text
    assert "give one: " in text and "sd-v1" in text and text.endswith("or the path of a YAML file")
    assert same(ldm.load(path, config=TINY).state_dict(), model.state_dict())
    assert same(ldm.load(path, config=tiny()).state_dict(), model.state_dict())
    with pytest.raises(ConfigError, match=r"no config 'sd-v3'; give .*scenes, .*sd-v1"):
        ldm.load(path, config="sd-v3")
    with pytest.raises(ConfigError, match=r"target: 'NoText' is not a LatentDiffusion"):
        ldm.load(path, config={"target": "NoText"})


# --- files that are not weights ----------------------------------------------------------------------------------


class Evil:
    def __reduce__(self) -> tuple:
        return (exec, ("raise SystemExit('the pickle ran')",))


def zipped(compression: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("archive/data.txt", b"0" * 100_000)
    return buffer.getvalue()


def torch_saved(contents: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(contents, buffer)
    return buffer.getvalue()


def safetensors_bytes(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


FLOAT = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4265380512\n"


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        (b"", "the file is empty; expected a safetensors file or a torch checkpoint"),
        (b"<!DOCTYPE html><html>sign in</html>", "this is a web page of 35 bytes"),
        (b"\n  <HTML><body>404</body>", "this is a web page"),
        (POINTER, f"git-LFS pointer of {len(POINTER)} bytes"),
        (bytes(2000), "all zero, as in an unfinished download"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "begins with b'\\x89PNG"),
        (b"short", "begins with b'short'"),
        (safetensors_bytes({"a": FLOAT}, bytes(15)), "bytes, but its header describes"),
        (safetensors_bytes({"a": FLOAT}, bytes(17)), "bytes, but its header describes"),
        (safetensors_bytes({"a": FLOAT})[:30], "bytes, but the header alone has"),
        ((1 << 40).to_bytes(8, "little") + b"{" + bytes(100), f"the header claims {1 << 40} bytes"),
        (safetensors_bytes(b"{not json"), "header is not readable"),
        (safetensors_bytes({"a": 3}), "header is not readable"),
        (safetensors_bytes({"a": {**FLOAT, "shape": [5]}}, bytes(16)), "not a valid safetensors file"),
        (torch_saved({"a": torch.zeros(3)})[:-200], "a torch checkpoint whose end is missing"),
        (torch_saved({"a": Evil()}), "holds objects that are not tensors, which could run code"),
        (pickle.dumps(Evil(), protocol=2), "holds objects that are not tensors"),
        (pickle.dumps({"a": 1}, protocol=2), "torch checkpoint"),
        (b"\x80\x02" + bytes(50), "or is damaged"),
        (torch_saved([torch.zeros(3)]), "holds one list; expected tensors by name"),
        (
            torch_saved({"a": torch.zeros(1).expand(1 << 40)}),
            "a claims shape (1099511627776,), more than the file stores",
        ),
        (torch_saved({"state_dict": {"a": 1}}), "holds no tensors by name"),
        (zipped(zipfile.ZIP_DEFLATED), "a compressed archive"),
        (zipped(zipfile.ZIP_STORED), "a zip archive, but not a torch checkpoint"),
    ],
)
def test_bad_files(tmp_path: Path, contents: bytes, words: str) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(contents)
    assert words in error(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert "cannot be read (No such file or directory)" in error(tmp_path / "none.safetensors")
    assert "is a folder with neither model_index.json nor config.json" in error(tmp_path)


def test_published_pickles_hold_a_little_more_than_tensors(tmp_path: Path) -> None:
    """Lightning's bookkeeping in SD 1 files is skipped, without Lightning and without running anything."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    callback = type("ModelCheckpoint", (), {"__module__": name})
    modules = {part: types.ModuleType(part) for part in ("pytorch_lightning", "pytorch_lightning.callbacks", name)}
    modules[name].ModelCheckpoint = callback
    sys.modules.update(modules)
    try:
        contents = torch_saved(
            {"state_dict": {"a": torch.ones(2)}, "callbacks": {callback: {"best": np.float64(0.25)}}}
        )
    finally:
        for part in modules:
            del sys.modules[part]
    (tmp_path / "model.ckpt").write_bytes(contents)
    assert read(tmp_path / "model.ckpt").tensors["a"].tolist() == [1, 1]
