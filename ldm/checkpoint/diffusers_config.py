"""Our config -> the JSON files of a diffusers folder: what the `diffusers` and `transformers` libraries build from.

Refused, as a CheckpointError, is what those libraries' classes cannot compute.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from ldm.checkpoint import diffusers_bert, diffusers_pictures, diffusers_unets
from ldm.checkpoint.diffusers_unets import refuse
from ldm.checkpoint.pixel_config import PREDICTIONS
from ldm.checkpoint.read import CheckpointError
from ldm.config import registered
from ldm.models.autoencoder import IdentityAutoencoder
from ldm.models.bert import BertTextEncoder
from ldm.models.clip import END, START
from ldm.models.diffusion.schedule import NoiseSchedule
from ldm.models.encoders import NoText, TextEncoder
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.models.text_encoder import OpenCLIPTextEncoder, TwoTowers

Node = dict[str, Any]

PREDICTION_TYPES = {ours: theirs for theirs, ours in PREDICTIONS.items()}
CLASSES = {  # component -> (library, class); those that may be of several have theirs in their configs
    "low_res_scheduler": ("diffusers", "DDPMScheduler"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    "bert": ("latent_diffusion", "LDMBertModel"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "tokenizer_2": ("transformers", "CLIPTokenizer"),
    "image_encoder": ("transformers", "CLIPVisionModelWithProjection"),
    "feature_extractor": ("transformers", "CLIPImageProcessor"),
    "depth_estimator": ("transformers", "DPTForDepthEstimation"),
    "image_normalizer": ("stable_diffusion", "StableUnCLIPImageNormalizer"),
    "image_noising_scheduler": ("diffusers", "DDPMScheduler"),
}


def text_encoders(encoder: TextEncoder) -> dict[str, OpenCLIPTextEncoder]:
    """CLIP's towers by the names of their components; the one with a pooled vector is SDXL's second."""
    if isinstance(encoder, NoText | BertTextEncoder):
        return {}
    if isinstance(encoder, TwoTowers):
        return {"text_encoder": encoder.first, "text_encoder_2": encoder.second}
    if not isinstance(encoder, OpenCLIPTextEncoder):
        what = f"no pipeline for a UNet that is conditioned by a {type(encoder).__name__}"
        raise CheckpointError(f"diffusers has {what}; use the layout ldm or original")
    return {"text_encoder" if encoder.tower.text_projection is None else "text_encoder_2": encoder}


def autoencoder_part(model: LatentDiffusion) -> str | None:
    """The component's name; None in pixel space. The pipelines of the first models call it after VQ, whatever it is."""
    if isinstance(model.autoencoder, IdentityAutoencoder):
        return None
    return "vae" if text_encoders(model.text_encoder) else "vqvae"


def layers(tower: OpenCLIPTextEncoder) -> int:
    """How many blocks are stored: where the last but one's states are normed, diffusers leaves the last one out."""
    normed, pooled = tower.final_norm, tower.tower.text_projection is not None
    if normed == (tower.layer == "penultimate") and pooled or not normed and tower.layer == "last":
        states = f"{tower.layer} states, {'normed' if normed else 'not normed'}"
        raise CheckpointError(f"diffusers has no text encoder that gives {states}; use the layout ldm or original")
    return len(tower.tower.transformer.resblocks) - (tower.layer == "penultimate" and normed)


