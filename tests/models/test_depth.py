"""The depth estimator against `DPTForDepthEstimation` of transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from ldm.checkpoint import depth_keys
from ldm.models.depth import DPTDepthEstimator

SMALL: dict[str, Any] = {"width": 16, "heads": 2, "layers": 4, "hooks": (1, 3), "stem_channels": 8, "features": 8}
SMALL |= {"stage_depths": (2, 1, 1), "norm_num_groups": 4, "positions": 4}


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    from transformers import DPTConfig, DPTForDepthEstimation

    resnet = {"model_type": "bit", "global_padding": "same", "layer_type": "bottleneck", "depths": [2, 1, 1]}
    resnet |= {"hidden_sizes": [32, 64, 128], "embedding_size": 8, "num_groups": 4, "embedding_dynamic_padding": True}
    config = DPTConfig(
        is_hybrid=True,
        hidden_size=16,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=2,
        layer_norm_eps=1e-6,
        image_size=64,
        patch_size=16,
        backbone_featmap_shape=[1, 128, 4, 4],
        backbone_out_indices=[0, 1, 1, 3],
        neck_hidden_sizes=[32, 64, 16, 16],
        reassemble_factors=[1, 1, 1, 0.5],
        fusion_hidden_size=8,
        backbone_config=resnet | {"out_features": ["stage1", "stage2", "stage3"]},
    )
    model = DPTForDepthEstimation(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.normal_(std=0.3, generator=generator)
    return model


@pytest.fixture(scope="module")
def ours(theirs: nn.Module) -> DPTDepthEstimator:
    estimator = DPTDepthEstimator(**SMALL)
    estimator.load_state_dict(depth_keys.from_hugging_face(theirs.state_dict(), estimator))
    return estimator.eval()


@pytest.mark.parametrize("side", [64, 96])  # at 96 pixels the positions are stretched
def test_same_depth_as_transformers(
    side: int, ours: DPTDepthEstimator, theirs: Any, relative_error: Callable[..., float], no_grad: None
) -> None:
    theirs.dpt.embeddings.image_size = (side, side)  # it refuses others otherwise
    pixels = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1
    wanted = theirs(pixels).predicted_depth
    assert wanted.std() > 1 and (wanted > 0).float().mean() > 0.5  # there is something to compare
    assert relative_error(ours(pixels), wanted) < 1e-5


def test_half_precision_and_pictures_that_are_not_square(ours: DPTDepthEstimator, no_grad: None) -> None:
    pixels = torch.rand(1, 3, 64, 128, generator=torch.Generator().manual_seed(2)) * 2 - 1
    depth = ours(pixels)
    assert depth.shape == (1, 64, 128)
    half = ours.bfloat16()(pixels.bfloat16()).float()
    ours.float()
    assert half.isfinite().all() and (half - depth).norm() / depth.norm() < 0.2


@pytest.mark.parametrize(
    ("size", "scaled"),
    [((512, 512), (384, 384)), ((640, 480), (512, 384)), ((480, 640), (384, 512)), ((1600, 400), (1536, 384))],
)
def test_pictures_are_scaled_by_as_little_as_possible(size: tuple[int, int], scaled: tuple[int, int]) -> None:
    """As MiDaS does: either side may become 384, and all are multiples of 32."""
    pixels = DPTDepthEstimator.preprocess(Image.new("RGB", size, (255, 0, 127)))
    assert pixels.shape == (1, 3, scaled[1], scaled[0])
    assert pixels.amax((0, 2, 3)).tolist() == pytest.approx([1, -1, 0], abs=0.01)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"hooks \(3, 1\) are not two of the 4 layers"):
        DPTDepthEstimator(**SMALL | {"hooks": (3, 1)})
    with pytest.raises(ValueError, match="heads 3 must divide width 16"):
        DPTDepthEstimator(**SMALL | {"heads": 3})
