"""What a file of weights holds, as a report: nothing is built, and nothing fails for being unusual."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.checkpoint.detect import FAMILIES, parts, signature
from ldm.checkpoint.diffusers_folder import read_any
from ldm.checkpoint.fit import is_finite
from ldm.checkpoint.layouts import unwrapped
from ldm.checkpoint.single_file import is_original
from ldm.config import ConfigError, parse_config


def report(path: str | Path, variant: str | None = None) -> dict[str, Any]:
    """A JSON-ready report; CheckpointError if the path cannot be read at all. `sha256` is None for a folder."""
    path = Path(path)
    weights = read_any(path, variant)
    tensors = unwrapped(weights.tensors)
    found, there = signature(tensors), parts(tensors)
    family = FAMILIES.get(found) if found else None
    averaged = there.pop("unet (EMA)")
    plain = there["unet"]
    there["unet"] = plain or averaged
    return {
        "path": str(path),
        "sha256": _sha256(path) if path.is_file() else None,
        "layout": "original" if is_original(tensors) else "diffusers folder" if path.is_dir() else "ldm",
        "family": str(found) if found else "no UNet",
        "configs": list(family.configs) if family else [],
        "carries a config": "config" in weights.metadata,
        "parameterization": _parameterization(weights.metadata),
        "holds": [part for part, is_there in there.items() if is_there],
        "lacks": [part for part, is_there in there.items() if not is_there],
        "ema": averaged,
        "unet by default": "EMA" if averaged and not plain else "plain" if plain else None,
        "tensors": len(tensors),
        "numbers": sum(tensor.numel() for tensor in tensors.values()),
        "dtypes": dict(Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())),
        "non-finite": [
            name for name, tensor in tensors.items() if not name.endswith("attn_mask") and not is_finite(tensor)
        ],
    }


def _parameterization(metadata: Mapping[str, str]) -> str | None:
    """What a folder's scheduler, or the config in a file, says; None where nothing does, or nothing legible."""
    try:
        config = parse_config(metadata["config"], "its config") if "config" in metadata else {}
    except ConfigError:
        config = {}
    params = config.get("params")
    said = params.get("parameterization") if isinstance(params, dict) else None
    return metadata.get("parameterization") or said


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
