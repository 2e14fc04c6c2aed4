"""Miniatures of the published families."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ldm.checkpoint.load import CONFIGS
from ldm.config import load_config


@pytest.fixture(scope="session")
def miniature() -> Callable[[int], dict[str, Any]]:
    """The config of SD 1 or 2 at a fraction of its widths: the same parts, levels and names."""

    def tree(version: int) -> dict[str, Any]:
        tree = load_config(CONFIGS / f"sd-v{version}.yaml")
        params = tree["params"]
        params["unet"]["params"] |= {"block_out_channels": [32, 32, 64, 64], "context_dim": 16}
        if version == 2:
            params["unet"]["params"]["head_channels"] = 16
        params["autoencoder"]["params"]["block_out_channels"] = [32, 32, 32, 32]
        del params["text_encoder"]["params"]["name"]
        params["text_encoder"]["params"] |= {"width": 16, "heads": 2, "layers": 3, "activation": "quick_gelu"}
        return tree

    return tree
