"""What convert writes as a diffusers folder: diffusers and transformers load it, and compute what our model does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import ldm
from ldm.checkpoint.configs import CONFIGS
from ldm.checkpoint.convert import convert
from ldm.checkpoint.diffusers_config import configs
from ldm.checkpoint.diffusers_save import to_diffusers
from ldm.checkpoint.meta import on_meta
from ldm.checkpoint.read import CheckpointError
from ldm.config import build, load_config
from ldm.models.encoders import TextEncoder
from ldm.models.framing import Framing
from ldm.models.latent_diffusion import LatentDiffusion

PROMPTS = ["a red cube on a table", ""]
FRAMING = Framing(72, 96, 64, 80, 4, 8)
PIPELINES = {
    "sd-v1": "StableDiffusionPipeline",
    "sd-v1-inpainting": "StableDiffusionInpaintPipeline",
    "sd-v2": "StableDiffusionPipeline",
    "sd-v2-v": "StableDiffusionPipeline",
    "sd-v2-inpainting": "StableDiffusionInpaintPipeline",
    "sd-v2-depth": "StableDiffusionDepth2ImgPipeline",
    "sd-v2-unclip": "StableUnCLIPImg2ImgPipeline",
    "sd-x4-upscaler": "StableDiffusionUpscalePipeline",
    "sdxl-base": "StableDiffusionXLPipeline",
    "sdxl-refiner": "StableDiffusionXLImg2ImgPipeline",
}


@pytest.fixture
def miniature_folder(
    miniature: Callable[[str], dict[str, Any]], filled: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> Callable[[str], tuple[dict[str, Any], LatentDiffusion, Path]]:
    def make(family: str) -> tuple[dict[str, Any], LatentDiffusion, Path]:
        tree = miniature(family)
        model = filled(build(tree)).eval()
        ldm.save(model, tmp_path / "in.safetensors", config=tree)
        convert(tmp_path / "in.safetensors", tmp_path / "out", layout="diffusers")
        return tree, model, tmp_path / "out"

    return make


def theirs_unet(folder: Path, model: LatentDiffusion, inputs: dict[str, Tensor], pooled: Tensor | None) -> Tensor:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(folder / "unet").eval()
    more: dict[str, Any] = {"class_labels": inputs.get("y")}
    if model.framing_embedding is not None:
        ids = torch.tensor([[float(getattr(FRAMING, name)) for name in model.framing_embedding.numbers]] * 2)
        more = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": ids}}
    return unet(inputs["x"], inputs["t"], inputs["context"], **more).sample


def theirs_text(folder: Path, encoder: TextEncoder) -> tuple[Tensor, Tensor | None]:
    """What SDXL's pipelines, and the others, make of transformers' outputs, from the tokens of their own tokenizers."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    states, pooled = [], None
    for part, cls in (("text_encoder", CLIPTextModel), ("text_encoder_2", CLIPTextModelWithProjection)):
        if not (folder / part).is_dir():
            continue
        tokenizer = CLIPTokenizer.from_pretrained(folder / part.replace("text_encoder", "tokenizer"))
        tokens = tokenizer(PROMPTS, padding="max_length", truncation=True, return_tensors="pt").input_ids
        out = cls.from_pretrained(folder / part).eval()(tokens, output_hidden_states=True)
        sdxl = (folder / "text_encoder_2").is_dir()
        states.append(out.hidden_states[-2] if sdxl else out.last_hidden_state)
        pooled = out.text_embeds if part == "text_encoder_2" else None
    return torch.cat(states, dim=2), pooled


@pytest.mark.long
@pytest.mark.parametrize("family", PIPELINES)
def test_diffusers_computes_the_same_and_we_read_the_same_bits(
    family: str, miniature_folder: Callable[..., Any], relative_error: Callable[..., float], no_grad: None
) -> None:
    from diffusers import AutoencoderKL

    tree, model, folder = miniature_folder(family)
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == PIPELINES[family]

    states, pooled = model.text_encoder(model.text_encoder.tokenize(PROMPTS))
    theirs, their_pooled = theirs_text(folder, model.text_encoder)
    assert relative_error(theirs, states) < 1e-5
    assert (pooled is None) == (their_pooled is None)
    assert pooled is None or relative_error(their_pooled, pooled) < 1e-5

    torch.manual_seed(0)
    inputs = {"x": torch.randn(2, model.unet.in_channels, 16, 16), "t": torch.tensor([3, 901]), "context": states}
    if model.framing_embedding is not None:
        inputs["y"] = model.framing_embedding(pooled, FRAMING)
    elif model.unet.y_dim is not None:
        inputs["y"] = torch.randn(2, model.unet.y_dim)
    elif model.unet.num_classes is not None:
        inputs["y"] = torch.tensor([5, 340])
    assert relative_error(theirs_unet(folder, model, inputs, pooled), model.unet(**inputs)) < 1e-5

    vae, image = AutoencoderKL.from_pretrained(folder / "vae").eval(), torch.randn(1, 3, 32, 32)
    z = vae.encode(image).latent_dist.mode() * vae.config.scaling_factor
    assert relative_error(z, model.encode(image).mean) < 1e-5
    assert relative_error(vae.decode(z / vae.config.scaling_factor).sample, model.decode(z)) < 1e-5
    check_read_back(tree, model, folder)


