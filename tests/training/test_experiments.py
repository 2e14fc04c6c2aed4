"""Each experiment, in miniature: it learns, it can be killed, and what it saves is what `load` reads."""

import json
import random
from pathlib import Path

import pytest
import torch
from PIL import Image

from ldm.checkpoint.load import load, load_part
from ldm.config import build
from ldm.data.captions import SYNONYMS, tell
from ldm.data.scenes import ATTRIBUTES, SHAPES, SKIES, sample_scene
from ldm.models.autoencoder import AutoencoderKL
from ldm.models.diffusion.denoiser import Conditioning, Denoiser
from ldm.models.diffusion.schedule import NoiseSchedule
from ldm.models.text_encoder import OpenCLIPTextEncoder
from ldm.pipeline import txt2img
from ldm.training.losses import autoencoder_loss, denoising_loss
from ldm.training.parts import carried_config, fill_part
from ldm.training.reading import WORD_CHANNELS, Noun, attribute_logits, last_token, read_right, reading_loss
from ldm.training.run import Run, read_recipe
from ldm.training.scene_experiments import roughened


def node(target, **params):
    return {"target": target, "params": params}


RECIPE = node("Recipe", steps=4, batch_size=4, learning_rate=1e-2, warmup=1, save_every=2, log_every=1, preview_every=4)
AUTOENCODER = node(
    "AutoencoderKL", block_out_channels=[8, 8], layers_per_block=1, mid_attention=False, norm_num_groups=4
)
TEXT = node("OpenCLIPTextEncoder", width=16, heads=2, layers=1, context_length=16, causal=False)
UNET = node(
    "UNet",
    block_out_channels=[8, 16],
    layers_per_block=1,
    attention_levels=[False, True],
    num_heads=2,
    context_dim=16,
    norm_num_groups=4,
)
MODEL = node(
    "LatentDiffusion",
    unet=UNET,
    autoencoder=AUTOENCODER,
    text_encoder=TEXT,
    schedule=node("NoiseSchedule"),
    parameterization="v",
    image_size=32,
)


