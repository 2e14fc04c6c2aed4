"""Trained parts to begin with: from a file of the part alone, or out of a whole model's ("scenes")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.checkpoint.fit import fill
from ldm.checkpoint.load import weights_path
from ldm.checkpoint.read import read
from ldm.config import parse_config


def fill_part(module: nn.Module, file: str, part: str = "") -> None:
    """Give `module` the weights in `file`, or those of the model's part in it."""
    fill(module, part_tensors(file, part), weights_path(file), "this experiment")


def fill_unet(unet: nn.Module, file: str) -> None:
    """As `fill_part`, from a UNet that is shown less or attends at fewer levels: input channels that it lacks begin as
    zeros, and a noise level's embedding and attention as they are, of which the latter adds nothing untrained."""
    own, tensors = unet.state_dict(), part_tensors(file, "unet")
    lacking = own["conv_in.weight"].shape[1] - tensors["conv_in.weight"].shape[1]
    if lacking > 0:
        tensors["conv_in.weight"] = F.pad(tensors["conv_in.weight"], (0, 0, 0, 0, 0, lacking))
    new = {name: tensor for name, tensor in own.items() if _may_be_new(name, tensors)}
    fill(unet, new | tensors, weights_path(file), "this experiment")


def _may_be_new(name: str, known: Mapping[str, Tensor]) -> bool:
    block, attends, _ = name.partition(".attentions.")
    is_new_level = bool(attends) and not any(other.startswith(block + attends) for other in known)
    return name.startswith("class_embedding.") or is_new_level


def part_tensors(file: str, part: str) -> dict[str, Tensor]:
    tensors, prefix = read(weights_path(file)).tensors, f"{part}."
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