def check_read_back(tree: dict[str, Any], model: LatentDiffusion, folder: Path) -> None:
    """The same bits, all but what is not written: a layer of SD 2's text that nobody uses."""
    loaded = ldm.load(folder, config=tree)
    a, b = loaded.state_dict(), model.state_dict()
    states = getattr(model.text_encoder, "layer", None), getattr(model.text_encoder, "final_norm", None)
    unused = "text_encoder.tower.transformer.resblocks.2." if states == ("penultimate", True) else "none"
    assert a.keys() == {name for name in b if not name.startswith(unused)}
    assert all(torch.equal(a[name], b[name]) for name in a)
    tokens = model.text_encoder.tokenize(PROMPTS)
    assert torch.equal(loaded.text_encoder(tokens).states, model.text_encoder(tokens).states)
    assert loaded.parameterization == model.parameterization


def test_a_whole_pipeline_draws_offline(miniature_folder: Callable[..., Any]) -> None:
    from diffusers import StableDiffusionPipeline

    _, model, folder = miniature_folder("sd-v1")
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    z = pipeline("a cube", num_inference_steps=2, height=32, width=32, output_type="latent").images
    assert z.shape == (1, 4, 4, 4) and z.isfinite().all() and z.std() > 0
    betas = torch.as_tensor(pipeline.scheduler.betas, dtype=torch.float64)
    assert torch.allclose(betas, model.schedule.betas, rtol=1e-5)


def test_a_whole_pipeline_varies_pictures_offline(
    miniature_folder: Callable[..., Any], relative_error: Callable[..., float], no_grad: None
) -> None:
    from diffusers import StableUnCLIPImg2ImgPipeline

    _, model, folder = miniature_folder("sd-v2-unclip")
    pipeline = StableUnCLIPImg2ImgPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    picture = Image.fromarray(torch.arange(28 * 28 * 3, dtype=torch.uint8).reshape(28, 28, 3).numpy())
    pixels = pipeline.feature_extractor(images=picture, return_tensors="pt").pixel_values
    assert relative_error(pixels, model.image_encoder.preprocess(picture)) < 1e-5
    embedding = pipeline.image_encoder(pixels).image_embeds
    assert relative_error(embedding, model.image_encoder(pixels)) < 1e-5
    noise, level = torch.randn(1, 8), torch.tensor([300])
    theirs = pipeline.noise_image_embeddings(embedding, noise_level=300, noise=noise)
    assert relative_error(theirs, model.image_augmentation(embedding, level, noise)[1]) < 1e-5
    z = pipeline(picture, "a", num_inference_steps=2, height=32, width=32, output_type="latent").images
    assert z.isfinite().all() and z.std() > 0


@pytest.mark.long
def test_a_folder_of_unclip_without_all_of_its_parts(miniature_folder: Callable[..., Any]) -> None:
    tree, model, folder = miniature_folder("sd-v2-unclip")
    statistics, tower = folder / "image_normalizer", folder / "image_encoder"
    statistics.rename(folder / "elsewhere")
    loaded = ldm.load(folder, config=tree)
    assert torch.equal(loaded.image_augmentation.data_std, torch.ones(1, 8))
    assert torch.equal(loaded.image_encoder.tower.proj, model.image_encoder.tower.proj)
    shutil.rmtree(tower)
    assert ldm.load(folder, config=tree).image_encoder is None
    (folder / "elsewhere").rename(statistics)
    assert ldm.load(folder, config=tree).image_encoder is None


