"""A diffusers folder -> tensors by name: `unet/`, `vae/`, `text_encoder/` beside a model_index.json, or one of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.checkpoint import diffusers_pictures, pixel_config, text_keys
from ldm.checkpoint.detect import FAMILIES, signature
from ldm.checkpoint.pixel_config import PREDICTIONS
from ldm.checkpoint.read import CheckpointError, Weights, read
from ldm.models.bert import BertTextEncoder
from ldm.models.latent_diffusion import LatentDiffusion

PREFIXES = {  # of a folder's parts, in memory
    "unet": "unet.",
    "vae": "autoencoder.",
    "vqvae": "autoencoder.",
    "text_encoder": "text_encoder.",
    "text_encoder_2": "text_encoder_2.",
    "bert": "text_encoder.",
    "image_encoder": "image_encoder.",
    "image_normalizer": "image_augmentation.",
    "depth_estimator": "depth_estimator.",
}
PART_OF_CLASS = {  # `_class_name` or `architectures` of a component's config.json
    "UNet2DConditionModel": "unet",
    "UNet2DModel": "unet",
    "AutoencoderKL": "vae",
    "VQModel": "vqvae",
    "CLIPTextModel": "text_encoder",
    "CLIPTextModelWithProjection": "text_encoder",
    "LDMBertModel": "bert",
}
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
MARKS = {"v_pred": ("parameterization", "v"), "ztsnr": ("zero_terminal_snr", "True")}  # empty tensors in files of SDXL
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # before 2023-05


def read_any(path: str | Path, variant: str | None = None, *, verify: bool = True) -> Weights:
    """A file or a diffusers folder, as it is, but for marks: they become metadata as a folder's scheduler does.

    verify: as in `read`; a folder has no checksums.
    """
    if Path(path).is_dir():
        return read_folder(Path(path), variant)
    weights = read(path, verify=verify)
    told = dict(told for mark, told in MARKS.items() if mark in weights.tensors)
    return Weights({k: v for k, v in weights.tensors.items() if k not in MARKS}, told | weights.metadata)


def read_folder(path: Path, variant: str | None = None) -> Weights:
    """Every part's tensors, as they are named there behind the part's prefix in memory.

    variant: "fp16" takes `….fp16.safetensors`; None the plain files, or those where there are no others.
    `metadata["parameterization"]` is what the folder's scheduler says, if it has one, and "zero_terminal_snr" is there
    where it says so; "config" is there for a model in pixel space, whose files describe it whole.
    """
    has_index = (path / "model_index.json").is_file()
    folders = {part: path / part for part in PREFIXES if has_index and (path / part).is_dir()}
    folders = folders or {_part(path): path}  # DDPM's, of 2022, have a model_index.json and the one part beside it
    tensors: dict[str, Tensor] = {}
    for part, folder in folders.items():
        for file in _files(folder, variant):
            tensors |= {f"{PREFIXES[part]}{name}": tensor for name, tensor in read(file).tensors.items()}
    scheduler = _scheduler(path)
    prediction = None if scheduler is None else scheduler.get("prediction_type", "epsilon")
    metadata = {"parameterization": PREDICTIONS[prediction]} if prediction in PREDICTIONS else {}
    if scheduler is not None and scheduler.get("rescale_betas_zero_snr") is True:
        metadata["zero_terminal_snr"] = "True"
    if set(folders) == {"unet"} and _is_pixel_space(folders["unet"], tensors):
        try:
            config = pixel_config.translate(_json(folders["unet"] / "config.json"), scheduler or {})
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from error
        metadata["config"] = json.dumps(config)
    return Weights(tensors, metadata)


def _scheduler(path: Path) -> dict[str, Any] | None:
    """The scheduler's config of a whole folder, or of one of its parts that stands alone."""
    files = (path / "scheduler" / "scheduler_config.json", path / "scheduler_config.json")
    return next((_json(file) for file in files if file.is_file()), None)


