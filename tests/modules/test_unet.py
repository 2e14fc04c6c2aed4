from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldm.modules.attention import Attention
from ldm.modules.unet import UNet

pytestmark = pytest.mark.usefixtures("no_grad")

SD1 = {"num_heads": 8, "context_dim": 768}
SD2 = {"head_channels": 64, "context_dim": 1024, "use_linear_projection": True}
SDXL = {"head_channels": 64, "use_linear_projection": True}
PUBLISHED: dict[str, dict[str, Any]] = {
    "sd-v1": SD1,
    "sd-v1-inpainting": SD1 | {"in_channels": 9},
    "sd-v2": SD2,
    "sd-x4-upscaler": {
        "in_channels": 7,
        "block_out_channels": (256, 512, 512, 1024),
        "attention_levels": (False, True, True, True),
        "only_cross_attention": (True, True, True, False),
        "num_heads": 8,
        "context_dim": 1024,
        "num_classes": 1000,
        "use_linear_projection": True,
    },
    "sdxl-base": SDXL
    | {
        "block_out_channels": (320, 640, 1280),
        "attention_levels": (False, True, True),
        "transformer_depth": (1, 2, 10),
        "context_dim": 2048,
        "y_dim": 2816,
    },
    "sdxl-refiner": SDXL
    | {
        "block_out_channels": (384, 768, 1536, 1536),
        "attention_levels": (False, True, True, False),
        "transformer_depth": 4,
        "context_dim": 1280,
        "y_dim": 2560,
    },
    "ddpm-cat-256": {
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (128, 128, 256, 256, 512, 512),
        "attention_levels": (False, False, False, False, True, False),
        "transformer_depth": 0,
        "num_heads": 1,
        "norm_eps": 1e-6,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "downsample_padding": 0,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_has_the_tensors_of_a_diffusers_folder(
    name: str, layout: Callable[..., Any], shapes: Callable[..., Any]
) -> None:
    with torch.device("meta"):
        unet = UNet(**PUBLISHED[name])
    assert shapes(unet.state_dict()) == layout(f"diffusers/{name}.unet")


SMALL: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "attention_levels": True,
    "num_heads": 2,
    "context_dim": 8,
    "norm_num_groups": 8,
}
Fill = Callable[[nn.Module], nn.Module]


def run(unet: nn.Module, size: tuple[int, int] = (8, 8), y: Tensor | None = None) -> Tensor:
    torch.manual_seed(0)
    x, context = torch.randn(2, unet.in_channels, *size), torch.randn(2, 5, 8)
    return unet(x, torch.tensor([3.0, 700.5]), None if unet.context_dim is None else context, y)


@pytest.mark.parametrize("resample", ["conv", "pool", "resnet"])
@pytest.mark.parametrize("size", [(8, 8), (7, 9), (13, 5), (4, 6)])
def test_any_size(size: tuple[int, int], resample: str, filled: Fill) -> None:
    unet = filled(UNet(**SMALL | {"block_out_channels": (16, 16, 16), "resample": resample}))
    out = run(unet, size)
    assert out.shape == (2, 4, *size)
    assert out.isfinite().all() and out.std() > 0.01


@pytest.mark.parametrize(
    "option",
    [
        {"block_out_channels": (24, 32)},
        {"layers_per_block": 2},
        {"attention_levels": (True, False)},
        {"transformer_depth": 2},
        {"transformer_depth": (1, 0)},
        {"mid_transformer_depth": 2},
        {"num_heads": 4},
        {"num_heads": None, "head_channels": 4},
        {"context_dim": None},
        {"only_cross_attention": True},
        {"mid_only_cross_attention": True},
        {"resample": "pool"},
        {"resample": "resnet"},
        {"downsample_padding": 0},
        {"scale_shift_norm": True},
        {"dropout": 0.5},
        {"norm_num_groups": 4},
        {"norm_eps": 0.1},
        {"transformer_norm_eps": 0.1},
        {"flip_sin_to_cos": False},
        {"freq_shift": 1},
    ],
    ids=str,
)
def test_every_option_changes_the_output(option: dict[str, Any], filled: Fill) -> None:
    before, after = run(filled(UNet(**SMALL))), run(filled(UNet(**SMALL | option)))
    assert (before - after).abs().max() > 1e-4


def test_y_changes_the_output(filled: Fill) -> None:
    labelled = filled(UNet(**SMALL, num_classes=10))
    assert not torch.equal(run(labelled, y=torch.tensor([1, 2])), run(labelled, y=torch.tensor([1, 3])))
    vector = filled(UNet(**SMALL, y_dim=6))
    assert not torch.equal(run(vector, y=torch.ones(2, 6)), run(vector, y=torch.zeros(2, 6)))


def test_channels(filled: Fill) -> None:
    unet = filled(UNet(**SMALL, in_channels=9, out_channels=3))
    assert run(unet).shape == (2, 3, 8, 8)


def test_both_projections_are_the_same_function(filled: Fill) -> None:
    conv = filled(UNet(**SMALL))
    linear = UNet(**SMALL, use_linear_projection=True)
    shapes = {key: tensor.shape for key, tensor in linear.state_dict().items()}
    linear.load_state_dict({key: tensor.reshape(shapes[key]) for key, tensor in conv.state_dict().items()})
    assert torch.equal(run(conv), run(linear))


def test_one_layer_can_attend_otherwise(filled: Fill) -> None:
    unet = filled(UNet(**SMALL))
    before = run(unet)
    layer = unet.get_submodule("up_blocks.0.attentions.1.transformer_blocks.0.attn2")
    assert isinstance(layer, Attention)
    layer.attention = lambda q, k, v: torch.zeros_like(q)
    assert not torch.equal(run(unet), before)


def test_untrained_it_predicts_zero_and_learns_from_there() -> None:
    unet = UNet(**SMALL)
    assert run(unet).abs().max() == 0
    with torch.enable_grad():
        for _ in range(3):
            run(unet).sub(1).square().mean().backward()
            with torch.no_grad():
                for parameter in unet.parameters():
                    parameter -= 0.1 * parameter.grad
    still = [key for key, parameter in unet.named_parameters() if not parameter.grad.any()]
    assert still == []


def test_memory_format_and_dtype_are_the_callers(filled: Fill) -> None:
    unet = filled(UNet(**SMALL))
    rows = run(unet)
    torch.testing.assert_close(run(unet.to(memory_format=torch.channels_last)), rows, rtol=1e-4, atol=1e-5)
    unet = unet.bfloat16()
    out = unet(torch.randn(1, 4, 8, 8).bfloat16(), torch.tensor([5]), torch.randn(1, 5, 8).bfloat16())
    assert out.dtype == torch.bfloat16


def test_images_of_a_batch_do_not_meet(filled: Fill) -> None:
    unet = filled(UNet(**SMALL))
    x, t, context = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.randn(2, 5, 8)
    alone = torch.cat([unet(x[i : i + 1], t[i : i + 1], context[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(unet(x, t, context), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_compiles_to_one_graph(filled: Fill) -> None:
    unet = filled(UNet(**SMALL, y_dim=6))
    compiled = torch.compile(unet, backend="eager", fullgraph=True)
    args = torch.randn(2, 4, 7, 8), torch.tensor([3, 700]), torch.randn(2, 5, 8), torch.randn(2, 6)
    torch.testing.assert_close(compiled(*args), unet(*args))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"num_heads": None}, "num_heads None and head_channels None"),
        ({"head_channels": 8}, "num_heads 2 and head_channels 8"),
        ({"num_heads": 3}, "num_heads 3 does not divide 16"),
        ({"num_heads": None, "head_channels": 12}, "head_channels 12 does not divide width 16"),
        ({"norm_num_groups": 7}, "norm_num_groups 7 does not divide 16"),
        ({"attention_levels": (True,)}, "attention_levels has 1 entries for 2"),
        ({"resample": "linear"}, "resample 'linear'"),
    ],
)
def test_impossible_params(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNet(**SMALL | params)


def test_context_and_y_are_wanted_or_not() -> None:
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([5])
    with pytest.raises(ValueError, match="context_dim 8 and was given no context"):
        UNet(**SMALL)(x, t)
    with pytest.raises(ValueError, match="context_dim None and was given a context"):
        UNet(**SMALL | {"context_dim": None})(x, t, torch.randn(1, 5, 8))
    with pytest.raises(ValueError, match="y_dim 6 and was given no y"):
        UNet(**SMALL, y_dim=6)(x, t, torch.randn(1, 5, 8))
    with pytest.raises(ValueError, match="y_dim None and was given a y"):
        UNet(**SMALL)(x, t, torch.randn(1, 5, 8), torch.randn(1, 6))


@pytest.mark.parametrize(("how", "least"), [({"downsample_padding": 0}, 4), ({"resample": "pool"}, 4), ({}, 1)])
def test_the_least_side_works_and_one_less_is_a_sentence(how: dict[str, Any], least: int) -> None:
    shape = {"block_out_channels": (8, 8, 8), "layers_per_block": 1, "attention_levels": False, "num_heads": 1}
    unet = UNet(**shape, norm_num_groups=4, **how).eval()
    unet = unet.requires_grad_(False)
    nn.init.normal_(unet.conv_out.weight)
    t = torch.tensor([3.0])
    assert unet(torch.randn(1, 4, least, least + 1), t).abs().max() > 0
    if least > 1:
        with pytest.raises(ValueError, match="4 is its least side"):
            unet(torch.randn(1, 4, least, least - 1), t)
