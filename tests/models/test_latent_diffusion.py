from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from ldm.config import ConfigError, build, load_config
from ldm.models.framing import Framing
from ldm.models.latent_diffusion import LatentDiffusion

TINY = Path(__file__).parents[1] / "tiny.yaml"


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    torch.manual_seed(0)
    return build(load_config(TINY), str(TINY), expected=LatentDiffusion).eval()


@torch.no_grad()
def test_the_parts_fit_together(model: LatentDiffusion) -> None:
    cond = model.condition(["a red cube", ""])
    assert cond.context is not None and cond.context.shape == (2, 16, 16) and cond.y is None and cond.concat is None
    z = model.encode(torch.rand(2, 3, 32, 48) * 2 - 1).mode()
    assert z.shape[1:] == model.latent_shape(32, 48) == (4, 4, 6)
    assert model.denoiser(z, torch.tensor(2.0), cond).shape == z.shape
    assert model.decode(z).shape == (2, 3, 32, 48)


@torch.no_grad()
def test_prompts_do_not_depend_on_their_neighbours(model: LatentDiffusion) -> None:
    both, one = model.condition(["a red cube", "a blue sphere"]).context, model.condition(["a blue sphere"]).context
    assert torch.allclose(both[1:], one, atol=1e-6) and not torch.allclose(both[0], both[1], atol=1e-2)


@torch.no_grad()
def test_network_and_autoencoder_have_their_own_dtypes(model: LatentDiffusion) -> None:
    mixed = copy.deepcopy(model)
    mixed.unet.to(torch.bfloat16)
    mixed.text_encoder.to(torch.bfloat16)
    assert mixed.dtype == torch.bfloat16 and mixed.device == torch.device("cpu")
    z = torch.randn(1, 4, 4, 4)
    assert mixed.denoiser(z, torch.tensor(1.0), mixed.condition(["x"])).dtype == torch.float32
    assert mixed.decode(z.to(torch.bfloat16)).dtype == torch.float32
    mixed.autoencoder.to(torch.bfloat16)
    assert mixed.decode(z).dtype == torch.bfloat16
    assert mixed.encode(torch.zeros(1, 3, 8, 8)).mean.dtype == torch.bfloat16


def test_a_copy_has_its_own_denoiser(model: LatentDiffusion) -> None:
    other = copy.deepcopy(model)
    assert other.denoiser.unet is other.unet is not model.unet


def test_the_denoiser_owns_no_weights(model: LatentDiffusion) -> None:
    assert {name.partition(".")[0] for name in model.state_dict()} == {"unet", "autoencoder", "text_encoder"}


@pytest.mark.parametrize(("height", "width", "nearest"), [(30, 32, 32), (32, 0, 8), (-8, 32, 8), (32, 61, 64)])
def test_sizes_that_have_no_latent(model: LatentDiffusion, height: int, width: int, nearest: int) -> None:
    with pytest.raises(ValueError, match=f"not a positive multiple of 8; the nearest is {nearest}"):
        model.latent_shape(height, width)


def test_one_string_is_not_a_list_of_prompts(model: LatentDiffusion) -> None:
    with pytest.raises(ValueError, match="takes a list of prompts"):
        model.condition("a red cube")


def test_a_part_in_the_wrong_place_is_refused() -> None:
    tree = load_config(TINY)
    tree["params"]["unet"], tree["params"]["autoencoder"] = tree["params"]["autoencoder"], tree["params"]["unet"]
    with pytest.raises(ConfigError, match=r"params.autoencoder.target: 'UNet' is not a Autoencoder \(known: Auto"):
        build(tree)


def test_an_unconditional_model() -> None:
    tree = load_config(TINY)
    tree["params"]["text_encoder"] = {"target": "NoText"}
    del tree["params"]["unet"]["params"]["context_dim"]
    model = build(tree)
    cond = model.condition([""])
    assert cond.context is None
    assert model.denoiser(torch.zeros(1, 4, 4, 4), torch.tensor(1.0), cond).shape == (1, 4, 4, 4)


def test_a_prompt_that_is_not_given_is_an_empty_one(model: LatentDiffusion) -> None:
    assert torch.equal(model.condition([None]).context, model.condition([""]).context)


@torch.no_grad()
def test_a_model_that_is_told_the_framing() -> None:
    tree = load_config(TINY)
    tower = tree["params"]["text_encoder"]
    second = {"target": tower["target"], "params": tower["params"] | {"projection_dim": 6}}
    numbers = ["original_height", "original_width", "aesthetic_score"]
    tree["params"] |= {
        "text_encoder": {"target": "TwoTowers", "params": {"first": tower, "second": second}},
        "framing_embedding": {"target": "FramingEmbedding", "params": {"numbers": numbers, "dim": 4}},
        "zero_unconditional": True,
    }
    tree["params"]["unet"]["params"] |= {"context_dim": 32, "y_dim": 18}
    model = build(tree)
    cond = model.condition(["a red cube", None, ""])
    assert cond.context.shape == (3, 16, 32) and cond.y.shape == (3, 18)
    assert not cond.context[1].any() and not cond.y[1, :6].any()  # zeros where nothing is given,
    assert cond.context[2].any() and cond.y[2, :6].any()  # and not for an empty text
    assert torch.equal(cond.y, model.condition(["a red cube", None, ""], Framing.whole(32, 32)).y)

    wide = model.condition(["a red cube"], Framing.whole(32, 64))
    assert torch.equal(wide.context[0], cond.context[0]) and not torch.equal(wide.y[0], cond.y[0])
    negative = model.condition(["a red cube"], negative=True)
    changed = (negative.y[0] != cond.y[0]).nonzero().flatten().tolist()
    assert changed == [14, 15, 16, 17]  # the score alone
    assert model.denoiser(torch.zeros(3, 4, 4, 4), torch.tensor(1.0), cond).shape == (3, 4, 4, 4)

    del second["params"]["projection_dim"]
    with pytest.raises(ValueError, match="needs a pooled text vector"):
        build(tree).condition([""])
