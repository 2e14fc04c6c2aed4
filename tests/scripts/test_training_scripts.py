"""The training and evaluation scripts: mistakes are one sentence, and a tiny run goes through."""

import errno
import json
import os
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

SCRIPTS = Path(__file__).parents[2] / "scripts"


def call(name, *argv, monkeypatch):
    monkeypatch.setattr(sys, "argv", [name, *map(str, argv)])
    monkeypatch.syspath_prepend(str(SCRIPTS))
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
    return exit.value.code


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "pictures").mkdir()
    for i in range(4):
        Image.new("RGB", (16, 16), (60 * i, 0, 200)).save(tmp_path / "pictures" / f"{i}.png")
    model = {"block_out_channels": [8, 8], "layers_per_block": 1, "mid_attention": False, "norm_num_groups": 4}
    steps = {"steps": 2, "batch_size": 2, "learning_rate": 1e-3, "preview_every": 2}
    params = {
        "crop": 16,
        "model": {"target": "AutoencoderKL", "params": model},
        "data": {"target": "ImageFolder", "params": {"path": str(tmp_path / "pictures"), "size": 16}},
        "recipe": {"target": "Recipe", "params": steps},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({"target": "AutoencoderExperiment", "params": params}))
    return path


def test_training_writes_weights_and_goes_on_where_it_stopped(recipe, tmp_path, capsys, monkeypatch):
    options = ("--config", recipe, "--outdir", tmp_path / "run", "--device", "cpu")
    assert call("train_autoencoder", *options, monkeypatch=monkeypatch) == 0
    assert (tmp_path / "run" / "model.safetensors").exists() and (tmp_path / "run" / "preview-000002.png").exists()
    assert call("train_autoencoder", *options, "--steps", 3, monkeypatch=monkeypatch) == 0
    assert "resumed at step 2" in capsys.readouterr().out


@pytest.mark.fault
@pytest.mark.parametrize("k", range(6))
def test_a_full_disk_is_a_sentence_and_a_training_goes_on_bit_for_bit(recipe, tmp_path, capsys, monkeypatch, k):
    import ldm.files

    options = ("--config", recipe, "--device", "cpu", "--outdir")
    assert call("train_autoencoder", *options, tmp_path / "whole", monkeypatch=monkeypatch) == 0
    replace, left = os.replace, [k]

    def full(*names):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(names[1]))
        return replace(*names)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(ldm.files.os, "replace", full)
        status = call("train_autoencoder", *options, run, monkeypatch=patch)
    said = capsys.readouterr().err.rstrip().splitlines()[-1]
    assert (status == 1 and said.startswith("failed: ") and "the disk is full" in said) or (
        status == 0 and left[0] >= 0
    )
    assert not list(run.rglob(".*"))
    assert call("train_autoencoder", *options, run, monkeypatch=monkeypatch) == 0
    contents = [{file.name: file.read_bytes() for file in folder.iterdir()} for folder in (tmp_path / "whole", run)]
    assert contents[0] == contents[1]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"crop"', '"crob"', "crob: unknown key; is 'crop' meant?"),
        ('"batch_size": 2', '"batch_size": 200', "use a smaller batch_size"),
        ("ImageFolder", "ImageFolded", "ImageFolder"),
        ("/pictures", "/nothing", "no picture in this folder"),
        ('"crop": 16', '"crop": 17', "crop 17 is not a multiple of 2"),
        ('"recipe"', '"recipes"', "not a training recipe"),
    ],
)
def test_mistakes_in_a_recipe_are_one_sentence(recipe, tmp_path, capsys, monkeypatch, old, new, words):
    recipe.write_text(recipe.read_text().replace(old, new, 1))
    status = call("train", "--config", recipe, "--outdir", tmp_path / "run", "--device", "cpu", monkeypatch=monkeypatch)
    error = capsys.readouterr().err
    assert status == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert words.split(";")[0] in error


def test_a_bad_picture_in_the_data_is_named(recipe, tmp_path, capsys, monkeypatch):
    bad = tmp_path / "pictures" / "2.png"
    bad.write_bytes(bad.read_bytes()[:-20])
    options = ("--config", recipe, "--outdir", tmp_path / "run", "--device", "cpu")
    assert call("train", *options, monkeypatch=monkeypatch) == 2
    said = capsys.readouterr().err.splitlines()[-1]  # the progress bar is above
    assert said.startswith(f"error: {bad}: the picture is broken")
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_missing_files_are_one_sentence(tmp_path, capsys, monkeypatch):
    assert call("train", "--config", tmp_path / "no.yaml", "--outdir", tmp_path / "run", monkeypatch=monkeypatch) == 2
    assert call("evaluate_scenes", "--model", tmp_path / "no.safetensors", monkeypatch=monkeypatch) == 2
    errors = capsys.readouterr().err.splitlines()
    assert "no.yaml" in errors[0] and "no.safetensors" in errors[1] and len(errors) == 2


def test_a_profile_of_training_is_five_steps_and_no_weights(recipe, tmp_path, capsys, monkeypatch):
    recipe.write_text(recipe.read_text().replace('"steps": 2', '"steps": 50'))
    options = ("--config", recipe, "--outdir", tmp_path / "run", "--device", "cpu", "--profile", tmp_path / "where")
    assert call("train_autoencoder", *options, monkeypatch=monkeypatch) == 0
    assert "stopped after what was profiled" in capsys.readouterr().out
    assert not (tmp_path / "run" / "model.safetensors").exists()
    rows = (tmp_path / "where" / "modules.md").read_text()
    assert "| model.encoder | 5 | " in rows and "| model.decoder | 5 | " in rows
    assert call("train_autoencoder", *options, monkeypatch=monkeypatch) == 2
    assert "where is there already; name a new folder" in capsys.readouterr().err