def _is_pixel_space(unet: Path, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a folder without an autoencoder is of a kind that has none, not a part of a latent diffusion model."""
    file, found = unet / "config.json", signature(tensors)
    is_plain = file.is_file() and _json(file).get("_class_name") == "UNet2DModel"
    return is_plain and (found not in FAMILIES or FAMILIES[found].configs == ("ddpm-cat-256",))


def _part(folder: Path) -> str:
    """Which component a folder without a model_index.json is."""
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} is a folder with neither model_index.json nor config.json; "
            "give a diffusers folder, or the path of a .safetensors or .ckpt file"
        )
    config = _json(folder / "config.json")
    names = [config.get("_class_name"), *(config.get("architectures") or [])]
    part = next((PART_OF_CLASS[name] for name in names if isinstance(name, str) and name in PART_OF_CLASS), None)
    if part is None:
        known = ", ".join(PART_OF_CLASS)
        raise CheckpointError(f"{folder}: its config.json is of {names[0] or names[1:]}; expected one of {known}")
    return part


def _files(folder: Path, variant: str | None) -> list[Path]:
    """The one file, or the shards of an index; safetensors before pickles."""
    for name in (None, "fp16") if variant is None else (variant,):
        dotted = "" if name is None else f".{name}"
        for kind in ("safetensors", "bin"):
            for stem in STEMS:
                if (folder / f"{stem}{dotted}.{kind}").is_file():
                    return [folder / f"{stem}{dotted}.{kind}"]
                if (folder / f"{stem}.{kind}.index{dotted}.json").is_file():
                    return _shards(folder / f"{stem}.{kind}.index{dotted}.json")
    wanted = "" if variant is None else f" of variant {variant!r}"
    there = ", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "nothing"
    raise CheckpointError(
        f"{folder}: holds no weights{wanted}, but {there}; expected {STEMS[0]}.safetensors or {STEMS[1]}.safetensors"
    )


def _shards(index: Path) -> list[Path]:
    """Its `weight_map` gives each tensor's file, which must lie beside it."""
    weight_map = _json(index).get("weight_map")
    if not isinstance(weight_map, Mapping) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index}: has no weight_map from tensors to files; get it again")
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name or not (index.parent / name).is_file():
            raise CheckpointError(f"{index}: the shard {name!r} is not beside it; get all {len(names)} shards")
    return [index.parent / name for name in names]


def _json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error}); get it again") from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path}: holds a JSON {type(tree).__name__}; expected an object")
    return tree


# --- names -------------------------------------------------------------------------------------------------------


def to_internal(tensors: Mapping[str, Tensor], model: LatentDiffusion) -> dict[str, Tensor]:
    """A folder's tensors, or those of a file with names in memory, -> the names of `model`. Unknown ones are kept."""
    text: dict[str, dict[str, Tensor]] = {}
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part.startswith("text_encoder"):
            text.setdefault(part, {})[rest] = tensor
        elif part not in diffusers_pictures.PARTS:
            out[_modern(name)] = tensor
    towers = [text[part] for part in sorted(text)]  # SDXL's refiner has text_encoder_2 only
    foreign = any(text_keys.is_hugging_face(name) for tower in towers for name in tower)
    if foreign or isinstance(model.text_encoder, BertTextEncoder):
        towers = [text_keys.towers_to_memory(towers, model.text_encoder)]
    out |= diffusers_pictures.to_internal(tensors, model)
    return out | {f"text_encoder.{name}": tensor for tower in towers for name, tensor in tower.items()}


def _modern(name: str) -> str:
    """Today's name of a tensor; the class embedding of unCLIP, of two layers, is called after SDXL's here."""
    old = re.fullmatch(r"(.+\.attentions\.\d+\.)(query|key|value|proj_attn)\.(weight|bias)", name)
    if old:
        return f"{old[1]}{OLD_ATTENTION[old[2]]}.{old[3]}"
    return name.replace("unet.class_embedding.linear_", "unet.add_embedding.linear_")
