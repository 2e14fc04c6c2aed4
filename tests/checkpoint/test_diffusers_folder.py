"""A folder as diffusers writes it, in miniature."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import ldm
from ldm.checkpoint import diffusers_folder, text_keys
from ldm.checkpoint.configs import CONFIGS, find_config, with_cut_tower
from ldm.checkpoint.diffusers_folder import read_any
from ldm.checkpoint.meta import on_meta
from ldm.checkpoint.read import Weights
from ldm.config import build, load_config
from ldm.models.latent_diffusion import LatentDiffusion

WEIGHTS = "diffusion_pytorch_model"
OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}


@pytest.fixture(scope="module")
def tree(miniature: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
    return miniature(1)


@pytest.fixture(scope="module")
def model(tree: dict[str, Any]) -> LatentDiffusion:
    torch.manual_seed(0)
    return build(tree).eval()


@pytest.fixture
def folder(model: LatentDiffusion, tmp_path: Path) -> Path:
    path = tmp_path / "model"
    tower = {name.removeprefix("tower."): tensor for name, tensor in model.text_encoder.state_dict().items()}
    states = {"unet": model.unet.state_dict(), "vae": model.autoencoder.state_dict()}
    for part, state in (states | {"text_encoder": text_keys.to_hugging_face(tower)}).items():
        (path / part).mkdir(parents=True)
        file = "model" if part == "text_encoder" else WEIGHTS
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path / part / f"{file}.safetensors")
        said = {"_class_name": CLASSES[part]} if part in CLASSES else {"architectures": ["CLIPTextModel"]}
        (path / part / "config.json").write_text(json.dumps(said))
    (path / "scheduler").mkdir()
    (path / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "v_prediction"}')
    (path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    return path


def same(loaded: LatentDiffusion, model: LatentDiffusion) -> bool:
    a, b = loaded.state_dict(), model.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def rewrite(file: Path, change: Callable[[str, Tensor], tuple[str, Tensor]], to: Path | None = None) -> None:
    tensors = load_file(file)
    file.unlink()
    save_file(dict(change(name, tensor) for name, tensor in tensors.items()), file if to is None else to)


def fails(folder: Path, **options: Any) -> str:
    with pytest.raises(ValueError) as caught:
        ldm.load(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder(folder: Path, model: LatentDiffusion, tree: dict[str, Any]) -> None:
    assert same(ldm.load(folder, config=tree), model)
    assert read_any(folder).metadata == {"parameterization": "v"}


def test_old_attention_names(folder: Path, model: LatentDiffusion, tree: dict[str, Any]) -> None:
    def old(name: str, tensor: Tensor) -> tuple[str, Tensor]:
        for new, former in OLD.items():
            name = name.replace(f".attentions.0.{new}.", f".attentions.0.{former}.")
        return name, tensor

    rewrite(folder / "vae" / f"{WEIGHTS}.safetensors", old)
    assert any(".query." in name for name in read_any(folder).tensors)
    assert same(ldm.load(folder, config=tree), model)


def test_variants(folder: Path, model: LatentDiffusion, tree: dict[str, Any]) -> None:
    unet = folder / "unet" / f"{WEIGHTS}.safetensors"
    half = folder / "unet" / f"{WEIGHTS}.fp16.safetensors"
    assert "unet: holds no weights of variant 'fp16', but config.json" in fails(folder, config=tree, variant="fp16")
    rewrite(unet, lambda name, tensor: (name, tensor.half()), half)
    loaded = ldm.load(folder, config=tree)  # nothing else is there
    assert torch.equal(loaded.unet.conv_in.weight, model.unet.conv_in.weight.half().float())
    save_file({"conv_in.weight": torch.zeros(32, 4, 3, 3)}, unet)  # now it is, and comes first
    assert "no published family (4 input channels, width 32), but the given config is for" in fails(folder, config=tree)
    assert ldm.load(folder / "unet", config=tree, variant="fp16", autoencoder=folder, text_encoder=folder)


def test_shards(folder: Path, model: LatentDiffusion, tree: dict[str, Any]) -> None:
    file = folder / "unet" / f"{WEIGHTS}.safetensors"
    tensors = load_file(file)
    file.unlink()
    names = [f"{WEIGHTS}-{i}-of-00002.safetensors" for i in ("00001", "00002")]
    weight_map = {name: names[i % 2] for i, name in enumerate(tensors)}
    for shard in names:
        save_file({name: tensors[name] for name in tensors if weight_map[name] == shard}, file.with_name(shard))
    index = file.with_name(f"{WEIGHTS}.safetensors.index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert same(ldm.load(folder, config=tree), model)

    file.with_name(names[1]).unlink()
    assert f"the shard '{names[1]}' is not beside it; get all 2 shards" in fails(folder, config=tree)
    index.write_text(json.dumps({"weight_map": {"a": "../vae/diffusion_pytorch_model.safetensors"}}))
    assert "the shard '../vae/" in fails(folder, config=tree)
    index.write_text("{")
    assert "not readable as JSON" in fails(folder, config=tree)


def test_components(folder: Path, model: LatentDiffusion, tree: dict[str, Any]) -> None:
    """A lone one lacks the rest, which may come from elsewhere: from folders or from single files."""
    text = fails(folder / "unet", config=tree, text_encoder=folder / "text_encoder")
    assert "holds no autoencoder" in text and "give autoencoder=FILE, one that holds it" in text
    vae = folder.parent / "vae.safetensors"
    shutil.copy(folder / "vae" / f"{WEIGHTS}.safetensors", vae)
    assert same(ldm.load(folder / "unet", config=tree, autoencoder=vae, text_encoder=folder / "text_encoder"), model)
    assert "no published family" in fails(folder / "unet")
    assert "vae: this is an autoencoder alone; give a whole model" in fails(folder / "vae")

    (folder / "vae" / "config.json").write_text('{"_class_name": "ControlNetModel"}')
    assert "its config.json is of ControlNetModel; expected one of UNet2DConditionModel" in fails(folder / "vae")
    (folder / "vae" / "config.json").unlink()
    assert "a folder with neither model_index.json nor config.json" in fails(folder / "vae")


def test_published_text_encoders_of_sd_2_lack_a_layer(layout: Callable[..., Any]) -> None:
    """At full size: the tower is built without it, and gives the states that were the last but one's."""
    names = layout("diffusers/sd-v2.text_encoder")
    tensors = {f"text_encoder.{name}": torch.empty(shape, device="meta") for name, shape in names.items()}
    tree = with_cut_tower(load_config(CONFIGS / "sd-v2.yaml"), Weights(tensors), "the config")
    with on_meta():
        model = build(tree)
    assert (len(model.text_encoder.tower.transformer.resblocks), model.text_encoder.layer) == (23, "last")
    inside = diffusers_folder.to_internal(tensors, model)
    assert inside.keys() == {f"text_encoder.{name}" for name in model.text_encoder.state_dict()}
    whole = {name: tensor for name, tensor in tensors.items() if ".layers.22." not in name}
    assert with_cut_tower(tree, Weights(whole), "the config") == tree


