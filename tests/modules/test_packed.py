"""Packed weights give what the published implementations gave, and a network that can be taken for the plain one."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.checkpoint.keys import to_internal
from ldm.checkpoint.original_config import autoencoder_params, unet_params
from ldm.models.autoencoder import AutoencoderKL
from ldm.modules.attention import GEGLU, MANY, PointwiseConv, attention
from ldm.modules.blocks import silu
from ldm.modules.packed import Packed, PackedGEGLU, is_packable, pack, unpack
from ldm.modules.unet import UNet


@pytest.mark.long
@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("name", ["sd-v1", "sd-v2", "sdxl-base", "sd-x4-upscaler", "ldm-ffhq"])
def test_agrees_with_the_original(
    name: str, golden: Callable[..., Any], relative_error: Callable[..., float], record_property: Callable[..., None]
) -> None:
    case = golden(f"unet-{name}")
    unet = UNet(**unet_params(case.params)).eval()
    unet.load_state_dict(to_internal(case.weights, unet))
    plain = {key: value.clone() for key, value in unet.state_dict().items()}
    pack(unet)
    assert any(isinstance(module, Packed) for module in unet.modules())
    error = relative_error(unet(**case.inputs), case.outputs["out"])
    record_property("relative error", error)
    assert error <= 1e-5
    kept = unet.state_dict()
    assert set(kept) == set(plain) and all(torch.equal(kept[key], value) for key, value in plain.items())


@pytest.mark.usefixtures("no_grad")
def test_an_autoencoder_agrees_with_the_original(
    golden: Callable[..., Any], relative_error: Callable[..., float]
) -> None:
    case = golden("vae-kl-f8")
    autoencoder = AutoencoderKL(**autoencoder_params(case.params)).eval()
    autoencoder.load_state_dict(to_internal(case.weights, autoencoder))
    pack(autoencoder)
    moments = autoencoder.encode_moments(case.inputs["image"].clamp(-1, 1))
    assert relative_error(moments, case.outputs["moments"]) <= 1e-5
    assert relative_error(autoencoder.decode(case.inputs["latent"]), case.outputs["decoded"]) <= 1e-5


class Layers(nn.Module):
    """One of each that is packed, at sizes that fit no block of oneDNN's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(5, 12, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(12, 12, 3, padding=1, groups=3, bias=False)
        self.pointwise = PointwiseConv(12, 10)
        self.linear = nn.Linear(10, 14, bias=False)
        self.geglu = GEGLU(14, 9)

    def forward(self, x: Tensor) -> Tensor:
        h = self.grouped(self.conv(x)).flatten(2).transpose(1, 2)
        return self.geglu(self.linear(self.pointwise(h)))


@pytest.fixture
def layers() -> Layers:
    torch.manual_seed(0)
    return Layers().eval()


SHAPES = [(1, 5, 7, 9), (3, 5, 16, 16), (2, 5, 1, 1)]


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_every_kind_of_layer_at_every_shape(layers: Layers, dtype: torch.dtype, bound: float) -> None:
    layers.to(dtype)
    inputs = [torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype) for shape in SHAPES]
    plain = {name: tensor.clone() for name, tensor in layers.state_dict().items()}
    with torch.no_grad():
        before = [layers(x) for x in inputs]
        pack(layers)
        kinds = [type(module).__name__ for module in layers.modules() if isinstance(module, Packed)]
        all_kinds = ["PackedConv2d", "PackedConv2d", "PackedPointwiseConv", "PackedLinear", "PackedHalves"]
        assert kinds == all_kinds * is_packable(dtype)
        for x, expected in zip(inputs, before, strict=True):
            error = (layers(x) - expected).abs().max() / expected.abs().max()
            assert layers(x).dtype == dtype and error <= bound
        x = torch.randn(2, 14).to(dtype)
        proj = layers.geglu.proj
        assert torch.allclose(proj(x), F.linear(x, proj.weight, proj.bias), atol=bound)
        unpack(layers)
        assert all(torch.equal(tensor, plain[name]) for name, tensor in layers.state_dict().items())


def test_gradients_are_those_of_the_plain_network(layers: Layers) -> None:
    x = torch.randn(2, 5, 8, 8, requires_grad=True)
    (expected,) = torch.autograd.grad(layers(x).square().sum(), x)
    pack(layers)
    (found,) = torch.autograd.grad(layers(x).square().sum(), x)
    # the same weights, for which oneDNN may choose another routine
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max())) and found.any()


def test_autocast_computes_as_ever(layers: Layers) -> None:
    x = torch.randn(2, 5, 8, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = layers(x)
        pack(layers)
        assert torch.equal(layers(x), expected) and expected.dtype == torch.bfloat16


@pytest.mark.parametrize("change", ["load", "cast", "train", "unpack"])
def test_what_changes_weights_finds_plain_ones(layers: Layers, change: str) -> None:
    plain = copy.deepcopy(layers)
    pack(layers)
    doubled = {name: 2 * value for name, value in plain.state_dict().items()}
    if change == "load":
        layers.load_state_dict(doubled)
        plain.load_state_dict(doubled)
    elif change == "cast":
        layers.double()
        plain.double()
    elif change == "train":
        layers.train()
    else:
        unpack(layers)
        assert type(layers.geglu) is GEGLU
    found, expected = dict(layers.named_parameters()), dict(plain.named_parameters())
    assert set(found) == set(expected) and all(torch.equal(found[name], expected[name]) for name in found)
    x = torch.randn(1, 5, 8, 8, dtype=layers.conv.weight.dtype)
    with torch.no_grad():
        assert torch.equal(layers(x), plain(x))
        pack(layers)  # and again
        assert isinstance(layers.geglu, PackedGEGLU) and torch.allclose(layers(x), plain(x), atol=1e-5)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_copies_are_packed_and_their_own(layers: Layers, copied: Callable[[Layers], Layers]) -> None:
    x = torch.randn(1, 5, 8, 8)
    pack(layers)
    with torch.no_grad():
        twin, expected = copied(layers), layers(x)
        assert torch.equal(twin(x), expected)
        twin.load_state_dict({name: 2 * value for name, value in twin.state_dict().items()})
        assert torch.equal(layers(x), expected) and not torch.equal(twin(x), expected)


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_layers_of_other_ways_are_left_alone() -> None:
    others = [
        Doubled(4, 4),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Linear(4, 4).double(),
        nn.Linear(4, 4, device="meta"),
    ]
    network = nn.ModuleList([*others, nn.Linear(4, 4)])
    pack(network)
    assert [isinstance(module, Packed) for module in network] == [False] * len(others) + [True]


def test_silu_writes_over_its_input_only_without_gradients() -> None:
    x = torch.randn(5)
    was, expected = x.clone(), F.silu(x)
    assert torch.equal(silu(x), expected) and torch.equal(x, was)
    with torch.no_grad():
        assert silu(x).data_ptr() == x.data_ptr() and torch.equal(x, expected)


def test_attention_of_heads_that_lie_apart(relative_error: Callable[..., float]) -> None:
    q, k, v = (torch.randn(2, n, 3, 5, dtype=torch.float64).transpose(1, 2) for n in (6, MANY, MANY))
    expected = torch.softmax(q @ k.mT / 5**0.5, dim=-1) @ v
    assert relative_error(attention(q, k, v), expected) <= 1e-12
