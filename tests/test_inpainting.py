"""`inpaint` and `depth2img`, with miniatures of the models they are for, and against diffusers' pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ldm
from ldm import hints, images, masks
from ldm.config import build, load_config
from ldm.generate import generate
from ldm.hints import Hints
from ldm.items import Item
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.noise import starting_noise
from ldm.sampling import sample
from ldm.settings import Settings, resolve
from ldm.sizes import canvas_size

RNG = np.random.default_rng(6)
ODD = Image.fromarray(RNG.integers(0, 256, (29, 43, 3), dtype=np.uint8))  # no side is a multiple of 8
PICTURE = ODD.resize((40, 32))
Model = Any


def miniature(in_channels: int) -> LatentDiffusion:
    tree = load_config(Path(__file__).parent / "tiny.yaml")
    tree["params"]["unet"]["params"]["in_channels"] = in_channels
    torch.manual_seed(0)
    model = build(tree, "tiny.yaml", expected=LatentDiffusion).eval()
    for parameter in model.unet.parameters():  # some are zero at first, and a network that answers 0 tests nothing
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="module")
def plain() -> LatentDiffusion:
    return miniature(4)


@pytest.fixture(scope="module")
def painter() -> LatentDiffusion:
    return miniature(9)


@pytest.fixture(scope="module")
def deep() -> LatentDiffusion:
    return miniature(5)


@pytest.fixture(params=[4, 9])
def either(request: pytest.FixtureRequest, plain: Model, painter: Model) -> LatentDiffusion:
    """A model of pictures, and one that is shown the mask."""
    return {4: plain, 9: painter}[request.param]


def odd_mask(size: tuple[int, int] = ODD.size) -> Image.Image:
    """A ring, a line and a dot, on no cell's border."""
    mask = np.zeros(size[::-1], np.uint8)
    y, x = np.mgrid[: size[1], : size[0]]
    mask[abs(np.hypot(x - 13, y - 14) - 7) < 2] = 255
    mask[3, 25:40] = mask[27, 38] = 200
    return Image.fromarray(mask)


def outside(mask: Image.Image) -> np.ndarray:
    return np.asarray(mask) < 128


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "heun", "lms", "unipc"])
def test_the_pixels_outside_are_the_pictures_bit_for_bit(either: Model, sampler: str) -> None:
    mask, old = odd_mask(), np.asarray(ODD)
    results = list(
        ldm.inpaint(either, ["a", "b"], ODD, mask, steps=3, sampler=sampler, num_images=2, batch_size=3, seed=5)
    )
    assert [result.seed for result in results] == [5, 6, 7, 8]
    for result in results:
        new = np.asarray(result.image)
        assert new.shape == old.shape and np.array_equal(new[outside(mask)], old[outside(mask)])
        assert (new[~outside(mask)] != old[~outside(mask)]).mean() > 0.9
    assert results[0].image.tobytes() != results[1].image.tobytes()


@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0])
def test_blur_and_strength(either: Model, strength: float) -> None:
    mask, old = odd_mask(), np.asarray(ODD)
    (result,) = ldm.inpaint(either, "a", ODD, mask, steps=3, mask_blur=2, strength=strength)
    kept = np.asarray(masks.canvas(ODD, mask, mask_blur=2).paste) == 0
    assert 0.05 < kept.mean() < outside(mask).mean()
    assert np.array_equal(np.asarray(result.image)[kept], old[kept])
    if strength == 0:  # the autoencoder's round trip inside
        padded = masks.canvas(ODD, mask).sized(48, 32, 8).image
        with torch.inference_mode():
            (trip,) = images.to_images(either.decode(hints.encode(either, padded)))
        inside = np.asarray(mask) >= 128
        assert np.array_equal(np.asarray(result.image)[inside], np.asarray(trip)[:29, :43][inside])


def test_outpainting_keeps_the_old_pixels_but_for_a_blend(either: Model) -> None:
    old = np.asarray(ODD)
    (result,) = ldm.inpaint(either, "a", ODD, outpaint=(7, 0, 16, 5), steps=2)
    new = np.asarray(result.image)
    assert new.shape == (34, 66, 3) and np.array_equal(new[:29, 7:50], old)
    (result,) = ldm.inpaint(either, "a", ODD, outpaint=(7, 0, 16, 5), steps=2, mask_blur=2)
    blended = np.asarray(result.image)[:29, 7:50]
    assert np.array_equal(blended[:25, 4:-4], old[:25, 4:-4])
    for seam in (blended[:, :4] != old[:, :4], blended[:, -4:] != old[:, -4:], blended[-4:] != old[-4:]):
        assert seam.mean() > 0.5


