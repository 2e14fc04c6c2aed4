"""Tensor names of CLIP's towers: Hugging Face's and Stability's layouts <-> ours, open_clip's under `tower.`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ldm.checkpoint import bert_keys
from ldm.models.bert import BertTextEncoder

Tensors = dict[str, Tensor]

BLOCKS = (  # of either of CLIP's towers: open_clip's names, and Hugging Face's
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".attn.out_proj.", ".self_attn.out_proj."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
)


@dataclass(frozen=True)
class HuggingFaceNames:
    """Of one tower: its blocks lie under `{model}.encoder.layers`. projection: open_clip's tensor, (width, dim), and
    the Linear whose weight, (dim, width), it is in Hugging Face's layout."""

    model: str
    others: tuple[tuple[str, str], ...]
    projection: tuple[str, str]

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        return (*self.others, ("transformer.resblocks.", f"{self.model}.encoder.layers."), *BLOCKS)


PROJECTION = "text_projection"
TEXT = HuggingFaceNames(
    "text_model",
    (
        ("token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
        ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
        ("ln_final.", "text_model.final_layer_norm."),
    ),
    (PROJECTION, PROJECTION),
)
IMAGE = HuggingFaceNames(
    "vision_model",
    (
        ("class_embedding", "vision_model.embeddings.class_embedding"),
        ("positional_embedding", "vision_model.embeddings.position_embedding.weight"),
        ("conv1.", "vision_model.embeddings.patch_embedding."),
        ("ln_pre.", "vision_model.pre_layrnorm."),  # so it is spelled
        ("ln_post.", "vision_model.post_layernorm."),
    ),
    ("proj", "visual_projection"),
)
NOT_WEIGHTS = {"attn_mask", "logit_scale", "text_model.embeddings.position_ids"}  # constants, and CLIP's temperature


def tower_prefixes(encoder: nn.Module) -> tuple[str, ...]:
    """Before the names of each tower in memory, in the order in which files number them: SDXL has two."""
    return ("first.", "second.") if any(k.startswith("second.") for k in encoder.state_dict()) else ("",)


def towers(encoder: nn.Module) -> list[Tensors]:
    """The tensors of each tower of an encoder, named as open_clip does."""
    state = encoder.state_dict()
    prefixes = [f"{prefix}tower." for prefix in tower_prefixes(encoder)]
    return [{k.removeprefix(p): v for k, v in state.items() if k.startswith(p)} for p in prefixes]


def towers_to_memory(files: Sequence[Tensors], encoder: nn.Module) -> Tensors:
    """One dict per tower, as `to_memory` takes it, -> names in `encoder`. A file's tower too many keeps its names."""
    if isinstance(encoder, BertTextEncoder):
        return {name: tensor for tensors in files for name, tensor in bert_keys.to_memory(tensors, encoder).items()}
    prefixes, wanted = tower_prefixes(encoder), encoder.state_dict()
    out: Tensors = {}
    for i, tensors in enumerate(files):
        if i < len(prefixes):
            pooled = f"{prefixes[i]}tower.{PROJECTION}" in wanted
            out |= {f"{prefixes[i]}{name}": value for name, value in to_memory(tensors, pooled).items()}
        else:
            out |= {f"{i}.{name}": value for name, value in tensors.items()}
    return out


def is_hugging_face(name: str) -> bool:
    """Whether a tensor of a text encoder, without the file's own prefix, is named as Hugging Face names it."""
    return name.startswith(("text_model.", "embeddings.", "encoder.layers.", "final_layer_norm."))


def to_memory(tensors: Tensors, keep_projection: bool) -> Tensors:
    """Names of a published text encoder, without the file's own prefix (`cond_stage_model.`, …) -> names in memory.

    Understands `transformer.text_model.…` (SD 1), `text_model.…` and bare `embeddings.…` (Hugging Face), `model.…`
    (SD 2) and a class embedder's `embedding.…`. CLIP's projection serves pooled outputs only; `keep_projection` False
    drops it.
    """
    wrapper = re.compile(r"^(transformer\.(?=text_model|text_projection|embeddings|encoder|final)|model\.)")
    bare = {wrapper.sub("", k): v for k, v in tensors.items()}
    bare = {f"text_model.{k}" if re.match("embeddings|encoder|final", k) else k: v for k, v in bare.items()}
    if "embedding.weight" in bare:
        return bare
    bare = {k: v for k, v in bare.items() if k not in NOT_WEIGHTS}
    if any(key.startswith("text_model.") for key in bare):
        bare = from_hugging_face(bare)
    return {f"tower.{k}": v for k, v in bare.items() if keep_projection or k != PROJECTION}


def from_hugging_face(tensors: Tensors, names: HuggingFaceNames = TEXT) -> Tensors:
    """`CLIPTextModel(WithProjection)` names -> open_clip's: q, k, v become one matrix, the projection is transposed."""
    renamed = dict(tensors)
    for key in tensors:
        match = re.fullmatch(rf"({names.model}\.encoder\.layers\.\d+)\.self_attn\.q_proj\.(weight|bias)", key)
        parts = [f"{match[1]}.self_attn.{name}_proj.{match[2]}" for name in "qkv"] if match else []
        if match and all(part in tensors for part in parts):
            renamed[f"{match[1]}.attn.in_proj_{match[2]}"] = torch.cat([renamed.pop(part) for part in parts])
    ours, theirs = names.projection
    if f"{theirs}.weight" in renamed:
        renamed[ours] = renamed.pop(f"{theirs}.weight").T.contiguous()
    return {_replaced(key, names, reverse=True): value for key, value in renamed.items()}


def to_hugging_face(tensors: Tensors, names: HuggingFaceNames = TEXT) -> Tensors:
    """The inverse: open_clip's names -> `CLIPTextModel(WithProjection)`'s."""
    renamed: Tensors = {}
    for key, value in tensors.items():
        match = re.fullmatch(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)", key)
        if match:
            layer = f"{names.model}.encoder.layers.{match[1]}.self_attn"
            renamed |= {f"{layer}.{name}_proj.{match[2]}": v for name, v in zip("qkv", value.chunk(3), strict=True)}
        elif key == names.projection[0]:
            renamed[f"{names.projection[1]}.weight"] = value.T.contiguous()
        else:
            renamed[_replaced(key, names, reverse=False)] = value
    return renamed


def _replaced(key: str, names: HuggingFaceNames, *, reverse: bool) -> str:
    for ours, theirs in names.pairs:
        key = key.replace(theirs, ours) if reverse else key.replace(ours, theirs)
    return key
