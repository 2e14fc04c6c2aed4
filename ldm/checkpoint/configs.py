"""Which config describes a file of weights: the one given, the one in it, or its family's; fitted to what it holds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.checkpoint import depth_keys, single_file
from ldm.checkpoint.detect import FAMILIES, signature
from ldm.checkpoint.meta import on_meta
from ldm.checkpoint.original_config import translate
from ldm.checkpoint.read import Weights
from ldm.config import ConfigError, build, check, load_config, parse_config
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.models.text_encoder import OpenCLIPTextEncoder

PACKAGE = Path(__file__).parents[1]
CONFIGS = next(
    (folder for folder in (PACKAGE / "configs", PACKAGE.parent / "configs") if folder.is_dir()), PACKAGE / "configs"
)
DEPTHS = ("depth_estimator.", single_file.DEPTH)  # before the estimator's tensors, in any layout
IN_SOME_FILES = {  # parts that a family's files may lack: what tensors' names in the others begin with
    ("image_encoder", "image_augmentation"): ("image_encoder.", "embedder.model.visual."),
    ("depth_estimator",): tuple(f"{prefix}{name}" for prefix in DEPTHS for name in depth_keys.PROOFS),
}
HUGGING_FACE_LAYER = re.compile(r"text_encoder\.(?:text_model\.)?encoder\.layers\.(\d+)\.")


def find_config(
    weights: Weights,
    path: Path,
    config: str | Path | Mapping[str, Any] | None = None,
    parameterization: str | None = None,
) -> tuple[Mapping[str, Any], str]:
    """The tree of the given config, of the one in the file, or of the file's family; and what to call it in errors."""
    wanted = parameterization or weights.metadata.get("parameterization")
    if config is not None:
        tree, source = _config_tree(config)
    elif "config" in weights.metadata:
        tree, source = carried_config(weights, path)
    else:
        tree, source = _config_tree(_family_config(weights, path, wanted))
        tree = _as_told(tree, weights.metadata)
    if parameterization is not None:
        tree = {**tree, "params": {**tree.get("params", {}), "parameterization": parameterization}}
    return without_absent_tower(_with_measured_scale(tree, weights), weights.tensors), source


def _as_told(tree: Mapping[str, Any], about: Mapping[str, str]) -> Mapping[str, Any]:
    """The family's config but for what a folder's scheduler, or a file's marks, say. That they say eps tells nothing:
    it is what a scheduler is taken for that does not say."""
    params = dict(tree["params"])
    if about.get("parameterization", "eps") != "eps":
        params["parameterization"] = about["parameterization"]
    if about.get("zero_terminal_snr") == "True" and params.get("parameterization", "eps") != "eps":
        schedule = params["schedule"]
        params["schedule"] = {**schedule, "params": {**(schedule.get("params") or {}), "zero_terminal_snr": True}}
    return {**tree, "params": params}


def _with_measured_scale(tree: Mapping[str, Any], weights: Weights) -> Mapping[str, Any]:
    """Models of 2022 trained with `scale_by_std` carry the scale they measured, and nothing else tells it."""
    if "scale_factor" not in weights.tensors or "autoencoder" not in tree.get("params", {}):
        return tree
    tree = deepcopy(dict(tree))
    params = tree["params"]["autoencoder"].setdefault("params", {})
    params["scaling_factor"] = float(weights.tensors["scale_factor"])
    return tree


def with_cut_tower(tree: Mapping[str, Any], weights: Weights, source: str) -> Mapping[str, Any]:
    """SD 2's diffusers folders lack the last layer of the text encoder, whose states no picture ever saw."""
    check(tree, source, expected=LatentDiffusion)
    node = tree["params"]["text_encoder"]
    params = node.get("params") or {}
    found = len({match[1] for match in map(HUGGING_FACE_LAYER.match, weights.tensors) if match})
    if not found or params.get("layer") != "penultimate" or params.get("projection_dim") is not None:
        return tree
    with on_meta():
        whole = build(node, source)
    if not isinstance(whole, OpenCLIPTextEncoder) or found != len(whole.tower.transformer.resblocks) - 1:
        return tree
    cut = {**node, "params": {**params, "layers": found, "layer": "last"}}
    return {**tree, "params": {**tree["params"], "text_encoder": cut}}


def without_absent_tower(tree: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Mapping[str, Any]:
    """Without the networks that look at pictures, where the file has none: unCLIP's tower, which only `variations`
    needs, and what estimates depth, in whose place it can be given."""
    absent = [part for parts, marks in IN_SOME_FILES.items() for part in parts if not holds(tensors, marks)]
    if not set(absent) & set(tree.get("params", {})):
        return tree
    return {**tree, "params": {k: v for k, v in tree["params"].items() if k not in absent}}


def holds(tensors: Mapping[str, Tensor], marks: tuple[str, ...]) -> bool:
    """Whether a tensor's name begins with one of the marks."""
    return any(name.startswith(marks) for name in tensors)


def _family_config(weights: Weights, path: Path, parameterization: str | None) -> str:
    """The name of the config of the family that the weights are of; among several, the one of this parameterization."""
    found = signature(weights.tensors)
    family = FAMILIES.get(found) if found else None
    if family is None:
        what = f"is {found}" if found else "holds no UNet"
        raise ConfigError(f"{path}: this file {what} and carries no config; give one: {_choices()}")
    names = [name for name in family.configs if name in shipped_configs()]
    if not names:
        raise ConfigError(f"{path}: this file is {found}, for which there is no config yet; give one: {_choices()}")
    said = {name: load_config(CONFIGS / f"{name}.yaml")["params"].get("parameterization", "eps") for name in names}
    return next((name for name in names if said[name] == parameterization), names[0])


def carried_config(weights: Weights, path: Path) -> tuple[Mapping[str, Any], str]:
    """The tree in the file's metadata, and what to call it in errors."""
    if "config" not in weights.metadata:
        raise ConfigError(f"{path} carries no config; give one: {_choices()}")
    source = f"the config in {path.name}"
    return parse_config(weights.metadata["config"], source), source


def _config_tree(config: str | Path | Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """The tree of a given config, and what to call it in errors."""
    if isinstance(config, Mapping):
        return translate(config, "the given config"), "the given config"
    if str(config) in shipped_configs():
        return load_config(CONFIGS / f"{config}.yaml"), f"configs/{config}.yaml"
    if not Path(config).is_file():
        raise ConfigError(f"no config {str(config)!r}; give {_choices()}")
    return translate(load_config(config), str(config)), str(config)


def _choices() -> str:
    return f"{', '.join(shipped_configs())}, or the path of a YAML file"


def shipped_configs() -> list[str]:
    return sorted(file.stem for file in CONFIGS.glob("*.yaml"))