def configs(tree: Mapping[str, Any], model: LatentDiffusion) -> dict[str, Node]:
    """Of every file: `model_index.json`, and the config of each component behind the component's name."""
    params = tree["params"]
    towers = text_encoders(model.text_encoder)
    autoencoder = autoencoder_part(model)
    scheduler = _scheduler(_settings(params["schedule"]), model.schedule, PREDICTION_TYPES[model.parameterization])
    files = {"unet/config.json": diffusers_unets.unet(_settings(params["unet"]), model)}
    if autoencoder is None:
        scheduler |= {"_class_name": "DDPMScheduler", "clip_sample": model.denoiser.clip_x0}
        scheduler |= {"variance_type": "fixed_small", "steps_offset": 0}
    else:
        files[f"{autoencoder}/config.json"] = _vae(_settings(params["autoencoder"]), model.image_size, autoencoder)
    files["scheduler/scheduler_config.json"] = scheduler
    if isinstance(model.text_encoder, BertTextEncoder):
        files["bert/config.json"] = diffusers_bert.config(model.text_encoder)
    files |= {f"{part}/config.json": _text_encoder(part, tower) for part, tower in towers.items()}
    if model.low_resolution is not None:
        low = _settings(_settings(params["low_resolution"])["schedule"])
        files["low_res_scheduler/scheduler_config.json"] = _scheduler(low, model.low_resolution.schedule, "epsilon")
    if model.image_encoder is not None and model.image_augmentation is not None:
        files |= diffusers_pictures.image_encoder_configs(model.image_encoder, model.image_augmentation.width)
        noise = _settings(_settings(params["image_augmentation"])["schedule"])
        noising = _scheduler(noise, model.image_augmentation.schedule, "epsilon")
        files["image_noising_scheduler/scheduler_config.json"] = noising
    if model.depth_estimator is not None:
        files |= diffusers_pictures.depth_configs(model.depth_estimator)
    parts = {name.partition("/")[0]: node.get("_class_name") for name, node in files.items()}
    classes = {part: CLASSES.get(part, ("diffusers", name)) for part, name in parts.items()}
    tokenizers = [part.replace("text_encoder", "tokenizer") for part in towers]
    classes |= {part: CLASSES[part] for part in tokenizers}
    if "bert" in classes:
        classes["tokenizer"] = ("transformers", "BertTokenizer")
    return files | {"model_index.json": _index(model, classes)}


def _settings(node: Mapping[str, Any]) -> Node:
    """A node's params, with its class's defaults for those that are not given."""
    defaults = {n: p.default for n, p in inspect.signature(registered(node["target"])).parameters.items()}
    return defaults | {"target": node["target"]} | dict(node.get("params") or {})


def _index(model: LatentDiffusion, parts: Mapping[str, tuple[str, str | None]]) -> Node:
    """The pipeline that draws with such a model. Those of its networks that the model has not are null."""
    absent, more = ["safety_checker", "feature_extractor"], {}
    channels, latents = model.unet.in_channels, model.autoencoder.latent_channels
    if "vae" not in parts:
        name, absent = _first_pipeline(model), []
    elif model.low_resolution is not None:
        name, more = "StableDiffusionUpscalePipeline", {"max_noise_level": model.low_resolution.max_level}
    elif model.framing_embedding is not None and "text_encoder" in parts:
        name, absent = "StableDiffusionXLPipeline", ["image_encoder", "feature_extractor"]
        more = {"force_zeros_for_empty_prompt": model.zero_unconditional}
    elif model.framing_embedding is not None:
        name, absent = "StableDiffusionXLImg2ImgPipeline", ["text_encoder", "tokenizer"]
        score = "aesthetic_score" in model.framing_embedding.numbers
        more = {"requires_aesthetics_score": score, "force_zeros_for_empty_prompt": model.zero_unconditional}
    elif channels == 2 * latents + 1:
        name = "StableDiffusionInpaintPipeline"
    elif channels == latents + 1:
        name, absent = "StableDiffusionDepth2ImgPipeline", ["depth_estimator", "feature_extractor"]
    elif model.unet.y_dim is not None:
        name = "StableUnCLIPImg2ImgPipeline"
        absent = ["feature_extractor", "image_encoder", "image_normalizer", "image_noising_scheduler"]
    else:
        name = "StableDiffusionPipeline"
    if "safety_checker" in absent and model.low_resolution is None:
        more = {"requires_safety_checker": False}
    there: Node = {part: list(of_class) for part, of_class in parts.items()}
    if "depth_estimator" in there:
        there["feature_extractor"] = ["transformers", "DPTImageProcessor"]
    return {"_class_name": name} | more | there | {part: [None, None] for part in absent if part not in there}


