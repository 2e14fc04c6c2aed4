from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.checkpoint.meta import on_meta
from ldm.models.image_encoder import OpenCLIPImageEncoder

SMALL = {"image_size": 28, "patch_size": 7, "width": 32, "heads": 4, "layers": 2, "projection_dim": 24}


@pytest.fixture(scope="module")
def open_clip():
    return pytest.importorskip("open_clip")


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_same_tower_as_open_clip(open_clip, activation: str) -> None:
    torch.manual_seed(0)
    vision = {"image_size": 28, "patch_size": 7, "width": 32, "head_width": 8, "layers": 2}
    text = {"context_length": 4, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}
    theirs = open_clip.CLIP(24, vision, text, quick_gelu=activation == "quick_gelu").eval()
    for tensor in theirs.visual.parameters():  # away from the initial ones and zeros
        torch.nn.init.normal_(tensor, std=0.3)
    ours = OpenCLIPImageEncoder(**SMALL, activation=activation).eval()
    ours.tower.load_state_dict(theirs.visual.state_dict())
    pixels = torch.randn(3, 3, 28, 28)
    with torch.no_grad():
        wanted = theirs.encode_image(pixels)
        assert (ours(pixels) - wanted).norm() / wanted.norm() < 1e-6


@pytest.mark.parametrize("size", [(40, 40), (61, 40), (40, 97), (28, 28), (9, 20)])
def test_same_preprocessing_as_open_clip(open_clip, size: tuple[int, int]) -> None:
    from open_clip.transform import image_transform

    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    wanted = image_transform(28, is_train=False)(image)
    torch.testing.assert_close(OpenCLIPImageEncoder(**SMALL).preprocess(image)[0], wanted, atol=1e-5, rtol=0)


def test_published_towers_on_meta() -> None:
    with on_meta():
        large, huge = OpenCLIPImageEncoder("ViT-L-14-quickgelu"), OpenCLIPImageEncoder("ViT-H-14")
    assert (large.projection_dim, huge.projection_dim) == (768, 1024)
    assert sum(p.numel() for p in large.parameters()) == 303_966_208  # as published, without the text tower
    assert huge.tower.transformer.resblocks[0].attn.num_heads == 16 and len(huge.tower.transformer.resblocks) == 32


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="either name"):
        OpenCLIPImageEncoder("ViT-H-14", width=3)
    with pytest.raises(ValueError, match="needs width, heads, layers and projection_dim"):
        OpenCLIPImageEncoder(width=32)
    with pytest.raises(ValueError, match="no text tower 'ViT-Z'"):
        OpenCLIPImageEncoder("ViT-Z")
