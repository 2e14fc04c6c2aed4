"""A whole original file (CompVis, Stability): its parts' prefixes, and what in it is no weight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ldm.checkpoint import bert_keys, depth_keys, keys, text_keys
from ldm.models.bert import BertTextEncoder
from ldm.models.clip import END
from ldm.models.encoders import TextEncoder
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.models.text_encoder import OpenCLIPTextEncoder, TwoTowers

PREFIXES = {**keys.PREFIXES, "text_encoder": "cond_stage_model."}
SDXL_TOWERS = ("conditioner.embedders.0.", "conditioner.embedders.1.")
EMA = "model_ema.diffusion_model"  # before the UNet's names without their dots
NOT_LOADED = (
    "model_ema.",  # a second copy of the UNet: see with_one_unet
    "first_stage_model.loss.",  # what only trained the autoencoder
    "low_scale_model.",  # constants of a noise schedule
    "denoiser.sigmas",  # sgm's, the same
    "depth_model.",  # what estimates depth, where the model has nothing that does, or is of another kind
    "embedder.",  # what is not the image tower of it: the text tower's remains
    "noise_augmentor.",  # constants of a noise schedule
)
DEPTH = "depth_model.model."
IMAGE_TOWER = "embedder.model.visual."
STATISTICS = {f"noise_augmentor.{name}": f"image_augmentation.{name}" for name in ("data_mean", "data_std")}


def is_original(names: Iterable[str]) -> bool:
    return any(name.startswith((*PREFIXES.values(), *SDXL_TOWERS, "model_ema.")) for name in names)


def with_one_unet(tensors: Mapping[str, Tensor], model: LatentDiffusion, use_ema: bool | None) -> dict[str, Tensor]:
    """Without one of the two copies of the UNet that a training leaves: the averaged (EMA) one and the plain one.

    use_ema: which to keep; None keeps the plain one if it is there. ValueError if the file has not what is wanted.
    """
    averaged = any(name.startswith(EMA) for name in tensors)
    plain = any(name.startswith(PREFIXES["unet"]) for name in tensors)
    use_ema = averaged and not plain if use_ema is None else use_ema
    if use_ema and not averaged:
        raise ValueError("holds no EMA weights; leave use_ema out")
    if averaged and not plain and not use_ema:
        raise ValueError("holds EMA weights only; leave use_ema out")
    if not use_ema:
        return {name: tensor for name, tensor in tensors.items() if not name.startswith("model_ema.")}
    names = keys.to_original(model.unet.state_dict(), model.unet)
    plain_names = {f"{EMA}{name.replace('.', '')}": f"{PREFIXES['unet']}{name}" for name in names}
    return {
        plain_names.get(name, name): tensor for name, tensor in tensors.items() if not name.startswith(PREFIXES["unet"])
    }


def to_internal(tensors: Mapping[str, Tensor], model: LatentDiffusion) -> dict[str, Tensor]:
    """An original file's tensors -> the names of `model`. Unknown names are kept, for a strict load to report.

    Names without a dot are constants of the noise schedule, which the config tells; they are dropped.
    """
    parts: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in (*PREFIXES.values(), *SDXL_TOWERS)}
    out = _image_parts(tensors, model) | _depth_part(tensors, model)
    for name, tensor in tensors.items():
        prefix = next((prefix for prefix in parts if name.startswith(prefix)), None)
        if name.startswith(NOT_LOADED) or "." not in name:
            continue
        if prefix is None:
            out[name] = tensor
        else:
            parts[prefix][name[len(prefix) :]] = tensor
    towers = [parts[prefix] for prefix in (PREFIXES["text_encoder"], *SDXL_TOWERS) if parts[prefix]]
    renamed = {
        "unet": keys.to_internal(parts[PREFIXES["unet"]], model.unet),
        "autoencoder": keys.to_internal(parts[PREFIXES["autoencoder"]], model.autoencoder),
        "text_encoder": text_keys.towers_to_memory(towers, model.text_encoder),
    }
    return out | {f"{part}.{name}": tensor for part, names in renamed.items() for name, tensor in names.items()}


def left_over(tensors: Mapping[str, Tensor], model: LatentDiffusion) -> dict[str, Tensor]:
    """What `to_internal` drops of a file, under the file's own names."""
    known, towers = to_original(model), (PREFIXES["text_encoder"], *SDXL_TOWERS)

    def is_dropped(name: str) -> bool:
        prefix = next((prefix for prefix in towers if name.startswith(prefix)), None)
        if prefix is None:
            return name.startswith(NOT_LOADED) or "." not in name
        return not text_keys.towers_to_memory([{name[len(prefix) :]: tensors[name]}], model.text_encoder)

    return {name: tensor for name, tensor in tensors.items() if name not in known and is_dropped(name)}