def test_the_folder_is_there_whole_or_not_at_all(
    miniature: Callable[[str], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, path = miniature("sd-v1"), tmp_path / "in.safetensors"
    ldm.save(build(tree), path, config=tree)

    def full_disk(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("ldm.checkpoint.diffusers_save.write", full_disk)
    with pytest.raises(OSError, match="no space left"):
        convert(path, tmp_path / "out", layout="diffusers")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("ldm-cin256", "diffusers has no pipeline for a UNet that is conditioned by a ClassEmbedder"),
        ("ldm-lsun-churches", "diffusers' UNet2DModel has no heads of several widths"),
        ("scenes-x4", "diffusers' UNet2DModel has no transformers"),
    ],
)
def test_what_diffusers_cannot_compute(config: str, reason: str) -> None:
    tree = load_config(CONFIGS / f"{config}.yaml")
    with on_meta():
        model = build(tree)
    with pytest.raises(CheckpointError) as caught:
        configs(tree, model)
    assert str(caught.value) == f"{reason}; use the layout ldm or original"


def test_what_the_first_pipelines_do_not_show_a_network() -> None:
    tree = load_config(CONFIGS / "ldm-ffhq.yaml")
    tree["params"]["unet"]["params"]["in_channels"] = 6
    with on_meta():
        model = build(tree)
    with pytest.raises(CheckpointError, match="no pipeline without CLIP whose UNet is shown more than the latent; use"):
        configs(tree, model)


def test_an_autoencoder_of_codes_has_no_place_beside_clip(miniature: Callable[[str], dict[str, Any]]) -> None:
    tree = miniature("sd-v1")
    tree["params"]["autoencoder"] = miniature("ldm-ffhq")["params"]["autoencoder"]
    with on_meta():
        model = build(tree)
    with pytest.raises(CheckpointError, match="diffusers' VQModel has no place beside CLIP; use the layout"):
        configs(tree, model)


@pytest.mark.parametrize(
    ("config", "components"),
    [
        ("sd-v1", {"unet": "sd-v1.unet", "text_encoder": "sd-v1.text_encoder", "vae": "vae"}),
        ("sd-v1-inpainting", {"unet": "sd-v1-inpainting.unet"}),
        ("sd-v2-v", {"unet": "sd-v2.unet", "text_encoder": "sd-v2.text_encoder"}),
        ("sd-x4-upscaler", {"unet": "sd-x4-upscaler.unet"}),
        ("sdxl-base", {"unet": "sdxl-base.unet", "text_encoder_2": "sdxl.text_encoder_2"}),
        ("sdxl-refiner", {"unet": "sdxl-refiner.unet"}),
    ],
)
def test_published_components(
    config: str, components: dict[str, str], layout: Callable[..., Any], shapes: Callable[..., Any]
) -> None:
    """At full size: the tensors of the published component files, every one of them and no other."""
    with on_meta():
        model = build(load_config(CONFIGS / f"{config}.yaml"))
    parts = to_diffusers(model)
    for part, published in components.items():
        assert shapes(parts[part]) == layout(f"diffusers/{published}")


def test_published_numbers() -> None:
    """What diffusers cannot read off the tensors: as in the config files that were published."""
    found = {}
    for config in ("sd-v1", "sd-v2-v", "sd-x4-upscaler", "sdxl-base", "sdxl-refiner"):
        tree = load_config(CONFIGS / f"{config}.yaml")
        with on_meta():
            found[config] = configs(tree, build(tree))
    unets = {config: files["unet/config.json"] for config, files in found.items()}
    heads = {config: unet["attention_head_dim"] for config, unet in unets.items()}
    assert heads == {
        "sd-v1": 8,
        "sd-v2-v": [5, 10, 20, 20],
        "sd-x4-upscaler": 8,
        "sdxl-base": [5, 10, 20],
        "sdxl-refiner": [6, 12, 24, 24],
    }
    assert [unet["sample_size"] for unet in unets.values()] == [64, 96, 128, 128, 128]
    assert unets["sdxl-base"]["transformer_layers_per_block"] == [1, 2, 10]
    assert unets["sdxl-base"]["addition_time_embed_dim"] == 256
    text = {config: files.get("text_encoder/config.json") for config, files in found.items()}
    assert [t and (t["num_hidden_layers"], t["hidden_act"]) for t in text.values()] == [
        (12, "quick_gelu"),
        (23, "gelu"),
        (23, "gelu"),
        (12, "quick_gelu"),
        None,
    ]
    assert found["sd-v2-v"]["scheduler/scheduler_config.json"]["prediction_type"] == "v_prediction"
    assert found["sd-x4-upscaler"]["model_index.json"]["max_noise_level"] == 350
