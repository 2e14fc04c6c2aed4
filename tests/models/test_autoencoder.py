from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from ldm.checkpoint.keys import to_internal
from ldm.checkpoint.original_config import autoencoder_params
from ldm.models.autoencoder import AutoencoderKL, Gaussian, VQModel

SMALL: dict[str, Any] = {"block_out_channels": (8, 16, 16), "layers_per_block": 1, "norm_num_groups": 4}
Fill = Callable[[nn.Module], Any]


@torch.no_grad()
@pytest.mark.parametrize("name", ["kl-f8", "kl-f4-attn"])
def test_kl_agrees_with_the_original(
    name: str, golden: Callable[..., Any], relative_error: Callable[..., float]
) -> None:
    case = golden(f"vae-{name}")
    autoencoder = AutoencoderKL(**autoencoder_params(case.params))
    autoencoder.load_state_dict(to_internal(case.weights, autoencoder))
    moments = autoencoder.encode_moments(case.inputs["image"].clamp(-1, 1))
    assert relative_error(moments, case.outputs["moments"]) <= 1e-5
    assert relative_error(autoencoder.decode(case.inputs["latent"]), case.outputs["decoded"]) <= 1e-5


@torch.no_grad()
def test_vq_agrees_with_the_original(golden: Callable[..., Any], relative_error: Callable[..., float]) -> None:
    case = golden("vae-vq-f4")
    autoencoder = VQModel(**autoencoder_params(case.params))
    autoencoder.load_state_dict(to_internal(case.weights, autoencoder))
    encoded = autoencoder.encode(case.inputs["image"].clamp(-1, 1))
    assert relative_error(encoded, case.outputs["encoded"]) <= 1e-5
    assert torch.equal(autoencoder.quantize.nearest(case.inputs["latent"]).flatten(), case.outputs["indices"])
    assert relative_error(autoencoder.decode(case.inputs["latent"]), case.outputs["decoded"]) <= 1e-5


def test_has_the_tensors_of_a_diffusers_folder(layout: Callable[..., Any], shapes: Callable[..., Any]) -> None:
    with torch.device("meta"):
        autoencoder = AutoencoderKL()
    assert shapes(autoencoder.state_dict()) == layout("diffusers/vae")


@torch.no_grad()
@pytest.mark.parametrize("levels", [1, 2, 4])
def test_sizes(levels: int) -> None:
    autoencoder = AutoencoderKL(**SMALL | {"block_out_channels": (8,) * levels, "latent_channels": 6})
    factor = 2 ** (levels - 1)
    assert (autoencoder.downsample_factor, autoencoder.latent_channels) == (factor, 6)
    z = autoencoder.encode(torch.rand(2, 3, 3 * factor, 5 * factor)).mode()
    assert z.shape == (2, 6, 3, 5)
    assert autoencoder.decode(z).shape == (2, 3, 3 * factor, 5 * factor)


@torch.no_grad()
@pytest.mark.parametrize("kind", [AutoencoderKL, VQModel])
def test_latents_are_scaled_and_shifted(kind: type[Any], filled: Fill) -> None:
    plain, scaled = (filled(kind(**SMALL, **scale)) for scale in ({}, {"scaling_factor": 0.5, "shift_factor": 0.3}))
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    z, w = plain.encode(image), scaled.encode(image)
    if kind is AutoencoderKL:
        torch.testing.assert_close(w.std, z.std * 0.5)
        torch.testing.assert_close(scaled.posterior(image).kl(), plain.posterior(image).kl())
        z, w = z.mode(), w.mode()
    torch.testing.assert_close(w, (z - 0.3) * 0.5)
    torch.testing.assert_close(scaled.decode(w), plain.decode(z))


def test_gaussian() -> None:
    mean, logvar, noise = torch.randn(3, 2, 3, 4, 4).unbind()
    gaussian = Gaussian(mean, logvar)
    theirs = torch.distributions.Normal(mean, gaussian.std)
    kl = torch.distributions.kl_divergence(theirs, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(gaussian.kl(), kl.sum(dim=(1, 2, 3)))
    assert torch.equal(gaussian.sample(torch.zeros_like(mean)), gaussian.mode())
    torch.testing.assert_close(gaussian.sample(noise), mean + (0.5 * logvar).exp() * noise)


@torch.no_grad()
def test_log_variance_is_bounded() -> None:
    autoencoder = AutoencoderKL(**SMALL)
    autoencoder.quant_conv.bias.fill_(1000.0)
    assert autoencoder.posterior(torch.zeros(1, 3, 8, 8)).logvar.max() == 20


@torch.no_grad()
@pytest.mark.parametrize(
    "option",
    [
        {"attention_levels": (False, True, False)},
        {"mid_attention": False},
        {"layers_per_block": 2},
        {"norm_num_groups": 2},
        {"norm_eps": 0.1},
        {"dropout": 0.5},
    ],
    ids=str,
)
def test_every_option_changes_the_output(option: dict[str, Any], filled: Fill) -> None:
    torch.manual_seed(0)
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    before, after = (filled(AutoencoderKL(**params)) for params in (SMALL, SMALL | option))
    z, w = before.encode(image).mode(), after.encode(image).mode()
    assert (z - w).abs().max() > 1e-4
    assert (before.decode(z) - after.decode(z)).abs().max() > 1e-4


def test_codes_are_the_nearest_and_pass_gradients(filled: Fill) -> None:
    quantize = filled(VQModel(**SMALL, num_codes=7)).quantize
    z = torch.randn(2, 3, 4, 5, requires_grad=True)
    codes = quantize.embedding.weight
    wanted = torch.cdist(z.permute(0, 2, 3, 1).reshape(-1, 3), codes).argmin(dim=1)
    assert torch.equal(quantize.nearest(z).flatten(), wanted)
    out = quantize(z)
    torch.testing.assert_close(out.permute(0, 2, 3, 1).reshape(-1, 3), codes[wanted])
    out.backward(torch.full_like(out, 2.0))
    assert torch.equal(z.grad, torch.full_like(z, 2.0))


def test_channels_last_is_kept() -> None:
    autoencoder = AutoencoderKL(**SMALL).to(memory_format=torch.channels_last)
    image = torch.rand(2, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    z = autoencoder.encode(image).mode()
    assert autoencoder.decode(z).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"attention_levels": (True,)}, "attention_levels has 1 entries for 3 levels"),
        ({"norm_num_groups": 3}, "norm_num_groups 3 does not divide 8 channels"),
        ({"scaling_factor": 0.0}, "scaling_factor 0.0 is not positive"),
    ],
)
def test_impossible_params(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoencoderKL(**SMALL | params)
