"""Miniatures of the published families."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ldm.checkpoint.configs import CONFIGS
from ldm.config import load_config


@pytest.fixture(scope="session")
def miniature() -> Callable[[int | str], dict[str, Any]]:
    """The config of a family (a number is SD's) at a fraction of its widths: the same parts, levels and names."""

    def tree(family: int | str) -> dict[str, Any]:
        tree = load_config(CONFIGS / f"{f'sd-v{family}' if isinstance(family, int) else family}.yaml")
        params = tree["params"]
        unet, autoencoder = params["unet"]["params"], params["autoencoder"]["params"]
        unet["block_out_channels"] = [32, 32, 64, 64, 64][: len(unet["block_out_channels"])]
        autoencoder["block_out_channels"] = [32] * len(autoencoder["block_out_channels"])
        if "head_channels" in unet:
            unet["head_channels"] = 16
        if unet.get("transformer_depth") == [1, 2, 10]:
            unet["transformer_depth"] = [1, 1, 2]
        if "num_codes" in autoencoder:
            autoencoder["num_codes"] = 64
        if "framing_embedding" in params:
            params["framing_embedding"]["params"]["dim"] = 8
        if "y_dim" in unet:
            unet["y_dim"] = 16 + 8 * len(params.get("framing_embedding", {"params": {}})["params"].get("numbers", ()))
        small_text(params["text_encoder"])
        if "image_encoder" in params:
            small = {"image_size": 28, "patch_size": 14, "width": 16, "heads": 2, "layers": 2, "projection_dim": 8}
            params["image_encoder"]["params"] = small
            params["image_augmentation"]["params"]["width"] = 8  # of 16 in y, the other half is the level's
        if "depth_estimator" in params:
            small = {"width": 16, "heads": 2, "layers": 4, "hooks": [1, 3], "stem_channels": 8, "features": 8}
            small |= {"stage_depths": [2, 1, 1], "norm_num_groups": 4, "positions": 4}
            params["depth_estimator"]["params"] = small
        if "context_dim" in unet:
            unet["context_dim"] = 32 if params["text_encoder"]["target"] == "TwoTowers" else 16
        return tree

    return tree


@pytest.fixture(scope="session")
def script() -> Callable[[str], ModuleType]:
    """A script as a module, by its name."""

    def load(name: str) -> ModuleType:
        path = Path(__file__).parents[2] / "scripts" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"script_{name}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def small_text(node: dict[str, Any]) -> None:
    params = node.get("params", {})
    if node["target"] == "TwoTowers":
        small_text(params["first"])
        small_text(params["second"])
    elif node["target"] == "ClassEmbedder":
        params["embed_dim"] = 16
    elif "name" in params:
        activation = "quick_gelu" if params.pop("name").endswith("quickgelu") else "gelu"
        params |= {"width": 16, "heads": 2, "layers": 3, "activation": activation}
        if "projection_dim" in params:
            params["projection_dim"] = 16
