"""Inference configs of the published families as their authors wrote them, against our own of the same family."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ldm.checkpoint.configs import CONFIGS, find_config
from ldm.checkpoint.original_config import translate
from ldm.checkpoint.read import Weights
from ldm.config import ConfigError, build, check, load_config, parse_config, registered
from ldm.models.latent_diffusion import LatentDiffusion

KL = """
    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: 4
        monitor: val/rec_loss
        ddconfig: {double_z: true, z_channels: 4, resolution: 256, in_channels: 3, out_ch: 3, ch: 128,
                   ch_mult: [1, 2, 4, 4], num_res_blocks: 2, attn_resolutions: [], dropout: 0.0}
        lossconfig: {target: torch.nn.Identity}
"""
VQ = """
    first_stage_config:
      target: ldm.models.autoencoder.VQModelInterface
      params:
        embed_dim: 3
        n_embed: 8192
        ddconfig: {double_z: false, z_channels: 3, resolution: 256, in_channels: 3, out_ch: 3, ch: 128,
                   ch_mult: [1, 2, 4], num_res_blocks: 2, attn_resolutions: [], dropout: 0.0}
        lossconfig: {target: torch.nn.Identity}
"""
OPEN_CLIP = """
    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder
      params: {freeze: true, layer: penultimate}
"""
UNET1 = """
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params: {image_size: 32, in_channels: 4, out_channels: 4, model_channels: 320, attention_resolutions: [4, 2, 1],
               num_res_blocks: 2, channel_mult: [1, 2, 4, 4], num_heads: 8, use_spatial_transformer: true,
               transformer_depth: 1, context_dim: 768, use_checkpoint: true, legacy: false}
"""
UNET2 = UNET1.replace("num_heads: 8", "num_head_channels: 64, use_linear_in_transformer: true").replace("768", "1024")
PLAIN = """
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params: {image_size: 64, in_channels: 3, out_channels: 3, attention_resolutions: [8, 4, 2], num_res_blocks: 2, """


def compvis(top: str, *parts: str, model: str = "LatentDiffusion", start: str = "0.00085", end: str = "0.0120") -> str:
    return f"""
model:
  base_learning_rate: 1.0e-04
  target: ldm.models.diffusion.ddpm.{model}
  params:
    linear_start: {start}
    linear_end: {end}
    num_timesteps_cond: 1
    log_every_t: 200
    timesteps: 1000
    monitor: val/loss_simple_ema
    use_ema: false
    {top}
{"".join(parts)}"""


SD = """image_size: 64
    channels: 4
    conditioning_key: crossattn
    scale_factor: 0.18215"""
CLIP = """
    scheduler_config: {target: ldm.lr_scheduler.LambdaLinearScheduler, params: {warm_up_steps: [10000]}}
    cond_stage_config: {target: ldm.modules.encoders.modules.FrozenCLIPEmbedder}
"""
BERT = """
    cond_stage_config: {target: ldm.modules.encoders.modules.BERTEmbedder, params: {n_embed: 1280, n_layer: 32}}
"""
UPSCALER = """
    low_scale_config:
      target: ldm.modules.diffusionmodules.upscaling.ImageConcatWithNoiseAugmentation
      params: {noise_schedule_config: {linear_start: 0.0001, linear_end: 0.02}, max_noise_level: 350}
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params: {use_checkpoint: true, num_classes: 1000, image_size: 128, in_channels: 7, out_channels: 4,
               model_channels: 256, attention_resolutions: [2, 4, 8], num_res_blocks: 2, channel_mult: [1, 2, 2, 4],
               disable_self_attentions: [true, true, true, false], disable_middle_self_attn: false, num_heads: 8,
               use_spatial_transformer: true, transformer_depth: 1, context_dim: 1024, legacy: false,
               use_linear_in_transformer: true}
"""
SGM = """
model:
  target: sgm.models.diffusion.DiffusionEngine
  params:
    scale_factor: 0.13025
    disable_first_stage_autocast: true
    denoiser_config:
      target: sgm.modules.diffusionmodules.denoiser.DiscreteDenoiser
      params:
        num_idx: 1000
        scaling_config: {target: sgm.modules.diffusionmodules.denoiser_scaling.EpsScaling}
        discretization_config: {target: sgm.modules.diffusionmodules.discretizer.LegacyDDPMDiscretization}
    network_config:
      target: sgm.modules.diffusionmodules.openaimodel.UNetModel
      params: {num_classes: sequential, use_checkpoint: true, in_channels: 4, out_channels: 4, num_res_blocks: 2,
               num_head_channels: 64, use_linear_in_transformer: true, attention_resolutions: [4, 2],
               spatial_transformer_attn_type: softmax-xformers, """
BIG_G = """
          - is_trainable: false
            input_key: txt
            target: sgm.modules.encoders.modules.FrozenOpenCLIPEmbedder2
            params: {arch: ViT-bigG-14, version: laion2b_s39b_b160k, freeze: true, layer: penultimate,
                     always_return_pooled: true, legacy: false}
"""
SGM_L = """
          - is_trainable: false
            input_key: txt
            target: sgm.modules.encoders.modules.FrozenCLIPEmbedder
            params: {layer: hidden, layer_idx: 11}
"""


def sgm(unet: str, towers: str, *keys: str) -> str:
    number = """
          - is_trainable: false
            input_key: {}
            target: sgm.modules.encoders.modules.ConcatTimestepEmbedderND
            params: {{outdim: 256}}
"""
    head = "\n    conditioner_config:\n      target: sgm.modules.GeneralConditioner\n      params:\n        emb_models:"
    first_stage = KL.replace("ldm.models", "sgm.models").replace("{double_z", "{attn_type: vanilla-xformers, double_z")
    return f"{SGM}{unet}}}{head}{towers}{''.join(number.format(key) for key in keys)}{first_stage}"


REFINER = "adm_in_channels: 2560, model_channels: 384, channel_mult: [1, 2, 4, 4], transformer_depth: 4, "
REFINER += "context_dim: [1280, 1280, 1280, 1280]"
BASE = "adm_in_channels: 2816, model_channels: 320, channel_mult: [1, 2, 4], transformer_depth: [1, 2, 10], "
BASE += "context_dim: 2048"
IMAGENET = PLAIN + """model_channels: 192, channel_mult: [1, 2, 3, 5], num_heads: 1,
               use_spatial_transformer: true, transformer_depth: 1, context_dim: 512}
    cond_stage_config:
      target: ldm.modules.encoders.modules.ClassEmbedder
      params: {n_classes: 1001, embed_dim: 512, key: class_label}
"""  # fmt: skip
FFHQ = PLAIN + """model_channels: 224, channel_mult: [1, 2, 3, 4], num_head_channels: 32}
    cond_stage_config: __is_unconditional__
