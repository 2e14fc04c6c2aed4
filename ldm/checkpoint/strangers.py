"""Files of weights that are no model of this family, nor a part of one: what they are, and what to do with them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from ldm.checkpoint.detect import FAMILIES, parts

LORA = re.compile(r"^lora_|[._]lora[._](?:up|down|A|B)\b|\.(?:hada|lokr)_w")
READS_TEXT = re.compile(r"attn2.(?:processor.)?to_k.*(?:down|lora_A)\b")
EMBEDDING = re.compile(r"^(?:emb_params$|string_to_param\.|clip_[lg]$|<[^<>]+>$)")
TRANSFORMERS = {"joint_blocks.": "Stable Diffusion 3", "double_blocks.": "Flux", "single_transformer_blocks.": "Flux"}
ALONE = {
    "autoencoder": "an autoencoder alone; give a whole model, and this as its autoencoder (--vae)",
    "text encoder": "a text encoder alone; give a whole model, and this as its text encoder (--text-encoder)",
}


def stranger(tensors: Mapping[str, Tensor]) -> str | None:
    """What tensors are that are no weights of a model, and the remedy; None for what may be a model, or a part."""
    count = sum(bool(LORA.search(name)) for name in tensors)
    if count > len(tensors) / 2:
        widths = {tensor.shape[1] for name, tensor in tensors.items() if READS_TEXT.search(name) and tensor.ndim > 1}
        return (
            f"a LoRA{_made_for(max(widths, default=0))}: {count} of its {len(tensors)} tensors are changes to another "
            "file's, and 0 are weights of a model; merge it into its model with another program, and give the result"
        )
    if all(EMBEDDING.match(name) for name in tensors):
        width = sum(tensor.shape[-1] for tensor in tensors.values() if tensor.ndim)
        return (
            f"a textual-inversion embedding{_made_for(width)}: 0 of its {len(tensors)} tensors are weights of a model; "
            "embeddings are not read here: leave it out"
        )
    for mark, family in TRANSFORMERS.items():
        if any(mark in name for name in tensors):
            return (
                f"a model of {family}, whose network is a transformer ({len(tensors)} tensors); "
                "give one of Stable Diffusion 1, 2 or XL, or of latent diffusion"
            )
    return None


def lone_part(tensors: Mapping[str, Tensor]) -> str | None:
    """What unwrapped tensors are that are one part of a model and not its network, and the remedy."""
    there = [part for part, is_there in parts(tensors).items() if is_there]
    return ALONE.get(there[0]) if len(there) == 1 else None


def _made_for(width: int) -> str:
    """The family whose networks take text of this width."""
    title = next((family.title for found, family in FAMILIES.items() if found.context == width > 0), None)
    return "" if title is None else f" for {title} (context {width})"
