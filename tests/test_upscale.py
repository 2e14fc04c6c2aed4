"""Drawing from a small picture, and from what a picture means."""

from __future__ import annotations

from copy import deepcopy
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ldm
from ldm import hints, images
from ldm.checkpoint.load import load, save
from ldm.config import build, load_config
from ldm.models.latent_diffusion import LatentDiffusion

TINY = Path(__file__).parent / "tiny.yaml"
SCHEDULE = {"target": "NoiseSchedule", "params": {"beta_start": 0.0001, "beta_end": 0.02}}


def make(**params: Any) -> tuple[LatentDiffusion, dict[str, Any]]:
    """The tiny model (an autoencoder of factor 8, trained at 32 pixels) with other params, and its tree."""
    tree = deepcopy(load_config(TINY))
    for name, value in params.items():
        own = tree["params"].get(name)
        tree["params"][name] = {**own, "params": {**own["params"], **value}} if isinstance(own, dict) else value
    torch.manual_seed(0)
    model = build(tree, "tiny", expected=LatentDiffusion).eval()
    for parameter in model.unet.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return model, tree


def noise_node(**params: Any) -> dict[str, Any]:
    return {"target": "NoiseAugmentation", "params": {"schedule": SCHEDULE, "max_level": 350, **params}}


@pytest.fixture(scope="module")
def twice() -> LatentDiffusion:
    return make(unet={"in_channels": 52, "num_classes": 351}, low_resolution=noise_node(fold=4))[0]


@pytest.fixture(scope="module")
def unclip() -> tuple[LatentDiffusion, dict[str, Any]]:
    tower = {"image_size": 28, "patch_size": 7, "width": 16, "heads": 2, "layers": 1, "projection_dim": 8}
    noise = {"schedule": {"target": "NoiseSchedule", "params": {"beta_schedule": "cosine"}}, "width": 8}
    return make(
        unet={"y_dim": 16},
        image_encoder={"target": "OpenCLIPImageEncoder", "params": tower},
        image_augmentation={"target": "EmbeddingAugmentation", "params": noise},
    )


def picture(width: int, height: int, seed: int = 1) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def draw(model: LatentDiffusion, image: Image.Image, **options: Any) -> Image.Image:
    (result,) = ldm.upscale(model, "a", image, **{"steps": 2, "guidance_scale": 1.0, **options})
    return result.image


@pytest.mark.parametrize("size", [(16, 16), (1, 1), (7, 13), (33, 18)])
def test_any_size_is_enlarged_exactly(twice: LatentDiffusion, size: tuple[int, int]) -> None:
    assert draw(twice, picture(*size)).size == (2 * size[0], 2 * size[1])


def test_the_factor_is_the_autoencoders_over_the_fold() -> None:
    four = make(unet={"in_channels": 16, "num_classes": 351}, low_resolution=noise_node(fold=2))[0]
    assert draw(four, picture(9, 5)).size == (36, 20)


def test_odd_sizes_are_reflected_at_the_edge(twice: LatentDiffusion) -> None:
    image = picture(15, 14)
    shown = hints.to_enlarge(twice, image, 20).noisy
    assert shown is not None and shown.shape == (1, 3, 16, 16)
    known = images.to_tensor(image)
    torch.testing.assert_close(shown[..., :14, :15], known)
    torch.testing.assert_close(shown[..., 14:, :15], known[..., [12, 11], :])
    torch.testing.assert_close(shown[..., :14, 15], known[..., 13])


def test_the_picture_its_noise_and_the_seed_matter(twice: LatentDiffusion) -> None:
    image = picture(16, 16)
    one = draw(twice, image).tobytes()
    assert one == draw(twice, image).tobytes()
    others = [draw(twice, picture(16, 16, 2)), draw(twice, image, noise_level=300), draw(twice, image, seed=1)]
    assert len({one, *(other.tobytes() for other in others)}) == 4


def test_the_network_sees_the_noised_picture_and_its_level(
    twice: LatentDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[torch.Tensor, Any]] = []
    forward = twice.unet.forward
    monkeypatch.setattr(
        twice.unet, "forward", lambda x, t, context=None, y=None: (seen.append((x, y)), forward(x, t, context, y))[1]
    )
    image = picture(16, 16)
    draw(twice, image, noise_level=0, steps=1)
    x, y = seen[0]
    clean = torch.nn.functional.pixel_shuffle(x[:, 4:], 4)
    assert y.tolist() == [0] and (clean - images.to_tensor(image)).abs().mean() < 0.02  # beta 0.0001: next to none
    draw(twice, image, noise_level=350, steps=1, guidance_scale=2.0)
    assert seen[1][1].tolist() == [350, 350] and torch.equal(*seen[1][0][:, 4:].chunk(2))