def test_a_plain_model_is_held_to_the_old_latent_at_every_step(plain: Model) -> None:
    canvas = masks.canvas(PICTURE, odd_mask(PICTURE.size).point(lambda v: v if v == 255 else 0))
    settings = resolve(plain, height=32, width=40, steps=4, strength=1.0, eta=1.0)
    drawn_from = hints.from_mask(plain, canvas, settings)
    touched = np.asarray(canvas.mask).reshape(4, 8, 5, 8).any((1, 3))  # by cell
    assert np.array_equal(drawn_from.mask[0, 0].numpy() == 1, touched) and 0 < touched.sum() < 20
    z, keep = hints.encode(plain, PICTURE), ~torch.from_numpy(touched)
    with torch.inference_mode():
        steps = list(sample(plain, [Item("a"), Item("b", seed=1)], settings, drawn_from))
    for step in steps:
        off = ((step.x - z) / max(step.sigma, 1))[..., keep]  # z + sigma * noise
        assert off.std() == pytest.approx(min(step.sigma, 1), rel=0.3, abs=1e-6)
        assert torch.equal(step.x0[..., keep], z.expand(2, -1, -1, -1)[..., keep])
    assert torch.equal(steps[-1].x[..., keep], z.expand(2, -1, -1, -1)[..., keep])
    assert not torch.isclose(steps[-1].x[..., ~keep], z.expand(2, -1, -1, -1)[..., ~keep]).any()


