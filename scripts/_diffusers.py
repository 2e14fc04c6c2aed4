"""Our configs and weights as modules and pipelines of `diffusers` and `transformers`, to be compared with."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ldm.checkpoint.meta import on_meta
from ldm.checkpoint.text_keys import to_hugging_face, tower_prefixes
from ldm.models.clip import END
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.models.text_encoder import OpenCLIPTextEncoder
from ldm.modules.unet import UNet
from ldm.modules.unet_plan import per_level

Params = Mapping[str, Any]


@dataclass(frozen=True)
class Theirs:
    unet: nn.Module
    vae: nn.Module
    towers: list[nn.Module]  # in our order; pipelines need none, where prompts go in as states


def build_theirs(params: Params, model: LatentDiffusion) -> Theirs:
    """All of their modules, sharing the memory of our weights; `params` are those of our config's root."""
    return Theirs(unet_of(params, model), vae_of(params, model), towers_of(model))


def unet_of(params: Params, model: LatentDiffusion) -> Any:
    from diffusers import UNet2DConditionModel

    with on_meta():
        unet = UNet2DConditionModel(**unet_config(params))
    return _give(unet, model.unet.state_dict())


def vae_of(params: Params, model: LatentDiffusion) -> Any:
    from diffusers import AutoencoderKL

    with on_meta():
        vae = AutoencoderKL(**vae_config(params["autoencoder"]["params"]))
    return _give(vae, model.autoencoder.state_dict())


def towers_of(model: LatentDiffusion) -> list[nn.Module]:
    encoder = model.text_encoder
    towers = [encoder.get_submodule(prefix.rstrip(".")) for prefix in tower_prefixes(encoder)]
    return [_tower(tower, alone=len(towers) == 1) for tower in towers]


def states(towers: list[nn.Module], tokens: Tensor) -> tuple[Tensor, Tensor | None]:
    """Our token ids -> what cross-attention reads, and the pooled vector of SDXL, as their pipelines make them."""
    if "WithProjection" not in type(towers[-1]).__name__:
        return towers[0](tokens).last_hidden_state, None
    rows = [tokens] if tokens.ndim == 2 else list(tokens.unbind(1))
    outputs = [tower(row, output_hidden_states=True) for tower, row in zip(towers, rows, strict=True)]
    return torch.cat([output.hidden_states[-2] for output in outputs], dim=2), outputs[-1].text_embeds