"""  # fmt: skip
CHURCHES = """
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params: {image_size: 32, in_channels: 4, out_channels: 4, model_channels: 192,
               attention_resolutions: [1, 2, 4, 8], num_res_blocks: 2, channel_mult: [1, 2, 2, 4, 4], num_heads: 8,
               use_scale_shift_norm: true, resblock_updown: true}
    cond_stage_config: __is_unconditional__
"""
LARGE = "image_size: 128\n    scale_factor: 0.08333\n    parameterization: v"
UNET9 = UNET1.replace("in_channels: 4", "in_channels: 9")
UNET9_2 = UNET2.replace("in_channels: 4", "in_channels: 9")
UNET5 = UNET2.replace("in_channels: 4", "in_channels: 5")
MIDAS = """
    depth_stage_config: {target: ldm.modules.midas.api.MiDaSInference, params: {model_type: dpt_hybrid}}
"""
UNET2_H = UNET2.replace("legacy", "num_classes: sequential, adm_in_channels: 2048, legacy")
UNET2_L = UNET2_H.replace("2048", "1536")
UNCLIP = """
    embedder_config: {{target: ldm.modules.encoders.modules.{}}}
    noise_aug_config:
      target: ldm.modules.encoders.modules.CLIPEmbeddingNoiseAugmentation
      params: {{{}noise_schedule_config: {{timesteps: 1000, beta_schedule: squaredcos_cap_v2}}}}
