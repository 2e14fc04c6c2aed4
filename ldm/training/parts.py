"""Trained parts to begin with: from a file of the part alone, or out of a whole model's ("scenes")."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.checkpoint.fit import fill
from ldm.checkpoint.load import borrowed_parts, weights_path
from ldm.checkpoint.read import read
from ldm.config import parse_config
from ldm.modules.attention import BasicTransformerBlock
from ldm.modules.blocks import zero


def fill_part(module: nn.Module, file: str, part: str = "") -> None:
    """Give `module` the weights in `file`, or those of the model's part in it."""
    fill(module, part_tensors(file, part), weights_path(file), "this experiment")


def fill_unet(unet: nn.Module, file: str) -> None:
    """As `fill_part`, from a UNet that is shown less or attends elsewhere. What it lacks begins as nothing: input
    channels and the ends of new attention as zeros, a noise level's embedding as it is. Attention that `unet` lacks is
    left out."""
    tensors = part_tensors(file, "unet")
    theirs = {_attention(name) for name in tensors}
    for name, block in unet.named_modules():
        if isinstance(block, BasicTransformerBlock) and f"{name}." not in theirs:
            for end in (block.attn1.to_out, block.attn2.to_out, block.ff.net[-1]):
                zero(end)
    own = unet.state_dict()
    ours = {_attention(name) for name in own}
    lacking = own["conv_in.weight"].shape[1] - tensors["conv_in.weight"].shape[1]
    if lacking > 0:
        tensors["conv_in.weight"] = F.pad(tensors["conv_in.weight"], (0, 0, 0, 0, 0, lacking))
    new = {k: v for k, v in own.items() if k.startswith("class_embedding.") or _attention(k) not in theirs}
    known = {k: v for k, v in tensors.items() if _attention(k) in ours}
    fill(unet, new | known, weights_path(file), "this experiment")


def _attention(name: str) -> str:
    """What a tensor of a UNet belongs to, of attentions and the transformer blocks in them; "" if to none."""
    found = re.match(r".*\.attentions\.\d+\.(transformer_blocks\.\d+\.)?", name)
    return found[0] if found else ""


def part_tensors(file: str, part: str) -> dict[str, Tensor]:
    path, prefix = weights_path(file), f"{part}."
    weights = read(path)
    tensors = weights.tensors | borrowed_parts(weights, path)
    inside = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return inside if part and inside else dict(tensors)


def carried_config(file: str, part: str = "") -> dict[str, Any]:
    """The config that came with a file of weights, or that of the model's part in it."""
    config = read(weights_path(file)).metadata.get("config")
    if config is None:
        raise ValueError(f"{file} carries no config; use a file written by this code's training or converting")
    tree = parse_config(config, f"{file} (its config)")
    inside = tree.get("params", {}).get(part) if part else None
    return dict(inside) if isinstance(inside, Mapping) else tree