@pytest.fixture
def folder(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(8):
        color = tuple(random.Random(i).choices(range(256), k=3))
        Image.new("RGB", (32, 32), color).save(pictures / f"field-{i}.png")
    return node("ImageFolder", path=str(pictures), size=32)


def written(path, tree):
    path.write_text(json.dumps(tree))  # JSON is YAML
    return path


def trained(path, folder, tree, steps=None):
    run = Run(written(path / "recipe.yaml", tree), folder, "cpu", {"steps": steps})
    reports = list(run.steps())
    return run, reports


def autoencoder_tree(data):
    return node("AutoencoderExperiment", model=AUTOENCODER, data=data, recipe=RECIPE, crop=16, tries=2)


@pytest.mark.long
def test_autoencoder_learns_measures_its_scale_and_is_read_back(tmp_path, folder):
    run, reports = trained(tmp_path, tmp_path / "run", autoencoder_tree(folder), steps=60)
    losses = [report.update.loss for report in reports]
    assert sum(losses[-10:]) < 1.4 * sum(losses[:5])  # ten against five: to less than 0.7
    file = run.save()
    autoencoder = load_part(file, AutoencoderKL)
    picture = torch.rand(2, 3, 32, 32) * 2 - 1
    torch.testing.assert_close(autoencoder.encode(picture).mean, run.trainer.ema.encode(picture).mean)
    data = run.experiment.data
    z = autoencoder.encode(torch.stack([data.image(i).float() / 127.5 - 1 for i in range(8)])).mode()
    assert z.std().item() == pytest.approx(1, rel=0.01) and abs(z.mean().item()) < 0.01


def test_a_decoder_that_learns_alone_leaves_latents_as_they_are(tmp_path, folder):
    first, _ = trained(tmp_path, tmp_path / "first", autoencoder_tree(folder))
    tree = autoencoder_tree(folder)
    tree["params"] |= {"start": str(first.save()), "train_encoder": False}
    second, _ = trained(tmp_path, tmp_path / "second", tree)
    a, b = load_part(first.save(), AutoencoderKL), load_part(second.save(), AutoencoderKL)
    picture = torch.rand(2, 3, 32, 32) * 2 - 1
    assert torch.equal(a.encode(picture).mean, b.encode(picture).mean)
    z = a.encode(picture).mean
    assert not torch.allclose(a.decode(z), b.decode(z))


@pytest.mark.long
def test_diffusion_takes_its_parts_from_files_and_draws(tmp_path, folder):
    run, _ = trained(tmp_path, tmp_path / "autoencoder", autoencoder_tree(folder))
    autoencoder = run.save()
    tree = node("DiffusionExperiment", model=MODEL, autoencoder=str(autoencoder), data=folder, recipe=RECIPE)
    run, reports = trained(tmp_path, tmp_path / "run", tree)
    file = run.save()
    loaded = load(file)
    assert loaded.autoencoder.scaling_factor == load_part(autoencoder, AutoencoderKL).scaling_factor != 1
    preview = Path(reports[-1].preview)
    assert Image.open(preview).size[0] > 4 * 32 and (tmp_path / "run" / "loss.png").exists()
    (result,) = txt2img(loaded, "a field", steps=3)
    assert result.image.size == (32, 32)
    further = node("DiffusionExperiment", model=MODEL, start=str(file), data=folder, recipe=RECIPE)
    again = Run(written(tmp_path / "recipe.yaml", further), tmp_path / "further", "cpu", {})
    torch.testing.assert_close(again.trainer.ema["unet"].conv_in.weight, loaded.unet.conv_in.weight)


def test_latents_are_kept_for_the_same_autoencoder_only(tmp_path, folder):
    experiment = build(node("DiffusionExperiment", model=MODEL, data=folder, recipe=RECIPE))
    kept = tmp_path / "latents.safetensors"
    experiment.prepare(tmp_path)
    first, written_at = experiment.latents.clone(), kept.stat().st_mtime_ns
    experiment.prepare(tmp_path)
    assert kept.stat().st_mtime_ns == written_at
    with torch.no_grad():
        experiment.model.autoencoder.quant_conv.bias += 1
    experiment.prepare(tmp_path)
    assert not torch.equal(experiment.latents, first)


def test_killed_in_the_middle_it_ends_with_the_same_weights(tmp_path, folder):
    whole, _ = trained(tmp_path, tmp_path / "whole", autoencoder_tree(folder))
    killed = Run(tmp_path / "recipe.yaml", tmp_path / "parts", "cpu", {})
    for report in killed.steps():
        if report.update.step == 3:
            break
    resumed = Run(tmp_path / "recipe.yaml", tmp_path / "parts", "cpu", {})
    assert resumed.resumed and resumed.trainer.step == 2
    list(resumed.steps())
    pairs = zip(whole.trainer.ema.parameters(), resumed.trainer.ema.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", ["grounding", "mending"])
def test_what_asks_for_scenes_needs_data_that_knows(folder, name):
    tree = node("DiffusionExperiment", model=MODEL, data=folder, recipe=RECIPE, **{name: 0.1})
    with pytest.raises(ValueError, match=f"use Scenes, or {name} 0"):
        build(tree)


def test_mended_scenes_come_last_with_a_mistake_and_the_whole_truth(tmp_path):
    data = node("Scenes", count=7, cache=str(tmp_path / "scenes"), complete=0.0)
    tree = node("DiffusionExperiment", model=MODEL, data=data, recipe=RECIPE, mending=0.5, caption_dropout=1.0)
    experiment = build(tree)
    experiment.prepare(tmp_path)
    batch, chosen = experiment.batch(0), experiment.indices(0)
    assert list(batch.scenes) == [experiment.data.scenes[i] for i in chosen] and len(batch.mistakes) == 2
    picture = experiment.data.mistaken(chosen[3])[None] / 127.5 - 1
    wrong = experiment.model.encode(picture).mode()[0]
    error = (batch.mistakes[1] - wrong).abs().max()  # float16, and GroupNorm's sums in another order
    assert error < 5e-3 and (batch.z[3] - wrong).abs().max() > 5 * error
    empty = experiment.model.text_encoder.tokenize([""])[0]
    assert [torch.equal(tokens, empty) for tokens in batch.tokens] == [True, True, False, False]
    assert experiment.loss(batch, torch.Generator().manual_seed(0)).isfinite()


def test_shipped_recipes_are_sound():
    from ldm.checkpoint.configs import CONFIGS
    from ldm.config import check, load_config

    for path in sorted((CONFIGS / "train").glob("*.yaml")):
        tree = load_config(path)
        if isinstance(tree["params"]["model"], str):
            tree["params"]["model"] = load_config(CONFIGS.parent / tree["params"]["model"])
        check(tree, str(path))
    assert read_recipe(CONFIGS / "train" / "judge.yaml", {"steps": 7})["params"]["recipe"]["params"]["steps"] == 7


def test_perfect_denoiser_has_no_loss_and_an_idle_one_the_target_variance():
    z = torch.randn(64, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    denoiser = Denoiser(torch.nn.Identity(), NoiseSchedule(), "v")

    def answer(network):
        denoiser.predict = network
        return denoising_loss(denoiser, z, Conditioning(), torch.Generator().manual_seed(1)).item()

    def perfect(x, sigma, cond):
        s = sigma[:, None, None, None]
        noise = (x - z) / s
        return (noise - s * z) / (s**2 + 1).sqrt()

    assert answer(perfect) < 1e-9
    assert answer(lambda x, sigma, cond: torch.zeros_like(x)) == pytest.approx(1, abs=0.1)  # v has unit variance


def test_mending_begins_between_truth_and_mistake_and_asks_for_the_truth():
    generator = torch.Generator().manual_seed(0)
    z, mistakes = torch.randn(8, 2, 4, 4, generator=generator), 1e4 * torch.ones(3, 2, 4, 4)
    denoiser, seen = Denoiser(torch.nn.Identity(), NoiseSchedule(), "v"), []

    def loss(believed):
        def answer(x, sigma, cond):
            seen.append((x, sigma))
            s = sigma[:, None, None, None]
            return ((x - believed) / s - s * believed) / (s**2 + 1).sqrt()  # the v of this x0

        denoiser.predict = answer
        return denoising_loss(denoiser, z, Conditioning(), torch.Generator().manual_seed(1), mistakes).item()

    assert loss(z) < 1e-4
    assert loss(torch.cat([z[:5], mistakes])) > 1e6
    x, sigma = seen[0]
    share = (x[5:] - z[5:]) / (mistakes - z[5:])  # noise is nothing beside these mistakes
    assert share.std(dim=(1, 2, 3)).max() < 2e-3 and share.min() > -2e-3 and share.max() < 1
    assert len(set(share.mean(dim=(1, 2, 3)).tolist())) == 3
    assert sigma[5:].min() >= 0.7 and sigma[5:].max() <= 9


def test_autoencoder_loss_weighs_each_term():
    torch.manual_seed(0)
    model, image = build(AUTOENCODER), torch.rand(2, 3, 16, 16) * 2 - 1

    def loss(**weights):
        zero = {"kl_weight": 0.0, "l1_weight": 0.0, "edge_weight": 0.0}
        return autoencoder_loss(model, image, torch.Generator().manual_seed(0), **(zero | weights)).item()

    posterior = model.posterior(image)
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(0))
    error = model.decoder(model.post_quant_conv(posterior.sample(noise))) - image
    plain = error.square().mean().item()
    assert loss() == pytest.approx(plain)
    assert loss(l1_weight=2.0) - plain == pytest.approx(2 * error.abs().mean().item(), rel=1e-4)
    assert loss(kl_weight=3.0) - plain == pytest.approx(3 * posterior.kl().mean().item() / 768, rel=1e-3)
    assert loss(edge_weight=1.0) > plain


def test_reading_right_has_no_loss_and_swapped_things_do():
    scene = next(s for s in map(sample_scene, range(100)) if len(s.things) == 2)
    nouns = [Noun(0, 3 + i, thing) for i, thing in enumerate(scene.things)]
    words = torch.full((2, WORD_CHANNELS), -15.0)
    for word, thing in zip(words, scene.things, strict=True):
        word[:2] = torch.tensor([thing.x, thing.z])
        for name, logits in attribute_logits(word[None]).items():
            logits[0, ATTRIBUTES[name].index(getattr(thing, name))] = 15  # a view of `words`
    sky = torch.full((1, len(SKIES)), -15.0)
    sky[0, SKIES.index(scene.sky)] = 15
    assert reading_loss(words, sky, nouns, [scene]) < 1e-3
    assert read_right(words, sky, nouns, [scene]) == (1.0, 1.0)
    assert reading_loss(words.flip(0), sky, nouns, [scene]) > 1
    assert read_right(words.flip(0), sky, nouns, [scene]) == (0.0, 0.0)


@pytest.mark.long
def test_a_thing_is_asked_for_at_the_noun_that_first_names_it():
    nouns = {word for shape in SHAPES for word in SYNONYMS.get(shape, (shape,))}
    for seed in range(100):
        scene = sample_scene(seed)
        told = tell(scene, random.Random(seed), complete=seed % 2 == 0)
        assert len(told.ends) == len(scene.things)
        for thing, end in zip(scene.things, told.ends, strict=True):
            noun = next(word for word in nouns if told.text[:end].endswith(word))
            assert noun in SYNONYMS.get(thing.shape, (thing.shape,))
            tokens = build(TEXT).tokenize([told.text, told.text[:end]])
            place = last_token(tokens[1])
            assert torch.equal(tokens[0, : place + 1], tokens[1, : place + 1])


def test_tower_trained_on_captions_is_read_back(tmp_path):
    tree = node("ReadingExperiment", model=TEXT, recipe=RECIPE)
    run, reports = trained(tmp_path, tmp_path / "run", tree)
    assert "captions read without an error" in reports[-1].preview
    tower = load_part(run.save(), OpenCLIPTextEncoder)
    tokens = tower.tokenize(["a red cube"])
    torch.testing.assert_close(tower(tokens).states, run.trainer.ema.text_encoder(tokens).states)


def test_roughened_pictures_keep_their_mean_and_lose_their_crispness():
    pictures = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    rough = roughened(pictures, torch.Generator().manual_seed(1))
    assert (rough.mean(dim=(1, 2, 3)) - pictures.mean(dim=(1, 2, 3))).abs().max() < 0.02
    crispness = rough.diff(dim=3).abs().mean(dim=(1, 2, 3)) / pictures.diff(dim=3).abs().mean(dim=(1, 2, 3))
    assert crispness.min() < 0.6 and crispness.max() > 0.85  # each by its own amount
    assert torch.equal(rough, roughened(pictures, torch.Generator().manual_seed(1)))


def test_pictures_are_roughened_in_mixed_precision_too():
    pictures = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    plain = roughened(pictures, torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = roughened(pictures, torch.Generator().manual_seed(1))
    torch.testing.assert_close(mixed, plain, atol=0.02, rtol=0)


def test_what_a_model_is_besides_its_networks_stays_as_training_ends(folder):
    tree = {**MODEL, "params": {**MODEL["params"], "clip_x0": True, "eta": 1.5, "guidance_scale": 2.0}}
    experiment = build(node("DiffusionExperiment", model=tree, data=folder, recipe=RECIPE))
    made = experiment.result(experiment.trained)
    assert made.denoiser.clip_x0 and (made.eta, made.guidance_scale) == (1.5, 2.0)
    before, after = vars(experiment.model), vars(made)
    apart = {"_modules", "denoiser"}
    assert {k: v for k, v in after.items() if k not in apart} == {k: v for k, v in before.items() if k not in apart}


def test_a_training_may_begin_with_a_model_that_borrows_its_parts():
    tower = build(carried_config("scenes-inpainting", "text_encoder"))
    fill_part(tower, "scenes-inpainting", "text_encoder")
    shipped = load("scenes").text_encoder.state_dict()
    assert shipped.keys() == tower.state_dict().keys()
    assert all(torch.equal(value, shipped[name]) for name, value in tower.state_dict().items())
