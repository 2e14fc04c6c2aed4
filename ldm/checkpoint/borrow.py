"""Parts from another file: the one that was named, or a shipped model, so that a variant of it need not carry them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ldm.checkpoint.read import CheckpointError

KEY = "borrows"  # in a file's metadata: part -> [the shipped model's name, the digest of that part's tensors]


def digest(tensors: Mapping[str, Tensor], part: str) -> str:
    """Of a part's names and values in float16, as shipped files hold them."""
    hashed = hashlib.blake2b(digest_size=16)
    for name in sorted(name for name in tensors if name.startswith(f"{part}.")):
        value = tensors[name].detach().to("cpu", torch.float16).contiguous()
        hashed.update(name.encode() + value.numpy().tobytes())
    return hashed.hexdigest()


def note(tensors: Mapping[str, Tensor], borrows: Mapping[str, str]) -> dict[str, str]:
    """The metadata of a file without the parts in `borrows`: part -> shipped model."""
    return {KEY: json.dumps({part: [name, digest(tensors, part)] for part, name in borrows.items()})} if borrows else {}


def borrowed(metadata: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Part -> (shipped model, digest), as `note` wrote it. ValueError for anything else."""
    try:
        found = json.loads(metadata.get(KEY, "{}"))
        return {str(part): (str(name), str(code)) for part, (name, code) in found.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"its note on borrowed parts is not one of ours ({error})") from error


def with_part(tensors: Mapping[str, Tensor], part: str, others: Mapping[str, Tensor], other: Path) -> dict[str, Tensor]:
    """The tensors of one part replaced by those of the file `other`. CheckpointError if there are none in it."""
    taken = {name: tensor for name, tensor in others.items() if name.startswith(f"{part}.")}
    if not taken:
        raise CheckpointError(
            f"{other}: none of its {len(others)} tensors is of the {part.replace('_', ' ')}; give a file that holds one"
        )
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{part}.")} | taken