def _image_parts(tensors: Mapping[str, Tensor], model: LatentDiffusion) -> dict[str, Tensor]:
    """Of unCLIP, where the model has them: the image tower, and the embeddings' statistics, which are 0 and 1 in
    families that measured none."""
    if model.image_encoder is None or model.image_augmentation is None:
        return {}
    out = {
        f"image_encoder.tower.{k.removeprefix(IMAGE_TOWER)}": v for k, v in tensors.items() if k.startswith(IMAGE_TOWER)
    }
    out |= {ours: tensors[theirs] for theirs, ours in STATISTICS.items() if theirs in tensors}
    if not model.image_augmentation.measured:
        width = model.image_augmentation.width
        none = (torch.zeros(1, width), torch.ones(1, width))
        out = dict(zip(STATISTICS.values(), none, strict=True)) | out
    return out


def _depth_part(tensors: Mapping[str, Tensor], model: LatentDiffusion) -> dict[str, Tensor]:
    if model.depth_estimator is None:
        return {}
    named = {name.removeprefix(DEPTH): tensor for name, tensor in tensors.items() if name.startswith(DEPTH)}
    renamed = depth_keys.from_original(named, model.depth_estimator)
    return {f"depth_estimator.{name}": tensor for name, tensor in renamed.items()}


def to_original(model: LatentDiffusion) -> dict[str, Tensor]:
    """The inverse: every weight of a model under the name it has in the published file of its family.

    Left out is what `left_over` gives: the schedules' constants, a second copy of the UNet, `position_ids`, CLIP's
    temperature, mask and unused projection, the unused end of the depth estimator's ViT. The original programs make or
    ignore them.
    """
    renamed = {
        "unet": keys.to_original(model.unet.state_dict(), model.unet),
        "autoencoder": keys.to_original(model.autoencoder.state_dict(), model.autoencoder),
    }
    named = {f"{PREFIXES[part]}{name}": tensor for part, names in renamed.items() for name, tensor in names.items()}
    if model.depth_estimator is not None:
        named |= {f"{DEPTH}{name}": tensor for name, tensor in depth_keys.to_original(model.depth_estimator).items()}
    return named | _original_text(model.text_encoder) | _original_image_parts(model)


def _original_text(encoder: TextEncoder) -> dict[str, Tensor]:
    """sgm's models keep their towers elsewhere than those of CompVis: SDXL's, one of which makes a pooled vector."""
    if isinstance(encoder, TwoTowers):
        towers = zip(SDXL_TOWERS, (encoder.first, encoder.second), strict=True)
        return {name: tensor for prefix, tower in towers for name, tensor in _original_tower(tower, prefix).items()}
    if isinstance(encoder, OpenCLIPTextEncoder):
        pooled = encoder.tower.text_projection is not None
        return _original_tower(encoder, SDXL_TOWERS[0] if pooled else PREFIXES["text_encoder"])
    tensors = bert_keys.to_original(encoder) if isinstance(encoder, BertTextEncoder) else encoder.state_dict()
    return {f"{PREFIXES['text_encoder']}{name}": tensor for name, tensor in tensors.items()}


def _original_tower(encoder: OpenCLIPTextEncoder, prefix: str) -> dict[str, Tensor]:
    """CLIP-L came from Hugging Face, which pads with the end of the text, and has its names; the others open_clip's."""
    tensors = text_keys.towers(encoder)[0]
    if encoder.pad_id == END:
        return {f"{prefix}transformer.{k}": v for k, v in text_keys.to_hugging_face(tensors).items()}
    return {f"{prefix}model.{k}": v for k, v in tensors.items()}


def _original_image_parts(model: LatentDiffusion) -> dict[str, Tensor]:
    if model.image_encoder is None or model.image_augmentation is None:
        return {}
    tower = {f"{IMAGE_TOWER}{k}": v for k, v in model.image_encoder.tower.state_dict().items()}
    return tower | {f"noise_augmentor.{k}": v for k, v in model.image_augmentation.state_dict().items()}
