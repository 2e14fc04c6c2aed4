from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldm.checkpoint.keys import PREFIXES, to_internal, to_original
from ldm.checkpoint.original_config import autoencoder_params, unet_params
from ldm.models.autoencoder import AutoencoderKL, VQModel
from ldm.modules.unet import UNet

SD1 = {
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "attention_resolutions": [4, 2, 1],
    "num_res_blocks": 2,
    "channel_mult": [1, 2, 4, 4],
    "num_heads": 8,
    "use_spatial_transformer": True,
    "transformer_depth": 1,
    "context_dim": 768,
    "legacy": False,
}
SD2 = SD1 | {"num_heads": -1, "num_head_channels": 64, "use_linear_in_transformer": True, "context_dim": 1024}
UPSCALER = SD1 | {
    "in_channels": 7,
    "model_channels": 256,
    "attention_resolutions": [2, 4, 8],
    "channel_mult": [1, 2, 2, 4],
    "disable_self_attentions": [True, True, True, False],
    "disable_middle_self_attn": False,
    "num_classes": 1000,
    "context_dim": 1024,
    "use_linear_in_transformer": True,
}
SDXL = SD2 | {"num_classes": "sequential", "attention_resolutions": [4, 2]}
BASE = {"channel_mult": [1, 2, 4], "transformer_depth": [1, 2, 10], "context_dim": 2048, "adm_in_channels": 2816}
REFINER = {"model_channels": 384, "transformer_depth": 4, "context_dim": [1280] * 4, "adm_in_channels": 2560}
TEXT2IMG = SD1 | {"context_dim": 1280}
PLAIN = {"in_channels": 3, "out_channels": 3, "attention_resolutions": [8, 4, 2], "num_res_blocks": 2}
IMAGENET = PLAIN | {"model_channels": 192, "channel_mult": [1, 2, 3, 5], "num_heads": 1, "context_dim": 512}
FFHQ = PLAIN | {"model_channels": 224, "channel_mult": [1, 2, 3, 4], "num_head_channels": 32}
CHURCHES = {
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 192,
    "attention_resolutions": [1, 2, 4, 8],
    "num_res_blocks": 2,
    "channel_mult": [1, 2, 2, 4, 4],
    "num_heads": 8,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
}


def kl(channels: int, mult: list[int]) -> dict[str, Any]:
    ddconfig = {"in_channels": 3, "out_ch": 3, "ch": 128, "ch_mult": mult, "num_res_blocks": 2, "double_z": True}
    return {
        "ddconfig": ddconfig | {"z_channels": channels, "resolution": 256, "attn_resolutions": []},
        "embed_dim": channels,
    }


F8, F4, VQ4 = kl(4, [1, 2, 4, 4]), kl(4, [1, 2, 4]), kl(3, [1, 2, 4]) | {"n_embed": 8192}
PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sd-v1": (SD1, F8),
    "sd-v1-inpainting": (SD1 | {"in_channels": 9}, F8),
    "sd-v2": (SD2, F8),
    "sd-v2-inpainting": (SD2 | {"in_channels": 9}, F8),
    "sd-v2-depth": (SD2 | {"in_channels": 5}, F8),
    "sd-v2-unclip-h-unet-vae-text": (SD2 | {"num_classes": "sequential", "adm_in_channels": 2048}, F8),
    "sd-x4-upscaler": (UPSCALER, F4),
    "sdxl-base": (SDXL | BASE, F8),
    "sdxl-refiner": (SDXL | REFINER, F8),
    "ldm-text2img-1p4b": (TEXT2IMG, F8),
    "ldm-cin256-vq4": (IMAGENET, VQ4),
    "ldm-ffhq-vq4": (FFHQ, VQ4),
    "ldm-lsun-churches-kl8": (CHURCHES, F8),
}


def on_meta(part: str, published: str) -> nn.Module:
    unet, autoencoder = PUBLISHED[published]
    with torch.device("meta"):
        if part == "unet":
            return UNet(**unet_params(unet))
        return (VQModel if "n_embed" in autoencoder else AutoencoderKL)(**autoencoder_params(autoencoder))


@pytest.mark.parametrize("part", PREFIXES)
@pytest.mark.parametrize("published", PUBLISHED)
def test_every_tensor_has_a_place_and_comes_back(
    published: str, part: str, layout: Callable[..., Any], shapes: Callable[..., Any]
) -> None:
    original = layout(published, PREFIXES[part])
    module = on_meta(part, published)
    state = {key: torch.empty(shape, device="meta") for key, shape in original.items()}
    inside = to_internal(state, module)
    assert shapes(inside) == shapes(module.state_dict())
    assert shapes(to_original(inside, module)) == original


@pytest.mark.parametrize("name", ["unet-ldm-uncond-new-order", "unet-ldm-lsun-churches", "vae-kl-f4-attn", "vae-vq-f4"])
@pytest.mark.parametrize("new_attention_order", [False, True])
def test_there_and_back_is_bit_equal(name: str, new_attention_order: bool, golden: Callable[..., Any]) -> None:
    case = golden(name)
    if name.startswith("unet"):
        module: nn.Module = UNet(**unet_params(case.params | {"use_new_attention_order": new_attention_order}))
    else:
        module = (VQModel if "vq" in name else AutoencoderKL)(**autoencoder_params(case.params))
    inside = to_internal(case.weights, module)
    module.load_state_dict(inside)
    back = to_original(module.state_dict(), module)
    assert back.keys() == case.weights.keys()
    assert all(torch.equal(back[key], case.weights[key]) for key in back)


def test_order_of_stacked_attention() -> None:
    """By head, q k v q k v; in the "new" order all of q, all of k, all of v."""
    small = {"block_out_channels": (8,), "attention_levels": True, "num_heads": 2, "norm_num_groups": 4}
    key = "middle_block.1.qkv.bias"
    rows = torch.arange(24.0)

    def first(order: bool) -> list[Tensor]:
        inside = to_internal({key: rows}, UNet(**small, transformer_depth=0, new_attention_order=order))
        return [inside[f"mid_block.attentions.0.to_{name}.bias"] for name in "qkv"]

    assert [part.tolist() for part in first(True)] == [list(range(i, i + 8)) for i in (0, 8, 16)]
    assert first(False)[0].tolist() == [0, 1, 2, 3, 12, 13, 14, 15]
    assert first(False)[2].tolist() == [8, 9, 10, 11, 20, 21, 22, 23]


def test_unknown_names_are_kept_for_the_loader_to_report() -> None:
    module = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    strange = {"loss.logvar": torch.zeros(()), "odd": torch.zeros(1)}
    assert to_internal(strange, module) == strange
    assert to_original(strange, module) == strange
    with pytest.raises(ValueError, match="Linear"):
        to_internal({}, nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_clases": 3}, "num_clases"),
        ({"num_classes": "continuous"}, "continuous"),
        ({"context_dim": [768, 1024]}, "context_dim"),
        ({"num_res_blocks": [1, 2, 2, 2]}, "num_res_blocks"),
    ],
)
def test_original_params_that_cannot_be_translated(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unet_params(SD1 | change)
    with pytest.raises(ValueError, match="embed_dim 4 and z_channels 8"):
        autoencoder_params(kl(8, [1, 2]) | {"embed_dim": 4})