def _first_pipeline(model: LatentDiffusion) -> str:
    """Of the models before CLIP."""
    if model.concat_channels or model.framing_embedding is not None:
        what = "no pipeline without CLIP whose UNet is shown more than the latent"
        raise CheckpointError(f"diffusers has {what}; use the layout ldm or original")
    if isinstance(model.text_encoder, BertTextEncoder):
        return "LDMTextToImagePipeline"
    return "DDPMPipeline" if isinstance(model.autoencoder, IdentityAutoencoder) else "LDMPipeline"


def _scheduler(p: Mapping[str, Any], schedule: NoiseSchedule, prediction: str) -> Node:
    names = {"scaled_linear": "scaled_linear", "linear": "linear", "cosine": "squaredcos_cap_v2"}
    kind = p["beta_schedule"]
    return {
        "_class_name": "DDIMScheduler",
        "beta_schedule": names.get(kind, "linear"),
        "beta_start": p["beta_start"],
        "beta_end": p["beta_end"],
        "trained_betas": None if kind in names else schedule.betas.tolist(),
        "num_train_timesteps": schedule.num_timesteps,
        "prediction_type": prediction,
        "rescale_betas_zero_snr": schedule.zero_terminal_snr,
        "timestep_spacing": "trailing" if schedule.zero_terminal_snr else "leading",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }


def _vae(p: Mapping[str, Any], image_size: int, part: str) -> Node:
    widths, quantized = list(p["block_out_channels"]), "num_codes" in p
    attends = list(p["attention_levels"] or [False] * len(widths))
    name = "VQModel" if quantized else "AutoencoderKL"
    refused = {
        "place beside CLIP": quantized and part == "vae",
        f"norm_eps {p['norm_eps']}": p["norm_eps"] != 1e-6,
        f"shift_factor {p['shift_factor']}": quantized and p["shift_factor"] != 0,
    }
    refuse(name, refused)
    own = {"num_vq_embeddings": p["num_codes"]} if quantized else {"shift_factor": p["shift_factor"] or None}
    return {
        "_class_name": name,
        "sample_size": image_size,
        "in_channels": p["in_channels"],
        "out_channels": p["out_channels"],
        "latent_channels": p["latent_channels"],
        "block_out_channels": widths,
        "layers_per_block": p["layers_per_block"],
        "down_block_types": ["AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in attends],
        "up_block_types": ["AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in reversed(attends)],
        "mid_block_add_attention": p["mid_attention"],
        "norm_num_groups": p["norm_num_groups"],
        "act_fn": "silu",
        "scaling_factor": p["scaling_factor"],
        "force_upcast": not quantized,
        **own,
    }


def _text_encoder(part: str, encoder: OpenCLIPTextEncoder) -> Node:
    tower = encoder.tower
    block = tower.transformer.resblocks[0]
    pooled = tower.text_projection is not None
    return {
        "architectures": [CLASSES[part][1]],
        "model_type": "clip_text_model",
        "vocab_size": tower.token_embedding.num_embeddings,
        "hidden_size": encoder.width,
        "intermediate_size": block.mlp.c_fc.out_features,
        "num_attention_heads": block.attn.num_heads,
        "num_hidden_layers": layers(encoder),
        "max_position_embeddings": encoder.context_length,
        "hidden_act": "quick_gelu" if type(block.mlp.gelu).__name__ == "QuickGELU" else "gelu",
        "layer_norm_eps": tower.ln_final.eps,
        "projection_dim": tower.text_projection.shape[1] if pooled else encoder.width,
        "bos_token_id": START,
        "eos_token_id": END,  # also where the pooled vector is taken
        "pad_token_id": encoder.pad_id,
    }