def unet_config(params: Params) -> dict[str, Any]:
    """The arguments of `UNet2DConditionModel`, in whose `attention_head_dim` the number of heads is written."""
    defaults = {name: p.default for name, p in inspect.signature(UNet).parameters.items()}
    ours = defaults | dict(params["unet"]["params"])
    widths = ours["block_out_channels"]
    attends = per_level("attention_levels", ours["attention_levels"], len(widths))
    per_head = ours["head_channels"]
    config = {
        "sample_size": 64,  # only a default of pipelines, which are told the size
        "in_channels": ours["in_channels"],
        "out_channels": ours["out_channels"],
        "block_out_channels": tuple(widths),
        "layers_per_block": ours["layers_per_block"],
        "down_block_types": tuple("CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends),
        "up_block_types": tuple("CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)),
        "cross_attention_dim": ours["context_dim"],
        "attention_head_dim": ours["num_heads"] or tuple(width // per_head for width in widths),
        "transformer_layers_per_block": per_level("transformer_depth", ours["transformer_depth"], len(widths)),
        "use_linear_projection": ours["use_linear_projection"],
        "only_cross_attention": per_level("only_cross_attention", ours["only_cross_attention"], len(widths)),
        "mid_block_only_cross_attention": ours["mid_only_cross_attention"],
        "num_class_embeds": ours["num_classes"],
        "norm_num_groups": ours["norm_num_groups"],
        "norm_eps": ours["norm_eps"],
    }
    if "framing_embedding" in params:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": params["framing_embedding"]["params"]["dim"],
            "projection_class_embeddings_input_dim": ours["y_dim"],
        }
    return config


def vae_config(ours: Params) -> dict[str, Any]:
    widths = tuple(ours["block_out_channels"])
    return {
        "latent_channels": ours.get("latent_channels", 4),
        "block_out_channels": widths,
        "layers_per_block": ours["layers_per_block"],
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "scaling_factor": ours["scaling_factor"],
        "norm_num_groups": ours.get("norm_num_groups", 32),
        "mid_block_add_attention": ours.get("mid_attention", True),
        "force_upcast": False,
    }


def _tower(ours: nn.Module, alone: bool) -> nn.Module:
    """A text tower. SD 2's penultimate states are the last ones of a tower of theirs that lacks the last layer."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    assert isinstance(ours, OpenCLIPTextEncoder)
    blocks, projection = ours.tower.transformer.resblocks, ours.tower.text_projection
    layers = len(blocks) - (ours.layer == "penultimate" and ours.final_norm)
    config = CLIPTextConfig(
        vocab_size=len(ours.tower.token_embedding.weight),
        hidden_size=ours.width,
        intermediate_size=blocks[0].mlp.c_fc.out_features,
        num_hidden_layers=layers,
        num_attention_heads=blocks[0].attn.num_heads,
        max_position_embeddings=ours.context_length,
        hidden_act="quick_gelu" if type(blocks[0].mlp.gelu).__name__ == "QuickGELU" else "gelu",
        projection_dim=ours.width if projection is None else projection.shape[1],
        eos_token_id=END,
    )
    with on_meta():
        tower = CLIPTextModel(config) if projection is None else CLIPTextModelWithProjection(config)
    tensors = to_hugging_face(dict(ours.tower.state_dict()))
    wanted = tower.state_dict()  # with or without "text_model.", by the version of transformers
    renamed = {name if name in wanted else name.removeprefix("text_model."): t for name, t in tensors.items()}
    dropped = tuple(f"encoder.layers.{i}." for i in range(layers, len(blocks)))
    _give(tower, {name: t for name, t in renamed.items() if not dropped or not any(d in name for d in dropped)})
    for module in tower.modules():
        if getattr(module, "position_ids", None) is not None:  # a buffer that is in no file
            module.position_ids = torch.arange(ours.context_length)[None]
    return tower


def _give(module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    module.load_state_dict(dict(tensors), assign=True)
    return module.eval()


# --- pipelines ---------------------------------------------------------------------------------------------------


def scheduler(params: Params) -> Any:
    """Their DDIM with our `uniform` spacing. It ends at alphas_cumprod 1, as DDIM's paper does and we do."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        **_betas(params["schedule"]["params"]),
        prediction_type={"eps": "epsilon", "v": "v_prediction", "x0": "sample"}[params["parameterization"]],
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
        timestep_spacing="leading",
    )


def _betas(ours: Params) -> dict[str, Any]:
    return {
        "num_train_timesteps": ours["num_timesteps"],
        "beta_schedule": ours["beta_schedule"],
        "beta_start": ours["beta_start"],
        "beta_end": ours["beta_end"],
    }


def pipeline(family: str, params: Params, theirs: Theirs) -> Any:
    """Their pipeline for a family, without tokenizer: prompts go in as states."""
    import diffusers

    text, text_2 = (*theirs.towers, None, None)[:2]
    parts = {"vae": theirs.vae, "unet": theirs.unet, "scheduler": scheduler(params), "tokenizer": None}
    plain = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    if family == "sdxl-base":
        towers = {"text_encoder": text, "text_encoder_2": text_2, "tokenizer_2": None}
        made = diffusers.StableDiffusionXLPipeline(**parts, **towers, add_watermarker=False)
    elif family == "sdxl-refiner":
        towers = {"text_encoder": None, "text_encoder_2": text, "tokenizer_2": None}
        told = {"requires_aesthetics_score": True, "add_watermarker": False}
        made = diffusers.StableDiffusionXLImg2ImgPipeline(**parts, **towers, **told)
    elif family == "sd-x4-upscaler":
        noise = params["low_resolution"]["params"]
        low = diffusers.DDPMScheduler(**_betas(noise["schedule"]["params"]))
        parts |= {"text_encoder": text, "low_res_scheduler": low, "max_noise_level": noise["max_level"]}
        made = diffusers.StableDiffusionUpscalePipeline(**parts)
    elif family == "sd-v1-inpainting":
        made = diffusers.StableDiffusionInpaintPipeline(text_encoder=text, **parts, **plain)
    else:
        made = diffusers.StableDiffusionPipeline(text_encoder=text, **parts, **plain)
    made.set_progress_bar_config(disable=True)
    return made