def shown(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What the network is given from now on."""
    seen: list[torch.Tensor] = []
    forward = model.unet.forward
    monkeypatch.setattr(model.unet, "forward", lambda x, *a, **k: (seen.append(x.clone()), forward(x, *a, **k))[1])
    return seen


def test_an_inpainting_network_sees_mask_and_masked_picture(painter: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, mask = shown(painter, monkeypatch), odd_mask(PICTURE.size)
    list(ldm.inpaint(painter, "a", PICTURE, mask, steps=1, guidance_scale=2.0, seed=3))
    (x,) = seen
    assert x.shape == (2, 9, 4, 5) and torch.equal(x[0], x[1])  # with the prompt and without
    hard = torch.from_numpy(np.asarray(mask) >= 128).float()[None, None]
    gray = images.to_tensor(PICTURE).masked_fill(hard == 1, 0.0)
    with torch.inference_mode():
        expected = painter.encode(gray).mode()
    assert torch.equal(x[0, 4], hard[0, 0, ::8, ::8]) and x[0, 4].any()
    assert torch.allclose(x[:1, 5:], expected, atol=1e-6)
    assert torch.allclose(x[:1, :4], starting_noise([3], (4, 4, 5)), atol=1e-5)


def test_a_dab_between_the_samples_of_the_mask_is_shown_all_the_same(painter: Model) -> None:
    mask = Image.new("L", PICTURE.size, 0)
    mask.paste(255, (11, 11, 14, 14))
    drawn_from = hints.from_mask(painter, masks.canvas(PICTURE, mask), resolve(painter, height=32, width=40))
    assert drawn_from.concat[0, 0].nonzero().tolist() == [[1, 1]]


@pytest.mark.parametrize(
    ("size", "given", "expected"),
    [
        ((32, 40), {}, (40, 32)),
        ((43, 29), {}, (32, 48)),
        ((33, 33), {}, (40, 40)),
        ((400, 100), {}, (16, 64)),  # over four times the trained area: scaled
        ((43, 29), {"width": 80}, (56, 80)),
    ],
)
def test_the_size_of_a_canvas(
    plain: Model, size: tuple[int, int], given: dict[str, int], expected: tuple[int, int]
) -> None:
    assert canvas_size(plain, size, **given) == expected


def test_a_given_size_scales_picture_and_mask(either: Model) -> None:
    mask = Image.new("L", ODD.size, 0)
    mask.paste(255, (0, 0, 20, 29))
    (result,) = ldm.inpaint(either, "a", ODD, mask, steps=1, width=64, height=40)
    assert result.image.size == (64, 40)
    kept = slice(None), slice(40, None)
    assert np.array_equal(np.asarray(result.image)[kept], np.asarray(images.fit(ODD, 64, 40))[kept])


def test_files_and_transparency(either: Model, tmp_path: Path) -> None:
    holed = ODD.convert("RGBA")
    holed.paste((0, 0, 0, 0), (5, 5, 30, 20))
    holed.save(tmp_path / "holed.png")
    mask = Image.new("L", ODD.size, 0)
    mask.paste(255, (5, 5, 30, 20))
    mask.save(tmp_path / "mask.png")
    images.to_rgb(holed).save(tmp_path / "flat.png")
    (one,) = ldm.inpaint(either, "a", tmp_path / "holed.png", steps=2)
    (two,) = ldm.inpaint(either, "a", str(tmp_path / "flat.png"), str(tmp_path / "mask.png"), steps=2)
    assert one.image.tobytes() == two.image.tobytes()
    assert np.array_equal(np.asarray(one.image)[20:], np.asarray(ODD)[20:])


def test_a_model_gets_what_it_was_trained_to_be_shown(plain: Model, painter: Model, deep: Model) -> None:
    mask = Image.new("L", PICTURE.size, 255)
    for model in (painter, deep):
        script = {9: "inpaint", 5: "depth2img"}[model.unet.in_channels]
        with pytest.raises(ValueError, match=f"draw with scripts/{script}.py"):
            next(ldm.txt2img(model, "a", steps=1))
        with pytest.raises(ValueError, match=f"draw with scripts/{script}.py"):
            next(ldm.img2img(model, "a", PICTURE, steps=1))
    with pytest.raises(ValueError, match=r"takes 1 channels .* here are 5; .* scripts/depth2img.py"):
        next(ldm.inpaint(deep, "a", PICTURE, mask, steps=1))
    with pytest.raises(ValueError, match=r"takes 0 channels .* here are 1; .* scripts/txt2img.py"):
        next(ldm.depth2img(plain, "a", slope(), steps=1))
    with pytest.raises(ValueError, match="takes 5 channels beside the latent, and here are 2"):
        next(generate(painter, [Item("a")], resolve(painter, steps=1), Hints(concat=torch.zeros(1, 2, 4, 4))))


# --- depth -------------------------------------------------------------------------------------------------------


def slope(size: tuple[int, int] = (40, 32)) -> Image.Image:
    """Brighter to the right and, a little, downward."""
    y, x = np.mgrid[: size[1], : size[0]]
    return Image.fromarray((1000 + 300 * x + 7 * y).astype(np.uint16))


def depth_shown(model: Model, depth: Image.Image, image: Image.Image | None = None, **size: int) -> torch.Tensor:
    settings = resolve(model, None if image is None else 0.5, **{"height": 32, "width": 40, **size})
    return hints.from_depth(model, depth, settings, image).concat[0, 0]


def test_depth_is_scaled_to_its_own_span_with_all_16_bits(deep: Model, tmp_path: Path) -> None:
    found = depth_shown(deep, slope())
    assert found.shape == (4, 5) and found.min() == -1 and found.max() == 1
    assert (found.diff(dim=1) > 0).all() and (found.diff(dim=0) > 0).all()
    faint = Image.fromarray((np.asarray(slope()) // 300 + 30000).astype(np.uint16))  # one gray of 8 bits
    assert torch.allclose(depth_shown(deep, faint), found, atol=0.05)
    slope().save(tmp_path / "slope.png")
    loaded = images.load_as(tmp_path / "slope.png", images.to_gray)
    assert torch.equal(depth_shown(deep, loaded), found)
    eight = Image.fromarray(np.asarray(slope()).astype(np.float32) / 256).convert("L")
    for other in (eight, eight.convert("RGB"), eight.convert("LA")):
        assert torch.allclose(depth_shown(deep, other), found, atol=0.05)


def test_the_map_covers_the_picture_and_is_cropped_with_it(deep: Model) -> None:
    whole = depth_shown(deep, slope((80, 64)), PICTURE)
    assert torch.allclose(depth_shown(deep, slope((64, 64)), PICTURE), whole, atol=0.05)  # MiDaS' maps are square
    wide = depth_shown(deep, slope((160, 64)), PICTURE.resize((80, 32)), width=40)  # the middle half of it is left
    cut = depth_shown(deep, slope((160, 64)).crop((40, 0, 120, 64)), PICTURE, width=40)
    assert torch.allclose(wide, cut, atol=1e-5)


def test_depth_with_and_without_a_picture(deep: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = shown(deep, monkeypatch)
    (plain,) = ldm.depth2img(deep, "a", slope(), steps=2, seed=3)
    assert plain.image.size == (40, 32) and plain.settings.strength is None
    assert all(torch.equal(x[0, 4], depth_shown(deep, slope())) for x in seen)
    assert torch.allclose(seen[0][:1, :4], starting_noise([3], (4, 4, 5)), atol=1e-5)
    (begun,) = ldm.depth2img(deep, "a", slope(), ODD, steps=4, seed=3)
    assert begun.image.size == (40, 32) and begun.settings.sampled_steps == 3
    (mirrored,) = ldm.depth2img(deep, "a", slope().transpose(Image.Transpose.FLIP_LEFT_RIGHT), steps=2, seed=3)
    assert mirrored.image.tobytes() != plain.image.tobytes()


@pytest.mark.parametrize("level", [0, 77])
def test_a_flat_map_is_refused(deep: Model, level: int) -> None:
    with pytest.raises(ValueError, match=f"the depth map is {level} everywhere"):
        ldm.depth2img(deep, "a", Image.new("L", (32, 32), level))
    with pytest.raises(ValueError, match="NaN or infinity"):
        ldm.depth2img(deep, "a", Image.fromarray(np.full((32, 32), np.nan, np.float32)))


# --- diffusers ---------------------------------------------------------------------------------------------------


def parts(model: Model, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The same networks in diffusers' classes, strictly loaded, with ours of the latent: its mean, not a sample."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    unet = UNet2DConditionModel(
        in_channels=model.unet.in_channels,
        out_channels=4,
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,  # which is how many heads there are
        cross_attention_dim=16,
        sample_size=64,
    )
    unet.load_state_dict(model.unet.state_dict(), strict=True)
    vae = AutoencoderKL(
        latent_channels=4,
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=1.0,
    )
    vae.load_state_dict(model.autoencoder.state_dict(), strict=True)
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )
    return {"unet": unet, "vae": vae, "scheduler": scheduler, "text_encoder": None, "tokenizer": None}


def ours(model: Model, settings: Settings, drawn_from: Hints) -> torch.Tensor:
    with torch.inference_mode():
        return list(sample(model, [Item("a red cube", "fog", 7)], settings, drawn_from))[-1].x


def called(pipe: Any, model: Model, **how: Any) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        prompt_embeds=model.condition(["a red cube"]).context.detach(),
        negative_prompt_embeds=model.condition(["fog"]).context.detach(),
        num_inference_steps=4,
        guidance_scale=3.0,
        output_type="latent",
        **how,
    )[0]


def test_inpainting_gives_what_diffusers_gives(painter: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import StableDiffusionInpaintPipeline

    mask = odd_mask(PICTURE.size)
    settings = resolve(painter, height=32, width=40, steps=4, spacing="trailing", strength=1.0)
    found = ours(painter, settings, hints.from_mask(painter, masks.canvas(PICTURE, mask), settings))
    pipe = StableDiffusionInpaintPipeline(
        **parts(painter, monkeypatch), safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    noise = starting_noise([7], (4, 4, 5))
    wanted = called(pipe, painter, image=PICTURE, mask_image=mask, height=32, width=40, latents=noise, strength=1.0)
    assert (found - wanted).norm() / wanted.norm() < 1e-3
    other = ours(painter, settings, hints.from_mask(painter, masks.canvas(PICTURE, mask.rotate(180)), settings))
    assert (other - wanted).norm() / wanted.norm() > 1e-2


def test_depth_gives_what_diffusers_gives(deep: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import StableDiffusionDepth2ImgPipeline

    depth = Image.fromarray(RNG.random((48, 60)).astype(np.float32))
    settings = resolve(deep, height=32, width=40, steps=4, spacing="trailing", strength=0.75)
    found = ours(deep, settings, hints.from_depth(deep, depth, settings, PICTURE))
    pipe = StableDiffusionDepth2ImgPipeline(**parts(deep, monkeypatch), depth_estimator=None, feature_extractor=None)
    wanted = called(
        pipe,
        deep,
        image=PICTURE,
        depth_map=torch.from_numpy(np.array(depth))[None],
        strength=0.75,
        generator=torch.Generator().manual_seed(7),
    )
    assert (found - wanted).norm() / wanted.norm() < 1e-3
    turned = hints.from_depth(deep, depth.rotate(180), settings, PICTURE)
    assert (ours(deep, settings, turned) - wanted).norm() / wanted.norm() > 1e-2
