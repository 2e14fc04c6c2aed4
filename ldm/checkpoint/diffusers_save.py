"""A model -> a diffusers folder, which the `diffusers` library loads without a network, and `load` reads back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoint import bert_keys, diffusers_bert, diffusers_pictures, text_keys
from ldm.checkpoint.diffusers_config import autoencoder_part, configs, layers, text_encoders
from ldm.checkpoint.fit import stored
from ldm.checkpoint.write import write
from ldm.files import atomic_folder, write_text
from ldm.models.bert import BertTextEncoder
from ldm.models.clip import END, vocabulary
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.models.text_encoder import OpenCLIPTextEncoder

DIFFUSERS = ("unet", "vae", "vqvae", "image_normalizer")  # that library names their files; transformers says "model"
SPECIAL = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}  # open_clip's name: Hugging Face's


def save_folder(
    model: LatentDiffusion, tree: Mapping[str, Any], out: Path, path: Path, dtype: torch.dtype | None = None
) -> None:
    """Write the folder atomically: components, their configs, tokenizers, schedulers and model_index.json.

    tree: the config the model was built from. path: the weights' origin, for errors. dtype: None keeps each tensor's.
    Not written are networks that a pipeline has and the model has not, such as a safety checker.
    """
    with atomic_folder(out) as folder:
        save_configs(model, tree, folder)
        for part, tensors in to_diffusers(model).items():
            file = folder / part / f"{'diffusion_pytorch_model' if part in DIFFUSERS else 'model'}.safetensors"
            write(file, stored(tensors, path, dtype), {"format": "pt"})


def save_configs(model: LatentDiffusion, tree: Mapping[str, Any], folder: Path) -> None:
    """All but the weights, into a folder that is there; the model may be on the meta device."""
    for name, contents in configs(tree, model).items():
        _write(folder / name, json.dumps(contents, indent=2))
    for part, tower in text_encoders(model.text_encoder).items():
        for name, text in tokenizer_files(tower).items():
            _write(folder / part.replace("text_encoder", "tokenizer") / name, text)
    if isinstance(model.text_encoder, BertTextEncoder):
        for name, text in diffusers_bert.tokenizer_files(model.text_encoder).items():
            _write(folder / "tokenizer" / name, text)


def to_diffusers(model: LatentDiffusion) -> dict[str, dict[str, Tensor]]:
    """Each component's tensors under the names that its library gives them."""
    unet = model.unet.state_dict()
    if model.framing_embedding is None:  # unCLIP's embedding of two layers; SDXL's has our name
        unet = {name.replace("add_embedding.linear_", "class_embedding.linear_"): t for name, t in unet.items()}
    parts = {"unet": unet}
    autoencoder = autoencoder_part(model)
    if autoencoder is not None:
        parts[autoencoder] = model.autoencoder.state_dict()
    if isinstance(model.text_encoder, BertTextEncoder):
        parts["bert"] = bert_keys.to_diffusers(model.text_encoder)
    for part, tower in text_encoders(model.text_encoder).items():
        unused = tuple(
            f"transformer.resblocks.{i}." for i in range(layers(tower), len(tower.tower.transformer.resblocks))
        )
        used = {k: v for k, v in text_keys.towers(tower)[0].items() if not k.startswith(unused)}
        parts[part] = text_keys.to_hugging_face(used)
    return parts | diffusers_pictures.to_diffusers(model)


def tokenizer_files(tower: OpenCLIPTextEncoder) -> dict[str, str]:
    """What `CLIPTokenizer` reads, by name of the file."""
    ids, merges = vocabulary()
    start, end = SPECIAL.values()
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": tower.context_length,
        "bos_token": start,
        "eos_token": end,
        "unk_token": end,
        "pad_token": end if tower.pad_id == END else next(name for name, i in ids.items() if i == tower.pad_id),
    }
    special = {name: token for name, token in config.items() if str(name).endswith("_token")}
    return {
        "vocab.json": json.dumps({SPECIAL.get(name, name): i for name, i in ids.items()}, ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges), ""]),
        "tokenizer_config.json": json.dumps(config, indent=2),
        "special_tokens_map.json": json.dumps(special, indent=2),
    }


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(exist_ok=True)
    write_text(file, text)
