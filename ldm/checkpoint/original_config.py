"""The original configs (CompVis, Stability), whole or one constructor's params -> ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ldm.checkpoint.original_text import Node, class_name, conditioner, conditioning, image_tower, refuse_unknown
from ldm.config import ConfigError

# Say how to run, not what to compute, or repeat what other params say.
UNET_IGNORED = {
    "image_size",
    "use_checkpoint",
    "use_fp16",
    "use_bf16",
    "legacy",
    "use_spatial_transformer",
    "num_heads_upsample",
    "spatial_transformer_attn_type",
}
UNET_USED = {
    "in_channels",
    "out_channels",
    "model_channels",
    "channel_mult",
    "num_res_blocks",
    "attention_resolutions",
    "transformer_depth",
    "transformer_depth_middle",
    "num_heads",
    "num_head_channels",
    "context_dim",
    "use_linear_in_transformer",
    "disable_self_attentions",
    "disable_middle_self_attn",
    "num_classes",
    "adm_in_channels",
    "conv_resample",
    "resblock_updown",
    "use_scale_shift_norm",
    "dropout",
    "use_new_attention_order",
}
DDCONFIG_IGNORED = {"double_z"}
DDCONFIG_USED = {
    "z_channels",
    "in_channels",
    "out_ch",
    "ch",
    "ch_mult",
    "num_res_blocks",
    "dropout",
    "resolution",
    "attn_resolutions",
    "attn_type",
}
MODELS = {
    "LatentDiffusion",
    "LatentInpaintDiffusion",
    "LatentDepth2ImageDiffusion",
    "LatentUpscaleDiffusion",
    "ImageEmbeddingConditionedLatentDiffusion",
    "DiffusionEngine",
}
AUTOENCODERS = {
    "AutoencoderKL": "AutoencoderKL",
    "AutoencoderKLInferenceWrapper": "AutoencoderKL",
    "VQModel": "VQModel",
    "VQModelInterface": "VQModel",
}
BETA_SCHEDULES = {
    "linear": "scaled_linear",
    "sqrt_linear": "linear",
    "cosine": "cosine",
    "squaredcos_cap_v2": "cosine",
    "sqrt": "sqrt",
}
PARAMETERIZATIONS = {"EpsScaling": "eps", "VScaling": "v"}


def translate(tree: Mapping[str, Any], source: str = "config") -> Mapping[str, Any]:
    """An original inference config -> ours; any other tree is given back as it is.

    Read is what says how to compute; what says how to train is not. Guidance scales, and the size of sgm's models, are
    in no original config: they are the families' own. ConfigError, with `source`, for what is not supported.
    """
    root = tree.get("model", tree)
    params = root.get("params") if isinstance(root, Mapping) else None
    if not isinstance(params, Mapping) or not {"unet_config", "network_config"} & set(params):
        return tree
    try:
        if class_name(root) not in MODELS:
            raise ValueError(f"the model {root['target']!r} is not supported: only {', '.join(sorted(MODELS))} are")
        ours = _compvis(params) if "unet_config" in params else _sgm(params)
    except KeyError as error:
        raise ConfigError(f"{source}: reads as an original config, but {error} is missing; give it") from error
    except (AttributeError, TypeError) as error:
        raise ConfigError(f"{source}: reads as an original config, but a value is of a wrong type: {error}") from error
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from error
    return {"target": "LatentDiffusion", "params": ours}


def _compvis(params: Mapping[str, Any]) -> Node:
    """Params of ldm's LatentDiffusion and its children."""
    autoencoder = _autoencoder(params["first_stage_config"], params.get("scale_factor", 1.0))
    parameterization = params.get("parameterization", "eps")
    factor = 2 ** (len(autoencoder["params"]["block_out_channels"]) - 1)
    size = params.get("image_size", 256 // factor)  # of the latents
    if (parameterization, size, factor) == ("v", 64, 8):
        size = 96  # v2-inference-v.yaml says 64, as all of SD 2 do, of a model made for 768 pixels
    ours = {
        "parameterization": parameterization,
        "image_size": size * factor,
        "schedule": _schedule(params),
        "unet": _unet(params["unet_config"]),
        "autoencoder": autoencoder,
    }
    if "low_scale_config" in params:
        low = params["low_scale_config"]["params"]
        schedule, level = _schedule(low["noise_schedule_config"]), low["max_noise_level"]
        ours["low_resolution"] = {"target": "NoiseAugmentation", "params": {"schedule": schedule, "max_level": level}}
    depth = params.get("depth_stage_config", {"params": {}}).get("params") or {}
    if depth.get("model_type") == "dpt_hybrid":  # as in the published one; other networks are not used
        ours["depth_estimator"] = {"target": "DPTDepthEstimator"}
    if "embedder_config" in params:
        ours["image_encoder"] = image_tower(params["embedder_config"])
        ours["image_augmentation"] = _embedding_augmentation(params["noise_aug_config"])
    return ours | conditioning(params["cond_stage_config"])


def _embedding_augmentation(node: Mapping[str, Any]) -> Node:
    if class_name(node) != "CLIPEmbeddingNoiseAugmentation":
        raise ValueError(
            f"the augmentation {node['target']!r} is not supported: only CLIPEmbeddingNoiseAugmentation is"
        )
    given = node["params"]
    refuse_unknown(class_name(node), given, {"noise_schedule_config", "timestep_dim", "clip_stats_path"})
    ours = {"schedule": _schedule(given["noise_schedule_config"]), "width": given["timestep_dim"]}
    measured = given.get("clip_stats_path") is not None  # once read from there, and in the published file since
    return {"target": "EmbeddingAugmentation", "params": ours | {"measured": measured}}


def _sgm(params: Mapping[str, Any]) -> Node:
    """Params of sgm's DiffusionEngine and its children."""
    denoiser = params["denoiser_config"]["params"]
    scaling, grid = class_name(denoiser["scaling_config"]), denoiser["discretization_config"]
    if scaling not in PARAMETERIZATIONS or class_name(grid) != "LegacyDDPMDiscretization":
        known = f"only {' and '.join(PARAMETERIZATIONS)} on LegacyDDPMDiscretization are"
        raise ValueError(f"{scaling} on {class_name(grid)} is not supported: {known}")
    parameterization, told = PARAMETERIZATIONS[scaling], conditioner(params["conditioner_config"])
    return {
        "parameterization": parameterization,
        "image_size": 1024 if "framing_embedding" in told else 768 if parameterization == "v" else 512,
        "schedule": _schedule({"linear_start": 0.00085, "linear_end": 0.012} | dict(grid.get("params") or {})),
        "unet": _unet(params["network_config"]),
        "autoencoder": _autoencoder(params["first_stage_config"], params.get("scale_factor", 1.0)),
    } | told


def _schedule(params: Mapping[str, Any]) -> Node:
    """Linear in the betas' roots unless said otherwise, although the original calls it "linear"."""
    kind = params.get("beta_schedule", "linear")
    if kind not in BETA_SCHEDULES or params.get("given_betas") is not None:
        raise ValueError(f"beta_schedule {kind!r} or given_betas: only {', '.join(BETA_SCHEDULES)} are supported")
    steps = params.get("timesteps", params.get("num_timesteps", 1000))
    ours = {"beta_schedule": BETA_SCHEDULES[kind], "num_timesteps": steps}
    if ours["beta_schedule"] != "cosine":  # which has neither
        ours |= {"beta_start": params.get("linear_start", 1e-4), "beta_end": params.get("linear_end", 2e-2)}
    return {"target": "NoiseSchedule", "params": ours}


def _unet(node: Mapping[str, Any]) -> Node:
    if class_name(node) != "UNetModel":
        raise ValueError(f"the network {node['target']!r} is not supported: only UNetModel is")
    return {"target": "UNet", "params": unet_params(node["params"])}


def _autoencoder(node: Mapping[str, Any], scale: float) -> Node:
    if class_name(node) not in AUTOENCODERS:
        raise ValueError(f"the autoencoder {node['target']!r} is not supported: only {', '.join(AUTOENCODERS)} are")
    return {
        "target": AUTOENCODERS[class_name(node)],
        "params": autoencoder_params(node["params"]) | {"scaling_factor": scale},
    }


def unet_params(original: Mapping[str, Any]) -> dict[str, Any]:
    """Params of UNetModel -> params of UNet; ValueError for what no published model uses."""
    refuse_unknown("UNetModel", original, UNET_USED | UNET_IGNORED)
    mult = list(original.get("channel_mult", (1, 2, 4, 8)))
    levels = range(len(mult))
    context_dim = _one("context_dim", original.get("context_dim"))
    no_self = original.get("disable_self_attentions")
    params = {
        "in_channels": original["in_channels"],
        "out_channels": original["out_channels"],
        "block_out_channels": [original["model_channels"] * m for m in mult],
        "layers_per_block": _one("num_res_blocks", original["num_res_blocks"]),
        "attention_levels": [2**i in original["attention_resolutions"] for i in levels],
        "transformer_depth": 0 if context_dim is None else original.get("transformer_depth", 1),
        "mid_transformer_depth": None if context_dim is None else original.get("transformer_depth_middle"),
        "context_dim": context_dim,
        "use_linear_projection": original.get("use_linear_in_transformer", False),
        "only_cross_attention": False if no_self is None else list(no_self),
        "mid_only_cross_attention": original.get("disable_middle_self_attn", False),
        "scale_shift_norm": original.get("use_scale_shift_norm", False),
        "dropout": original.get("dropout", 0.0),
        "resample": "conv" if original.get("conv_resample", True) else "pool",
    }
    if original.get("use_new_attention_order", False):
        params["new_attention_order"] = True
    if original.get("resblock_updown", False):
        params["resample"] = "resnet"
    head_channels = original.get("num_head_channels", -1)  # -1: the number is given
    params |= {"num_heads": original["num_heads"]} if head_channels == -1 else {"head_channels": head_channels}
    return params | _class_params(original)


def _class_params(original: Mapping[str, Any]) -> dict[str, Any]:
    num_classes = original.get("num_classes")
    if num_classes is None:
        return {}
    if num_classes == "sequential":
        return {"y_dim": original["adm_in_channels"]}
    if isinstance(num_classes, int):
        return {"num_classes": num_classes}
    raise ValueError(f'num_classes {num_classes!r} of UNetModel is not supported: only a number or "sequential" is')


def autoencoder_params(original: Mapping[str, Any]) -> dict[str, Any]:
    """Params of AutoencoderKL or VQModel (`ddconfig`, `embed_dim`, the latter's `n_embed`) -> ours, less the scale.

    The scale of the latents stands elsewhere in an original config: `scale_factor` of its LatentDiffusion.
    """
    ddconfig = original["ddconfig"]
    refuse_unknown("ddconfig", ddconfig, DDCONFIG_USED | DDCONFIG_IGNORED)
    if original["embed_dim"] != ddconfig["z_channels"]:
        sizes = f"embed_dim {original['embed_dim']} and z_channels {ddconfig['z_channels']}"
        raise ValueError(f"{sizes} differ, which no published autoencoder does: make them equal")
    mult, resolutions = list(ddconfig["ch_mult"]), list(ddconfig["attn_resolutions"])
    params = {
        "in_channels": ddconfig["in_channels"],
        "out_channels": ddconfig["out_ch"],
        "latent_channels": original["embed_dim"],
        "block_out_channels": [ddconfig["ch"] * m for m in mult],
        "layers_per_block": ddconfig["num_res_blocks"],
        "attention_levels": [ddconfig["resolution"] // 2**i in resolutions for i in range(len(mult))],
        "mid_attention": ddconfig.get("attn_type", "vanilla") != "none",
        "dropout": ddconfig.get("dropout", 0.0),
    }
    return params | ({"num_codes": original["n_embed"]} if "n_embed" in original else {})


def _one(name: str, value: Any) -> Any:
    """A value, or a sequence that says the same for every level."""
    if not isinstance(value, Sequence):
        return value
    if len(set(value)) != 1:
        raise ValueError(f"{name} {list(value)} varies between levels, which is not supported: give one value")
    return value[0]