"""
OPEN_CLIP_IMAGE = UNCLIP.format("FrozenOpenCLIPImageEmbedder", "timestep_dim: 1024, ")
CLIP_IMAGE = UNCLIP.format(
    'ClipImageEmbedder, params: {model: "ViT-L/14"}',
    "clip_stats_path: checkpoints/karlo_models/ViT-L-14_stats.th, timestep_dim: 768, ",
)
V768 = SD.replace("64", "96") + "\n    embedding_dropout: 0.25\n    parameterization: v"
IMAGE = {"model": "ImageEmbeddingConditionedLatentDiffusion"}
KL4 = KL.replace("1, 2, 4, 4", "1, 2, 4")
LOW = {"model": "LatentUpscaleDiffusion", "start": "0.0001", "end": "0.02"}
ORIGINALS = {
    "sd-v1": compvis(SD, UNET1, KL, CLIP),
    "sd-v1-inpainting": compvis(SD, UNET9, KL, CLIP, model="LatentInpaintDiffusion"),
    "sd-v2": compvis(SD, UNET2, KL, OPEN_CLIP),
    "sd-v2-v": compvis(SD + "\n    parameterization: v", UNET2, KL, OPEN_CLIP),
    "sd-v2-inpainting": compvis(SD, UNET9_2, KL, OPEN_CLIP, model="LatentInpaintDiffusion"),
    "sd-v2-unclip": compvis(V768, OPEN_CLIP_IMAGE, UNET2_H, KL, OPEN_CLIP, **IMAGE),
    "sd-v2-unclip-l": compvis(V768, CLIP_IMAGE, UNET2_L, KL, OPEN_CLIP, **IMAGE),
    "sd-v2-depth": compvis(SD, UNET5, KL, OPEN_CLIP, MIDAS, model="LatentDepth2ImageDiffusion"),
    "sd-x4-upscaler": compvis(LARGE, UPSCALER, KL4, OPEN_CLIP, **LOW),
    "sdxl-base": sgm(BASE, SGM_L + BIG_G, "original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple"),
    "sdxl-refiner": sgm(REFINER, BIG_G, "original_size_as_tuple", "crop_coords_top_left", "aesthetic_score"),
    "ldm-text2img": compvis("image_size: 32\n    scale_factor: 0.18215", UNET1.replace("768", "1280"), KL, BERT),
    "ldm-cin256": compvis("image_size: 64", IMAGENET, VQ, start="0.0015", end="0.0195"),
    "ldm-ffhq": compvis("image_size: 64", FFHQ, VQ, start="0.0015", end="0.0195"),
    "ldm-lsun-churches": compvis("image_size: 32\n    scale_by_std: true", CHURCHES, KL, start="0.0015", end="0.0155"),
}  # fmt: skip


def with_defaults(node: Any) -> Any:
    """A tree in which what is written and what is left to a default look alike."""
    if isinstance(node, Mapping) and "target" in node:
        accepted = inspect.signature(registered(node["target"])).parameters.values()
        defaults = {p.name: p.default for p in accepted if p.default is not p.empty}
        params = defaults | dict(node.get("params") or {})
        return node["target"], {key: with_defaults(value) for key, value in params.items()}
    if isinstance(node, (list, tuple)):
        values = [with_defaults(value) for value in node]
        return values[0] if values and all(value == values[0] for value in values) else values  # one for all levels
    return node


@pytest.mark.parametrize("name", ORIGINALS)
def test_an_unmodified_original_is_our_config(name: str) -> None:
    tree = translate(parse_config(ORIGINALS[name]))
    check(tree, name, expected=LatentDiffusion)
    found, wanted = with_defaults(tree)[1], with_defaults(load_config(CONFIGS / f"{name}.yaml"))[1]
    for params in (found["autoencoder"][1], wanted["autoencoder"][1]):
        params["attention_levels"] = params["attention_levels"] or False  # None is none of them
    for params in (found["unet"][1], wanted["unet"][1]):  # None is as in the last level
        if params["mid_transformer_depth"] is None:
            depth = params["transformer_depth"]
            params["mid_transformer_depth"] = depth[-1] if isinstance(depth, list) else depth
    assert found == wanted


def test_load_takes_it_as_a_file_and_as_a_tree(tmp_path: Path) -> None:
    file = tmp_path / "v1-inference.yaml"
    file.write_text(ORIGINALS["sd-v1"])
    wanted = translate(parse_config(ORIGINALS["sd-v1"]))
    nothing = Weights({}, {})
    for config in (file, parse_config(ORIGINALS["sd-v1"])):
        assert find_config(nothing, tmp_path / "model.ckpt", config)[0] == wanted
    with pytest.raises(ConfigError, match="v1-inference.yaml: the text encoder Bert is not supported"):
        file.write_text(ORIGINALS["sd-v1"].replace("FrozenCLIPEmbedder", "Bert"))
        find_config(nothing, tmp_path / "model.ckpt", file)


def test_a_config_of_ours_is_left_alone() -> None:
    tree = load_config(CONFIGS / "sd-v1.yaml")
    assert translate(tree) is tree and translate({}) == {} and translate({"model": "x"}) == {"model": "x"}


def test_sgm_of_a_model_without_sizes() -> None:
    """Stability's sd_2_1_768.yaml: one tower, told nothing else."""
    tower = """
          - is_trainable: false
            input_key: txt
            target: sgm.modules.encoders.modules.FrozenOpenCLIPEmbedder
            params: {freeze: true, layer: penultimate}
"""
    text = sgm("x", tower).replace("EpsScaling", "VScaling").replace("0.13025", "0.18215")
    text = text.replace("num_classes: sequential, ", "").replace("[4, 2]", "[4, 2, 1]").replace(
        " x}", " model_channels: 320, channel_mult: [1, 2, 4, 4], transformer_depth: 1, context_dim: 1024}"
    )  # fmt: skip
    params = translate(parse_config(text))["params"]
    assert (params["parameterization"], params["image_size"], params["guidance_scale"]) == ("v", 768, 9.0)
    assert params["text_encoder"] == load_config(CONFIGS / "sd-v2-v.yaml")["params"]["text_encoder"]
    assert "framing_embedding" not in params and "zero_unconditional" not in params


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("sd-v1", "FrozenCLIPEmbedder", "FrozenT5Embedder", "FrozenT5Embedder is not supported"),
        ("sd-v1", "FrozenCLIPEmbedder", "BERTEmbedder", "'n_embed' is missing"),
        ("ldm-text2img", "n_layer: 32", "n_layer: 32, use_tokenizer: false", "without use_tokenizer reads no text"),
        ("ldm-text2img", "n_layer: 32", "n_layer: 32, depth: 3", "BERTEmbedder has params .* known here: depth"),
        ("sd-v1", "ddpm.LatentDiffusion", "cldm.ControlLDM", "'ldm.models.diffusion.cldm.ControlLDM' is not supported"),
        ("sd-v1", "linear_start", "beta_schedule: quadratic\n    linear_start", "beta_schedule 'quadratic'"),
        ("sd-v1", "AutoencoderKL", "IdentityFirstStage", "IdentityFirstStage' is not supported"),
        ("sd-v1", "openaimodel.UNetModel", "openaimodel.MyUNet", "MyUNet' is not supported"),
        ("sd-v1", "legacy: false", "legasy: false", "not known here: legasy"),
        ("sd-v1", "model_channels: 320, ", "", "'model_channels' is missing"),
        ("sd-v1", "model_channels: 320, ", "model_channels: null, ", "of a wrong type"),
        ("sd-v2", "layer: penultimate", "layer: penultimate, arch: ViT-Z", "arch 'ViT-Z'"),
        ("sd-v2", "layer: penultimate", "layer: penultimate, max_length: 60", "max_length 60"),
        ("sd-v2-unclip", "FrozenOpenCLIPImageEmbedder", "ViT", "the image encoder ViT is not supported"),
        ("sd-v2-unclip-l", "ViT-L/14", "RN50", "'RN50' of ClipImageEmbedder"),
        ("sd-v2-unclip", "CLIPEmbeddingNoiseAugmentation", "Noise", "Noise' is not supported"),
        ("ldm-ffhq", "__is_unconditional__", "__is_first_stage__", "__is_first_stage__"),
        ("sdxl-base", "EpsScaling", "EDMScaling", "EDMScaling on LegacyDDPMDiscretization"),
        ("sdxl-base", "layer_idx: 11", "layer_idx: 7", "layer_idx 7"),
        ("sdxl-base", "crop_coords_top_left", "crop", r"\['crop'\]"),
    ],
)
def test_what_is_not_supported_is_named(name: str, old: str, new: str, message: str) -> None:
    assert old in ORIGINALS[name]
    with pytest.raises(ConfigError, match=f"my.yaml: .*{message}"):
        translate(parse_config(ORIGINALS[name].replace(old, new)), "my.yaml")


def test_an_autoencoder_without_attention() -> None:
    text = ORIGINALS["ldm-ffhq"].replace("{double_z: false", "{attn_type: none, double_z: false")
    node = translate(parse_config(text))["params"]["autoencoder"]
    node["params"] |= {"block_out_channels": [8, 8, 8], "norm_num_groups": 4}
    assert not any("attentions" in name for name in build(node).state_dict())
