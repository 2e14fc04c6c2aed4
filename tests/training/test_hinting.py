"""Hints of a training: what is shown is what the model will be shown, and it learns to use it."""

import json
import random
from pathlib import Path

import pytest
import torch
from PIL import Image

from ldm.checkpoint.configs import CONFIGS
from ldm.checkpoint.load import load
from ldm.checkpoint.read import CheckpointError
from ldm.checkpoint.write import write
from ldm.config import build, load_config
from ldm.models.diffusion.denoiser import Conditioning
from ldm.modules.unet import UNet
from ldm.pipeline import upscale
from ldm.training.hinting import LowResolutionHint, MaskHint, draw_mask, masked_concat, reduced
from ldm.training.parts import carried_config, fill_unet, part_tensors
from ldm.training.run import Run


def node(target, **params):
    return {"target": target, "params": params}


RECIPE = node("Recipe", steps=4, batch_size=4, learning_rate=1e-2, warmup=1, save_every=2, log_every=1, preview_every=4)
AUTOENCODER = node(
    "AutoencoderKL", block_out_channels=[8, 8], layers_per_block=1, mid_attention=False, norm_num_groups=4
)
LOW = node("NoiseAugmentation", schedule=node("NoiseSchedule", beta_start=1e-4, beta_end=0.02), max_level=99)


def model(in_channels=4, low_resolution=None, **unet):
    """An autoencoder of factor 2 and a UNet without text, for pictures of 16 x 16."""
    unet = node(
        "UNet",
        in_channels=in_channels,
        block_out_channels=[8, 16],
        layers_per_block=1,
        attention_levels=[False, True],
        num_heads=2,
        norm_num_groups=4,
        **unet,
    )
    return node(
        "LatentDiffusion",
        unet=unet,
        autoencoder=AUTOENCODER,
        text_encoder=node("NoText"),
        schedule=node("NoiseSchedule"),
        parameterization="v",
        image_size=16,
        guidance_scale=1.0,
        low_resolution=low_resolution,
    )


UPSCALER = model(in_channels=7, num_classes=100, low_resolution=LOW)
INPAINTER = model(in_channels=9)


@pytest.fixture
def folder(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(8):
        color = tuple(random.Random(i).choices(range(256), k=3))
        Image.new("RGB", (16, 16), color).save(pictures / f"field-{i}.png")
    return node("ImageFolder", path=str(pictures), size=16)


def trained(path, tree, steps=None, name="run"):
    file = path / f"{name}.yaml"
    file.write_text(json.dumps(tree))  # JSON is YAML
    run = Run(file, path / name, "cpu", {"steps": steps})
    return run, list(run.steps())


@pytest.mark.long
@pytest.mark.parametrize(("tree", "hint"), [(UPSCALER, "LowResolutionHint"), (INPAINTER, "MaskHint")])
def test_it_learns_previews_and_is_read_back(tmp_path, folder, tree, hint):
    recipe = {**RECIPE, "params": {**RECIPE["params"], "batch_size": 8, "preview_every": 50}}
    experiment = node("DiffusionExperiment", model=tree, data=folder, recipe=recipe, hint=node(hint))
    run, reports = trained(tmp_path, experiment, steps=50)
    losses = [report.update.loss for report in reports]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    with Image.open(reports[-1].preview) as sheet:
        assert sheet.size == (4 * 18 + 2, 2 * 18 + 2)  # shown above, drawn below
    loaded = load(run.save())
    if hint == "LowResolutionHint":
        (result,) = upscale(loaded, "", Image.new("RGB", (11, 7)), steps=2)
        assert result.image.size == (22, 14)
    assert (loaded.low_resolution is None) == (hint == "MaskHint")


def test_the_low_resolution_hint_is_the_picture_made_smaller(tmp_path):
    upscaler, pictures = build(UPSCALER), torch.rand(5, 3, 16, 16) * 2 - 1
    cond = LowResolutionHint()(upscaler, Conditioning(), pictures, torch.Generator().manual_seed(0))
    again = LowResolutionHint()(upscaler, Conditioning(), pictures, torch.Generator().manual_seed(0))
    assert torch.equal(cond.concat, again.concat) and cond.concat.shape == (5, 3, 8, 8)
    assert len(set(cond.y.tolist())) > 1 and cond.y.max() < 100
    small = [reduced(pictures, 2, scaling) for scaling in ("area", "bilinear", "bicubic")]
    signal = upscaler.low_resolution.schedule.alphas_cumprod[cond.y].sqrt()
    for i, level in enumerate(cond.y.tolist()):
        spread = (1 - float(signal[i]) ** 2) ** 0.5
        off = min((cond.concat[i] - float(signal[i]) * low[i]).std() for low in small)
        assert off == pytest.approx(spread, rel=0.25), level  # the noise of its level, and nothing else
    assert all((low.mean(dim=(2, 3)) - pictures.mean(dim=(2, 3))).abs().max() < 0.05 for low in small)


def test_masks_and_what_is_left_of_the_picture():
    inpainter = build(INPAINTER)
    picture, mask = torch.rand(1, 3, 16, 16) * 2 - 1, torch.zeros(1, 1, 16, 16)
    mask[..., 4:10, 8:] = 1
    concat = masked_concat(inpainter, picture, mask)
    assert torch.equal(concat[:, :1], mask[..., ::2, ::2])  # nearest
    other = torch.where(mask > 0, torch.rand_like(picture), picture)
    assert torch.equal(concat, masked_concat(inpainter, other, mask))  # nothing of what is under it
    assert torch.equal(concat[:, 1:], inpainter.encode(picture * (1 - mask)).mode())
    cond = MaskHint()(inpainter, Conditioning(), picture.expand(6, -1, -1, -1), torch.Generator().manual_seed(0))
    assert len({row[0].numpy().tobytes() for row in cond.concat}) > 3


def test_masks_are_of_every_kind():
    masks = [draw_mask(32, 48, seed) for seed in range(200)]
    assert all(mask.shape == (1, 1, 32, 48) and set(mask.unique().tolist()) <= {0.0, 1.0} for mask in masks)
    shares = torch.stack([mask.mean() for mask in masks])
    assert shares.min() > 0.01 and (shares == 1).float().mean().item() == pytest.approx(0.1, abs=0.06)
    assert 0.2 < shares.median() < 0.6 and torch.equal(masks[7], draw_mask(32, 48, 7))


@pytest.mark.long
def test_parts_come_out_of_a_whole_models_file(tmp_path, folder):
    run, _ = trained(tmp_path, node("DiffusionExperiment", model=model(), data=folder, recipe=RECIPE))
    file = str(run.save())
    whole = load(file)
    assert carried_config(file, "autoencoder")["target"] == "AutoencoderKL"
    assert carried_config(file)["target"] == "LatentDiffusion"
    assert part_tensors(file, "autoencoder").keys() == whole.autoencoder.state_dict().keys()

    tree = node("DiffusionExperiment", model=INPAINTER, autoencoder=file, unet=file, data=folder, recipe=RECIPE)
    tree["params"]["hint"] = node("MaskHint")
    begun, _ = trained(tmp_path, tree, steps=1, name="variant")
    for key, value in begun.experiment.model.autoencoder.state_dict().items():
        assert torch.equal(value, whole.autoencoder.state_dict()[key])

    wider = build(INPAINTER)
    fill_unet(wider.unet, file)
    x, t, shown = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 500.0]), torch.randn(2, 5, 8, 8)
    with torch.no_grad():  # at first it does not look at what it is shown
        torch.testing.assert_close(wider.unet.eval()(torch.cat([x, shown], dim=1), t), whole.unet(x, t))
    fill_unet(build(UPSCALER).unet, file)  # brings the levels' embedding itself


