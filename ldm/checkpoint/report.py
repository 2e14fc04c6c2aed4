"""What a file of weights holds, as a report: nothing fails for being unusual."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

from ldm.checkpoint import configs, load
from ldm.checkpoint.configs import IN_SOME_FILES, holds, shipped_configs
from ldm.checkpoint.detect import FAMILIES, Family, parts, signature
from ldm.checkpoint.diffusers_folder import read_any
from ldm.checkpoint.fit import check_fit, is_finite
from ldm.checkpoint.layouts import unwrapped
from ldm.checkpoint.read import Weights
from ldm.checkpoint.single_file import is_original
from ldm.config import ConfigError, load_config, parse_config


def report(path: str | Path, variant: str | None = None, *, ask: bool = True) -> dict[str, Any]:
    """A JSON-ready report; CheckpointError if the path cannot be read at all. `sha256` is None for a folder.

    ask: where nothing tells whether an SD 2 network predicts eps or v, it is asked, as `load` does: the one thing for
    which a model gets its weights, in float32.
    """
    path = Path(path)
    weights = read_any(path, variant)
    tensors = unwrapped(weights.tensors)
    found, there = signature(tensors), parts(tensors)
    family = FAMILIES.get(found) if found else None
    averaged = there.pop("unet (EMA)")
    plain = there["unet"]
    parameterization, told_by = _parameterization(Weights(tensors, weights.metadata), path, variant, ask)
    there["unet"] = plain or averaged
    return {
        "path": str(path),
        "sha256": _sha256(path) if path.is_file() else None,
        "layout": "original" if is_original(tensors) else "diffusers folder" if path.is_dir() else "ldm",
        "family": str(found) if found else "no UNet",
        "configs": _configs(family, parameterization) if family else [],
        "carries a config": "config" in weights.metadata,
        "parameterization": parameterization,
        "told by": told_by,
        "holds": [part for part, is_there in there.items() if is_there]
        + [some[0].replace("_", " ") for some, marks in IN_SOME_FILES.items() if holds(tensors, marks)],
        "lacks": [part for part, is_there in there.items() if not is_there],
        "misfit": _misfit(path, variant) if family or "config" in weights.metadata else None,
        "ema": averaged,
        "unet by default": "EMA" if averaged and not plain else "plain" if plain else None,
        "tensors": len(tensors),
        "numbers": sum(tensor.numel() for tensor in tensors.values()),
        "dtypes": dict(Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())),
        "non-finite": [
            name for name, tensor in tensors.items() if not name.endswith("attn_mask") and not is_finite(tensor)
        ],
    }


def _parameterization(weights: Weights, path: Path, variant: str | None, ask: bool) -> tuple[str | None, str | None]:
    """What the UNet predicts, None where nothing tells, or nothing legible; and what told, or why nothing did."""
    if "config" in weights.metadata:
        try:
            params = parse_config(weights.metadata["config"], "its config").get("params")
        except ConfigError:
            params = None
        if isinstance(params, dict) and params.get("parameterization"):
            return params["parameterization"], "the config it carries"
    if "parameterization" in weights.metadata:
        return weights.metadata["parameterization"], "its scheduler" if path.is_dir() else "a mark in it"
    found = signature(weights.tensors)
    if found not in FAMILIES or "config" in weights.metadata:
        return None, None
    if not load.is_untold(weights):
        return _of_family(FAMILIES[found].configs[0]), "its family"
    if not ask:
        return None, "nothing, and the network was not asked (--no-probe)"
    try:
        said, sentence = load.ask(path, variant=variant)
    except ValueError as error:
        return None, f"nothing, and the network could not be asked: {error}"
    return said, f"the network: {sentence.partition('; ')[2]}"


def _configs(family: Family, parameterization: str | None) -> list[str]:
    """Those of the family that say what the UNet predicts; all where that is not known."""
    fitting = [name for name in family.configs if parameterization in (None, _of_family(name))]
    return fitting or list(family.configs)


def _misfit(path: Path, variant: str | None) -> list[str]:
    """The sentence with which `load` refuses the file's names and shapes, if it does."""
    try:
        model, tensors, _, source, _ = load.skeleton(path, variant=variant)
        check_fit(model, tensors, path, source)
    except ValueError as error:
        return [str(error)]
    return []


def _of_family(config: str) -> str | None:
    if config not in shipped_configs():
        return None
    said: str = load_config(configs.CONFIGS / f"{config}.yaml")["params"].get("parameterization", "eps")
    return said


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
