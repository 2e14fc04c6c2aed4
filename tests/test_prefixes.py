"""Every beginning of a file that is cut off somewhere is refused in our own words, which name the file."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save

from ldm.checkpoint.read import CheckpointError, read
from ldm.checkpoint.write import write
from ldm.config import ConfigError, check, load_config
from ldm.images import load_image
from ldm.models import text_encoder as _text_encoder  # noqa: F401  (registers what the config names)
from ldm.png import read_request, text_chunks, write_png

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2, dtype=torch.float16)}


def refused(path: Path, whole: bytes, load: Callable[[Path], object], kind: type[Exception]) -> None:
    path.write_bytes(whole)
    load(path)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(kind) as caught:
            load(path)
        assert type(caught.value) is kind and path.name in str(caught.value), f"{length} bytes: {caught.value!r}"


def test_safetensors(tmp_path: Path) -> None:
    write(tmp_path / "own.safetensors", TENSORS, {"config": "{}"})
    for name, whole in (("own", (tmp_path / "own.safetensors").read_bytes()), ("foreign", save(TENSORS))):
        refused(tmp_path / f"{name}.safetensors", whole, read, CheckpointError)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before torch 1.6"])
def test_torch_checkpoints(tmp_path: Path, is_zip: bool) -> None:
    buffer = io.BytesIO()
    torch.save({"state_dict": {"a": torch.ones(2)}}, buffer, _use_new_zipfile_serialization=is_zip)
    refused(tmp_path / "cut.ckpt", buffer.getvalue(), read, CheckpointError)


def test_pictures(tmp_path: Path) -> None:
    picture = Image.linear_gradient("L").resize((16, 16)).convert("RGB")
    write_png(picture, tmp_path / "whole.png", text_chunks("a cube", {"seed": 1}))
    whole = (tmp_path / "whole.png").read_bytes()
    refused(tmp_path / "cut.png", whole, load_image, ValueError)
    refused(tmp_path / "cut.png", whole, read_request, ValueError)


def test_configs(tmp_path: Path) -> None:
    """The end of this one is a name: a number that lost its last digit would be another number, to anybody."""
    whole = b"params: {width: 16, heads: 2, layers: 1, context_length: 16}\ntarget: OpenCLIPTextEncoder"
    refused(tmp_path / "cut.yaml", whole, lambda path: check(load_config(path), str(path)), ConfigError)