def test_large_pictures_are_drawn_in_tiles(twice: LatentDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[torch.Size] = []
    forward = twice.unet.forward
    monkeypatch.setattr(
        twice.unet,
        "forward",
        lambda x, t, context=None, y=None: (sizes.append(x.shape[2:]), forward(x, t, context, y))[1],
    )
    image = picture(40, 16)  # drawn as 80 x 32, in tiles of the trained 32
    tiles = draw(twice, image, steps=1)
    assert sizes == [torch.Size([4, 4])] * 3
    whole = draw(twice, image, steps=1, tile=0)
    assert sizes[3:] == [torch.Size([4, 10])] and whole.size == tiles.size == (80, 32)
    draw(twice, image, steps=1, tile=64, overlap=56)
    assert sizes[4:] == [torch.Size([4, 8])] * 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"noise_level": 351}, "noise level 351 .* 0 to 350"),
        ({"tile": 20}, "tile 20 .* multiples of 8"),
        ({"tile": 16, "overlap": 16}, "a tile above its overlap"),
        ({"height": 64}, "leave height and width out"),
    ],
)
def test_mistakes_are_refused_before_anything_is_drawn(
    twice: LatentDiffusion, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        ldm.upscale(twice, "a", picture(8, 8), **options)


def test_variations_follow_picture_level_and_prompt(unclip: tuple[LatentDiffusion, Any]) -> None:
    def vary(image: Image.Image, **options: Any) -> torch.Tensor:
        """The last latent: what little this network heeds would be lost in 8 bits."""
        latents: list[torch.Tensor] = []
        options = {"steps": 2, "prompt": "", "on_step": lambda progress: latents.append(progress.step.x), **options}
        (result,) = ldm.variations(unclip[0], image, **options)
        assert result.image.size == (32, 32)
        return latents[-1]

    one = vary(picture(40, 30))
    assert torch.equal(one, vary(picture(40, 30)))
    others = [vary(picture(40, 30, 2)), vary(picture(40, 30), noise_level=700), vary(picture(40, 30), prompt="a cube")]
    assert all((a - b).abs().max() > 1e-5 for a, b in combinations([one, *others], 2))
    with pytest.raises(ValueError, match="noise level 1000"):
        ldm.variations(unclip[0], picture(8, 8), noise_level=1000)


def test_guidance_leads_away_from_no_embedding(unclip: tuple[LatentDiffusion, Any]) -> None:
    model = unclip[0]
    cond, embedding = model.condition([""]), torch.ones(1, 8)
    shown = model.add_hint(cond, embedding, 5, torch.zeros(1, 8))
    away = model.add_hint(cond, embedding, 5, torch.zeros(1, 8), negative=True)
    assert shown.y is not None and away.y is not None
    assert shown.y.abs().min() >= 0 and shown.y.any() and not away.y.any() and away.y.shape == shown.y.shape


def test_a_model_of_another_kind_says_so(twice: LatentDiffusion, unclip: tuple[LatentDiffusion, Any]) -> None:
    with pytest.raises(ValueError, match="no upscaler"):
        ldm.upscale(unclip[0], "a", picture(8, 8))
    with pytest.raises(ValueError, match="does not vary pictures"):
        ldm.variations(twice, picture(8, 8))


def test_original_files_with_and_without_the_image_tower(
    unclip: tuple[LatentDiffusion, dict[str, Any]], tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    from ldm.checkpoint.single_file import to_original

    model, tree = deepcopy(unclip[0]), unclip[1]
    model.image_augmentation.data_mean += 0.5
    tensors = to_original(model)
    tensors |= {"embedder.model.logit_scale": torch.ones(()), "noise_augmentor.betas": torch.ones(3)}
    save_file({k: v.clone() for k, v in tensors.items()}, tmp_path / "whole.safetensors")
    whole = load(tmp_path / "whole.safetensors", config=tree)
    assert all(torch.equal(v, whole.state_dict()[k]) for k, v in model.state_dict().items())
    (result,) = ldm.variations(whole, picture(20, 20), steps=1)

    lacking = {k: v.clone() for k, v in tensors.items() if not k.startswith(("embedder.", "noise_augmentor."))}
    save_file(lacking, tmp_path / "lacking.safetensors")
    without = load(tmp_path / "lacking.safetensors", config=tree)
    with pytest.raises(ValueError, match=r"holds no image tower.*embedder\.model\.visual"):
        ldm.variations(without, picture(20, 20))

    plain = {k: v for k, v in tensors.items() if not k.startswith("noise_augmentor.")}
    save_file({k: v.clone() for k, v in plain.items()}, tmp_path / "plain.safetensors")
    assert not load(tmp_path / "plain.safetensors", config=tree).image_augmentation.data_mean.any()
    tree["params"]["image_augmentation"]["params"]["measured"] = True  # then 0 would silently be wrong
    with pytest.raises(ValueError, match="data_mean"):
        load(tmp_path / "plain.safetensors", config=tree)


def test_a_file_may_borrow_parts_of_a_shipped_model(tmp_path: Path) -> None:
    scenes, tree = ldm.load("scenes"), load_config(Path(__file__).parents[1] / "configs" / "scenes.yaml")
    file, borrows = tmp_path / "variant.safetensors", {"autoencoder": "scenes", "text_encoder": "scenes"}
    scenes.unet.conv_out.bias.data += 1
    save(scenes, file, config=tree, dtype=torch.float16, borrows=borrows)
    assert file.stat().st_size < 2 * sum(p.numel() for p in scenes.unet.parameters()) + 200_000  # and names
    found = load(file, config=tree)
    assert torch.equal(found.unet.conv_out.bias, scenes.unet.conv_out.bias.half().float())
    for part in borrows:
        wanted = getattr(scenes, part).state_dict()
        assert all(torch.equal(v, wanted[k]) for k, v in getattr(found, part).state_dict().items())
    scenes.autoencoder.quant_conv.bias.data += 1
    with pytest.raises(ValueError, match="takes its autoencoder from another scenes"):
        save(scenes, file, config=tree, borrows=borrows)
    with pytest.raises(ValueError, match="'/etc/passwd', which is not shipped|no shipped model"):
        save(scenes, file, config=tree, borrows={"autoencoder": "/etc/passwd"})
