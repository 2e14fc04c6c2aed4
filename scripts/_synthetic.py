"""Models of full size whose weights are made of their tensors' names: nothing is downloaded, and a part at a time."""

from __future__ import annotations

import gc
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ldm.checkpoint.configs import CONFIGS
from ldm.checkpoint.meta import on_meta
from ldm.config import build, load_config
from ldm.models.encoders import TextEncoder, TextFeatures
from ldm.models.latent_diffusion import LatentDiffusion

FEW = {"width": 32, "embed_dim": 32, "layers": 3}  # of what encodes text by no tower of open_clip's


def normal(name: str, shape: Sequence[int]) -> Tensor:
    """Standard-normal float32 numbers that depend on the name alone."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(f"0:{name}".encode())))
    return torch.from_numpy(rng.standard_normal(tuple(shape), dtype=np.float32))


def weight(name: str, shape: Sequence[int]) -> Tensor:
    """Fan-in scaled normals for weights, 1 + 0.1 n for gains, 0.1 n for biases."""
    values = normal(name, shape)
    if len(shape) >= 2:
        embedding = "embedding" in name
        return values.mul_((0.5 if embedding else 1.0) / math.sqrt(shape[-1] if embedding else math.prod(shape[1:])))
    return values.mul_(0.1).add_(1 if name.endswith("weight") else 0)


def shrink(tree: dict[str, Any]) -> dict[str, Any]:
    """The same architecture with few channels: levels, depths and kinds of layers stay."""
    params = tree["params"]
    unet, towers = params["unet"]["params"], params["text_encoder"].get("params", {})
    towers = [towers["first"]["params"], towers["second"]["params"]] if "first" in towers else [towers]
    for tower in towers:
        if "name" not in tower:  # classes, BERT's, or nothing
            tower |= {name: few for name, few in FEW.items() if name in tower}
            continue
        quick = tower.pop("name").endswith("quickgelu")
        tower |= {"width": 32, "heads": 2, "layers": 3, "activation": "quick_gelu" if quick else "gelu"}
        tower |= {"projection_dim": 24} if "projection_dim" in tower else {}
    for part in (unet, params["autoencoder"]["params"]):
        widths = part["block_out_channels"]
        part["block_out_channels"] = [32 * (width // widths[0]) for width in widths]
    if "context_dim" in unet:
        unet["context_dim"] = 32 * len(towers)
    if "head_channels" in unet:
        unet["head_channels"] = 8
    if "framing_embedding" in params:
        framing = params["framing_embedding"]["params"]
        framing["dim"] = 16
        unet["y_dim"] = 24 + 16 * len(framing["numbers"])
    params["image_size"] = 16 * 2 ** (len(params["autoencoder"]["params"]["block_out_channels"]) - 1)
    return tree


def skeleton(family: str, small: bool, size: int | None = None) -> tuple[dict[str, Any], LatentDiffusion]:
    """The params of a family's config, and its model without weights. size: of its pictures, in pixels."""
    tree = load_config(CONFIGS / f"{family}.yaml")
    tree = shrink(tree) if small else tree
    params: dict[str, Any] = tree["params"]
    params |= {} if size is None else {"image_size": size}
    with on_meta():
        model = build(tree, family, expected=LatentDiffusion)
    assert isinstance(model, LatentDiffusion)
    return params, model.eval()


@contextmanager
def filled(model: nn.Module, *parts: str, device: str = "cpu") -> Iterator[None]:
    """The parts of a skeleton have weights inside, made tensor by tensor, and none afterwards."""
    shapes = {name: {k: v.shape for k, v in model.get_submodule(name).state_dict().items()} for name in parts}
    for name in parts:
        weights = {k: weight(f"{name}.{k}", shape).to(device) for k, shape in shapes[name].items()}
        model.get_submodule(name).load_state_dict(weights, assign=True)
        del weights
    yield
    for name in parts:
        empty = {k: torch.empty(shape, device="meta") for k, shape in shapes[name].items()}
        model.get_submodule(name).load_state_dict(empty, assign=True)
    gc.collect()  # what shares them may stand in cycles


def remember(encoder: TextEncoder) -> None:
    """What the tower says of each row of tokens from now on, it will say again without its weights."""
    said: dict[bytes, TextFeatures] = {}
    read = encoder.forward

    def forward(tokens: Tensor, weights: Tensor | None = None, clip_skip: int = 1) -> TextFeatures:
        """Any rows of (B, L) or (B, 2, L) tokens, of which the new ones are read."""
        assert weights is None and clip_skip == 1, "only plain prompts are remembered"
        names = [row.cpu().numpy().tobytes() for row in tokens]
        new = [i for i, name in enumerate(names) if name not in said]
        if new:
            states, pooled = read(tokens[new])
            assert states is not None
            for place, i in enumerate(new):
                said[names[i]] = TextFeatures(states[place], None if pooled is None else pooled[place])
        features = [said[name] for name in names]
        pooled = None if features[0].pooled is None else torch.stack([one.pooled for one in features])
        return TextFeatures(torch.stack([one.states for one in features]), pooled)

    encoder.forward = forward