@pytest.mark.parametrize(
    ("about", "predicts", "ends_in_noise"),
    [
        ({}, "eps", False),
        ({"parameterization": "eps"}, "eps", False),
        ({"parameterization": "v"}, "v", False),
        ({"parameterization": "v", "zero_terminal_snr": "True"}, "v", True),
        ({"parameterization": "eps", "zero_terminal_snr": "True"}, "eps", False),  # which no network can predict there
    ],
)
def test_what_a_scheduler_says_overrules_the_config_of_a_family(
    about: dict[str, str], predicts: str, ends_in_noise: bool
) -> None:
    """SDXL's family has one config, of eps; fine-tunes of it predict v."""
    with on_meta():
        tensors = build(load_config(CONFIGS / "sdxl-base.yaml"), "sdxl-base").state_dict()
    tree, _ = find_config(Weights(tensors, about), Path("here"))
    with on_meta():
        model = build(tree, "here")
    assert (model.parameterization, model.schedule.zero_terminal_snr) == (predicts, ends_in_noise)


def test_a_scheduler_and_marks_in_a_file_say_the_same(folder: Path, tmp_path: Path) -> None:
    said = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(said))
    marked = {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([]), "conv_in.weight": torch.ones(3)}
    save_file(marked, tmp_path / "marked.safetensors")
    found = read_any(tmp_path / "marked.safetensors")
    assert list(found.tensors) == ["conv_in.weight"]
    assert found.metadata == read_any(folder).metadata == {"parameterization": "v", "zero_terminal_snr": "True"}