@pytest.mark.usefixtures("no_grad")
def test_a_unet_may_attend_elsewhere_than_the_one_it_begins_with(tmp_path: Path) -> None:
    """More of it adds nothing at first, what it lacks is left out; but a file of half an attention is none."""

    def made(levels: tuple[bool, bool], depth: tuple[int, int]) -> UNet:
        torch.manual_seed(0)
        widths = {"block_out_channels": (8, 8), "layers_per_block": 1, "num_heads": 2, "norm_num_groups": 4}
        unet = UNet(**widths, context_dim=6, attention_levels=levels, transformer_depth=depth).eval()
        for parameter in unet.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        return unet

    given = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 500.0]), torch.randn(2, 5, 6)
    few, deep = made((False, True), (1, 1)), made((False, True), (1, 2))
    file = str(tmp_path / "few.safetensors")
    write(file, few.state_dict(), {})
    more = UNet(
        block_out_channels=(8, 8),
        layers_per_block=1,
        num_heads=2,
        norm_num_groups=4,
        context_dim=6,
        attention_levels=(True, True),
        transformer_depth=(1, 2),
    ).eval()
    fill_unet(more, file)
    assert few(*given).abs().max() > 0.1 and torch.equal(more(*given), few(*given))
    fill_unet(deep, file)
    assert torch.equal(deep(*given), few(*given))

    write(tmp_path / "deep.safetensors", made((True, True), (1, 2)).state_dict(), {})
    fill_unet(few, str(tmp_path / "deep.safetensors"))
    for name, value in few.state_dict().items():
        assert torch.equal(value, made((True, True), (1, 2)).state_dict()[name])

    lacking = {name: tensor for name, tensor in few.state_dict().items() if not name.endswith("attn2.to_q.weight")}
    write(tmp_path / "lacking.safetensors", lacking, {})
    with pytest.raises(CheckpointError, match="attn2.to_q.weight"):
        fill_unet(more, str(tmp_path / "lacking.safetensors"))


def test_the_recipe_of_inpainting_begins_with_the_shipped_unet() -> None:
    """Whatever that attends to by now."""
    recipe = load_config(CONFIGS / "train" / "scenes-inpainting.yaml")["params"]
    assert recipe["unet"] == "scenes"
    unet = build(load_config(CONFIGS / "scenes-inpainting.yaml")).unet
    fill_unet(unet, "scenes")
    shipped = part_tensors("scenes", "unet")
    assert torch.equal(unet.mid_block.resnets[0].conv1.weight, shipped["mid_block.resnets.0.conv1.weight"].float())
