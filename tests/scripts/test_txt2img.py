from __future__ import annotations

import io
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.checkpoint.read import read
from ldm.checkpoint.write import write
from ldm.modules.packed import is_packable
from ldm.png import read_request

Run = Callable[..., int]
Capture = pytest.CaptureFixture[str]
SCRIPTS = Path(__file__).parents[2] / "scripts"
DRAW = ("--prompt", "a red cube", "--steps", 2)


def files(folder: str = "outputs") -> list[str]:
    return sorted(name for name in os.listdir(folder) if not name.startswith("job-"))


def pixels(path: str | Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


@pytest.mark.parametrize("script", ["txt2img.py", "img2img.py", "inpaint.py", "depth2img.py", "sample.py"])
def test_help_imports_nothing_heavy(script: str) -> None:
    code = (
        "import sys, runpy; sys.argv = ['x', '--help']\n"
        f"try: runpy.run_path({str(SCRIPTS / script)!r}, run_name='__main__')\n"
        "except SystemExit as e: assert not e.code\n"
        "assert not {'torch', 'numpy', 'PIL', 'tqdm', 'open_clip'} & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS), "COLUMNS": "80"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("--prompt" in done.stdout) == (script != "sample.py") and max(map(len, done.stdout.splitlines())) <= 80


def test_names_known_to_the_command_line_are_the_librarys() -> None:
    import _kinds
    import _options
    import _record

    from ldm.items import MAX_SEED
    from ldm.settings import MAX_STEPS

    assert _options.PRECISIONS == tuple(_record.DTYPES)
    assert _kinds.MAX_SEED == MAX_SEED and MAX_STEPS == 1000


def test_one_picture(txt2img: Run, capsys: Capture) -> None:
    assert txt2img(*DRAW, "--seed", 7) == 0
    assert files() == ["00000-7.png"]  # and no grid
    out = capsys.readouterr().out
    assert "device: cpu" in out and out.endswith("picture: outputs/00000-7.png\n")
    request = read_request("outputs/00000-7.png")
    assert request["prompt"] == "a red cube" and request["settings"]["steps"] == 2
    assert request["settings"]["guidance_scale"] == 3.0 and request["settings"]["spacing"] == "uniform"
    with Image.open("outputs/00000-7.png") as image:
        text = image.text["parameters"]
    assert text.startswith(
        "a red cube\nSteps: 2, Sampler: DDIM, Schedule type: DDIM, CFG scale: 3, Seed: 7, Size: 32x32, "
    )
    assert f"Model hash: {request['model']['sha256'][:10]}, Model: tiny, Eta: 0, Version: ldm " in text


def test_batches_iterations_grid_and_the_same_pictures_alone(txt2img: Run, capsys: Capture) -> None:
    """Of 48 x 64 pixels: group norms over the two or three numbers that smaller ones come to magnify every last bit."""
    assert txt2img(*DRAW, "--n_samples", 2, "--n_iter=2", "--seed", 5, "--H", 48, "--width", 64) == 0
    assert files() == ["00000-5.png", "00001-6.png", "00002-7.png", "00003-8.png", "grid-00000.png"]
    with Image.open("outputs/grid-00000.png") as grid:
        assert grid.size == (2 * 66 + 2, 2 * 50 + 2)
    assert "4 pictures: outputs/00000-5.png … outputs/00003-8.png\ngrid: " in capsys.readouterr().out
    assert txt2img(*DRAW, "--seed", 8, "--height", 48, "--W", 64) == 0
    alone, inside = (np.frombuffer(pixels(f"outputs/{name}.png"), np.uint8) for name in ("00004-8", "00003-8"))
    assert np.abs(alone.astype(int) - inside.astype(int)).max() <= 1


def test_old_spellings_mean_the_same(txt2img: Run) -> None:
    assert (
        txt2img(
            "--prompt", "a", "--negative-prompt", "fog", "--steps", 3, "--eta", 0.5, "--n-samples", 2, "--n-rows", 1
        )
        == 0
    )
    old = ("--prompt", "a", "--neg", "fog", "--ddim_steps", 3, "--ddim_eta", 0.5, "--n_samples", 2, "--n_rows", 1)
    assert txt2img(*old, "--C", 4, "--f", 8, "--precision", "full", "--outdir", "old", "--skip_grid") == 0
    assert files("old") == ["00000-0.png", "00001-1.png"]
    assert all(pixels(f"old/{name}") == pixels(f"outputs/{name}") for name in files("old"))
    with Image.open("outputs/grid-00000.png") as grid:
        assert grid.width < grid.height
    assert txt2img(*DRAW, "--n_samples", 2, "--skip_save", "--outdir", "grid") == 0
    assert files("grid") == ["grid-00000.png"]


@pytest.mark.parametrize(("number", "grids"), [(1, 0), (2, 1), (3, 2), (4, 2)])
def test_where_grids_are_all_that_is_saved_each_picture_is_in_one(
    txt2img: Run, monkeypatch: pytest.MonkeyPatch, number: int, grids: int
) -> None:
    monkeypatch.setattr("_manifest.GRID_LIMIT", 2)
    monkeypatch.setattr("_output.GRID_LIMIT", 2)
    assert txt2img(*DRAW, "--n-iter", number, "--skip-save") == 0
    assert [name for name in files("outputs") if name.startswith("grid")] == [f"grid-{i:05}.png" for i in range(grids)]


def test_churn_is_written_down_and_reproduced(txt2img: Run, capsys: Capture) -> None:
    churn = ("--s-churn", 3, "--s-tmin", 0.1, "--s-tmax", 9, "--s-noise", 1.5)
    assert txt2img("--prompt", "a", "--steps", 4, "--sampler", "heun", "--outdir", "plain") == 0
    assert txt2img("--prompt", "a", "--steps", 4, "--sampler", "heun", *churn) == 0
    assert pixels("outputs/00000-0.png") != pixels("plain/00000-0.png")
    with Image.open("outputs/00000-0.png") as image:
        assert "Sigma churn: 3, Sigma tmin: 0.1, Sigma tmax: 9, Sigma noise: 1.5" in image.text["parameters"]
    assert txt2img("--reproduce", "outputs/00000-0.png", "--outdir", "again") == 0
    assert "bit for bit" in capsys.readouterr().out
    assert pixels("again/00000-0.png") == pixels("outputs/00000-0.png")


def test_one_of_a_batch_is_reproduced_from_smaller_batches(txt2img: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where memory runs out, or a sampler draws one at a time: the picture asked for is saved, and no other."""
    from ldm.settings import Settings

    assert txt2img(*DRAW, "--n_samples", 3, "--skip-grid") == 0
    monkeypatch.setattr(Settings, "at_once", lambda self, count: 1)
    txt2img("--reproduce", "outputs/00002-2.png", "--outdir", "again")  # which says so, if it is not so to the last bit
    assert files("again") == ["00000-2.png"]
    there, here = pixels("outputs/00002-2.png"), pixels("again/00000-2.png")
    assert max(abs(a - b) for a, b in zip(there, here, strict=True)) <= 1


def test_prompts_from_a_file_or_a_pipe_in_mixed_batches(txt2img: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("p.txt").write_text("\ufeffa red cube\n\n  ein Würfel 🎨\r\na cone\n", encoding="utf-8")
    assert txt2img("--from-file", "p.txt", "--steps", 1, "--n_samples", 2) == 0
    requests = [read_request(f"outputs/{name}") for name in files()[:3]]
    assert [(r["prompt"], r["seed"]) for r in requests] == [("a red cube", 0), ("ein Würfel 🎨", 1), ("a cone", 2)]
    assert [len(r["batch"]) for r in requests] == [2, 2, 1]
    monkeypatch.setattr(sys, "stdin", io.StringIO("a red cube\na cone\n"))
    assert txt2img("--from-file", "-", "--repeat", 2, "--steps", 1, "--outdir", "pipe", "--skip_grid") == 0
    assert [read_request(f"pipe/{name}")["prompt"] for name in files("pipe")] == ["a red cube"] * 2 + ["a cone"] * 2


def test_fixed_code_gives_every_batch_the_same_seeds(txt2img: Run) -> None:
    assert txt2img(*DRAW, "--n_samples", 2, "--n_iter", 2, "--fixed_code", "--skip-grid") == 0
    assert files() == ["00000-0.png", "00001-1.png", "00002-0.png", "00003-1.png"]
    assert pixels("outputs/00000-0.png") == pixels("outputs/00002-0.png")


@pytest.mark.parametrize("word", ["-1", "random"])
def test_a_random_seed_is_drawn_and_said(txt2img: Run, capsys: Capture, word: str) -> None:
    assert txt2img(*DRAW, "--seed", word) == 0
    seed = capsys.readouterr().out.split("seed: ")[1].split()[0]
    assert files() == [f"00000-{seed}.png"]


@pytest.mark.parametrize("precision", ["autocast", "bf16"])
def test_precisions(txt2img: Run, precision: str) -> None:
    assert txt2img(*DRAW, "--precision", precision) == 0
    assert txt2img(*DRAW, "--outdir", "full") == 0
    assert pixels("outputs/00000-0.png") != pixels("full/00000-0.png")


def test_intermediates_show_how_the_picture_came_to_be(txt2img: Run) -> None:
    assert txt2img("--prompt", "a", "--steps", 5, "--save-intermediates", 2, "--n_samples", 2, "--skip_grid") == 0
    assert files() == ["00000-0-steps", "00000-0.png", "00001-1-steps", "00001-1.png"]
    assert files("outputs/00001-1-steps") == ["0002.png", "0004.png", "0005.png", "sheet.png"]
    assert pixels("outputs/00001-1-steps/0005.png") == pixels("outputs/00001-1.png")  # the last estimate is the picture
    assert pixels("outputs/00001-1-steps/0002.png") != pixels("outputs/00001-1-steps/0004.png")


def test_a_sampler_that_skips_noise_levels_fills_the_bar_and_the_sheet(txt2img: Run, capsys: Capture) -> None:
    assert (
        txt2img("--prompt", "a", "--steps", 7, "--sampler", "dpm_fast", "--save-intermediates", 3, "--n_iter", 2) == 0
    )
    for name in ("00000-0-steps", "00001-1-steps"):  # calls 1 … 3 are a step, 4 and 5, 6, 7
        assert files(f"outputs/{name}") == ["0003.png", "0006.png", "0007.png", "sheet.png"]
    last = capsys.readouterr().err.split("\r")[-1]
    assert "step 7/7" in last and "images 2/2" in last and "█" * 5 in last and "| 00:" in last.replace("█", "")


def test_reproduce_is_bit_for_bit(txt2img: Run, img2img: Run, capsys: Capture) -> None:
    Path("p.txt").write_text("a red cube\na cone, two\n")
    given = (
        "--from-file",
        "p.txt",
        "--n_samples",
        2,
        "--eta",
        1,
        "--scale",
        2.5,
        "--spacing",
        "trailing",
        "--steps",
        3,
    )
    assert txt2img(*given, "--neg", "fog", "--seed", 11) == 0
    assert txt2img("--reproduce", "outputs/00001-12.png", "--outdir", "again") == 0
    assert files("again") == ["00000-12.png"]
    assert "bit for bit" in capsys.readouterr().out
    assert pixels("again/00000-12.png") == pixels("outputs/00001-12.png")
    a, b = read_request("again/00000-12.png"), read_request("outputs/00001-12.png")
    assert len(b.pop("job")) == 64 and a == b  # what is drawn again belongs to no job


@pytest.mark.parametrize(
    ("options", "settings", "text"),
    [
        (
            ("--spacing", "Karras", "--steps", 3, "--sigma_min", 0.1, "--sigma-max", 10, "--rho", 5),
            {"spacing": "karras", "steps": 3, "sigma_min": 0.1, "sigma_max": 10.0, "rho": 5.0, "sigmas": None},
            "Sampler: DDIM, Schedule type: Karras, Schedule max sigma: 10, Schedule min sigma: 0.1, Schedule rho: 5",
        ),
        (
            ("--sigmas", "14.6,7.1,0.3,0"),
            {"spacing": None, "steps": 3, "sigmas": [14.6, 7.1, 0.3]},
            "Steps: 3, Sampler: DDIM, CFG scale: 3",
        ),
        (("--timesteps", "999,500", "--steps", 2), {"spacing": None, "steps": 2}, "Steps: 2, Sampler: DDIM, CFG"),
        (
            ("--sampler", "DDIM SGM Uniform", "--steps", 2),
            {"sampler": "ddim", "spacing": "sgm_uniform", "sigmas": None},
            "Steps: 2, Sampler: DDIM, Schedule type: SGM Uniform, CFG",
        ),
        (
            ("--sampler", "DDPMScheduler Karras", "--spacing", "normal", "--steps", 2),  # --spacing wins
            {"sampler": "ddpm", "spacing": "linspace"},
            "Steps: 2, Sampler: DDPM, Schedule type: Normal, CFG",
        ),
    ],
)
def test_levels_are_recorded_and_reproduced(
    txt2img: Run, options: tuple[object, ...], settings: dict[str, object], text: str
) -> None:
    assert txt2img("--prompt", "a", *options) == 0
    assert read_request("outputs/00000-0.png")["settings"].items() >= settings.items()
    with Image.open("outputs/00000-0.png") as image:
        assert text in image.text["parameters"]
    assert txt2img("--reproduce", "outputs/00000-0.png", "--outdir", "again") == 0
    assert pixels("again/00000-0.png") == pixels("outputs/00000-0.png")
    assert read_request("again/00000-0.png") == read_request("outputs/00000-0.png")
    assert txt2img("--prompt", "a", "--steps", settings.get("steps", 2), "--outdir", "plain") == 0
    assert pixels("plain/00000-0.png") != pixels("outputs/00000-0.png")


@pytest.mark.parametrize(
    ("flag", "words"),
    [("--plms", "plms uniform"), ("--dpm_solver", "dpmpp_2m sgm_uniform"), ("--dpm", "dpmpp_2m sgm_uniform")],
)
def test_flags_of_the_original_scripts_are_samplers(flag: str, words: str) -> None:
    from _cli import parse

    from ldm.names import find_sampler

    assert parse("txt2img", ["--prompt", "a"]).sampler is None  # the model's own
    assert parse("txt2img", ["--prompt", "a", flag]).sampler == words
    assert parse("txt2img", ["--prompt", "a", flag, "--spacing", "karras"]).spacing == "karras"
    assert find_sampler(words) == tuple(words.split())


def test_reproduce_notices_what_it_cannot_keep(txt2img: Run, tiny_file: Path, capsys: Capture) -> None:
    assert txt2img(*DRAW) == 0
    with Image.open("outputs/00000-0.png") as image:
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_text("ldm", image.text["ldm"])
        Image.new("RGB", image.size).save("other.png", pnginfo=info)
        info = PngInfo()
        info.add_text("ldm", image.text["ldm"].replace('"steps": 2', '"steps": "rm"'))
        image.save("garbled.png", pnginfo=info)
        image.save("bare.png")
    assert txt2img("--reproduce", "other.png") == 1
    assert "failed: not the same as other.png" in capsys.readouterr().err
    assert txt2img("--reproduce", "bare.png") == 2
    assert "bare.png: carries no `ldm` chunk" in capsys.readouterr().err
    assert txt2img("--reproduce", "garbled.png") == 2
    assert (
        "--reproduce garbled.png: its request is not one of ours (TypeError: steps is 'rm')" in capsys.readouterr().err
    )
    assert txt2img("--reproduce", "other.png", "--steps", 3) == 2
    assert "leave out --steps" in capsys.readouterr().err
    weights = read(tiny_file)
    write("changed.safetensors", weights.tensors | {"unet.conv_in.bias": torch.ones(32)}, weights.metadata)
    assert txt2img("--reproduce", "outputs/00000-0.png", "--model", "changed.safetensors") == 2
    assert "--model changed.safetensors: not the file that drew" in capsys.readouterr().err


def test_stopping_saves_the_pictures_under_way(txt2img: Run, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    import _output

    step = _output.Bar.step

    def interrupted(self: Any, progress: Any) -> None:
        step(self, progress)
        if progress.step.i == 0:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(_output.Bar, "step", interrupted)
    before = signal.getsignal(signal.SIGINT)
    assert txt2img(*DRAW, "--n_samples", 2, "--n_iter", 3) == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert files() == ["00000-0.png", "00001-1.png"]  # and no grid: it is of six
    read = capsys.readouterr()
    assert "2 pictures:" in read.out and "stopped after 2 of 6 pictures; --resume goes on" in read.err

    def twice(self: Any, progress: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(_output.Bar, "step", twice)
    assert txt2img(*DRAW, "--outdir", "now") == 130
    assert files("now") == []


def test_a_failure_is_one_sentence_and_status_1(txt2img: Run, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    import _draw

    from ldm.hints import NonFiniteError

    def broken(*_: object, **__: object) -> Any:
        raise NonFiniteError("NaN in the middle")
        yield

    monkeypatch.setattr(_draw, "generate", broken)
    assert txt2img(*DRAW) == 1
    assert capsys.readouterr().err.rstrip().splitlines()[-1] == "failed: NaN in the middle (--debug shows where)"
    assert files() == []
    with pytest.raises(NonFiniteError):
        txt2img(*DRAW, "--debug")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), 'give --prompt "what to draw"'),
        (("--prompt", "a", "--from-file", "p.txt"), "not both"),
        (("--from-file", "none.txt"), "--from-file none.txt: cannot be read (No such file"),
        (("--from-file", "empty.txt"), "--from-file empty.txt: there is no prompt in it"),
        (("--from-file", "latin.txt"), "--from-file latin.txt: byte 1 is not UTF-8"),
        (("--prompt", "a", "--H", "100"), "--H/--height: 100 is not a multiple of 8 in 8 … 8192; the nearest is 104"),
        (("--prompt", "a", "--W", "-8"), "the nearest is 8"),
        (("--prompt", "a", "--width", "99999"), "the nearest is 8192"),
        (("--prompt", "a", "--steps", "0"), "--steps/--ddim-steps: 0 is out of range; give 1 … 1000"),
        (("--prompt", "a", "--ddim_steps", "1001"), "1001 is out of range"),
        (("--prompt", "a", "--steps", "many"), "'many' is not a whole number"),
        (("--prompt", "a", "--scale", "nan"), "--scale: nan is out of range; give a finite number"),
        (("--prompt", "a", "--scale", "inf"), "--scale: inf is out of range"),
        (("--prompt", "a", "--eta", "-1"), "--eta/--ddim-eta: -1 is out of range; give 0 or more"),
        (("--prompt", "a", ""), "an argument is empty; leave it out, or put a prompt in quotes after --prompt"),
        (("--prompt", "a", "--sampler", "tcd", "--eta", "1.5"), "--eta is 1.5; of tcd it is the paper's gamma, 0 … 1"),
        (("--prompt", "a", "--seed", "4294967296"), "--seed: 4294967296 is out of range"),
        (("--prompt", "a", "--seed", "4294967295", "--n_iter", "2"), "--seed: 4294967295 and the 1 after it"),
        (("--prompt", "a", "--plms", "--eta", "1"), "--eta is 1, but sampler plms has none; leave it out or take ddim"),
        (("--prompt", "a", "--s-churn", "5"), "--s-churn is 5, but sampler ddim has none; leave it out or take euler"),
        (("--prompt", "a", "--sampler", "heun", "--s_noise", "-1"), "--s-noise: -1 is out of range"),
        (("--prompt", "a", "--sampler", "eular"), "--sampler: there is no sampler 'eular'; the nearest: euler, "),
        (("--prompt", "a", "--sampler", "?"), "--sampler: there is no sampler '?'; there are ddpm, ddim, plms"),
        (("--prompt", "a", "--sampler", "Euler Karas"), "there is no sampler 'Euler Karas'; the nearest: euler"),
        (("--prompt", "a", "--rho", "3"), "--rho is 3, but spacing uniform has none; karras, polyexponential have it"),
        (("--prompt", "a", "--rho", "0"), "--rho: 0 is out of range; give 0.1 … 100"),
        (("--prompt", "a", "--sigma_min", "-1"), "--sigma-min: -1 is out of range"),
        (
            ("--prompt", "a", "--spacing", "karras", "--sigma-max", "20"),
            "--sigma-max 20; this model takes 0 < --sigma-min",
        ),
        (("--prompt", "a", "--sigmas", "7,9"), "--sigmas: 7,9 does not fall; each number must be below the one"),
        (("--prompt", "a", "--sigmas", "7,x"), "--sigmas: 'x' is not a number"),
        (("--prompt", "a", "--sigmas", "7,nan"), "--sigmas: nan is out of range"),
        (("--prompt", "a", "--sigmas", "20,7"), "--sigmas has 20 in it; this model takes numbers above 0, up to 14.61"),
        (
            ("--prompt", "a", "--timesteps", "1000,7"),
            "--timesteps has 1000 in it; this model takes numbers from 0 to 999",
        ),
        (("--prompt", "a", "--sigmas", "7", "--timesteps", "7"), "--sigmas and --timesteps are both given"),
        (("--prompt", "a", "--sigmas", "7,3", "--steps", "3"), "--steps is 3, but a list of 2 noise levels is given"),
        (("--prompt", "a", "--sigmas", "7,3", "--spacing", "beta"), "--spacing is beta, but a list of 2 noise levels"),
        (("--prompt", "a", "--mask", "m.png"), "--mask: scripts/inpaint.py takes it; this is scripts/txt2img.py"),
        (("--prompt", "a", "--spacing", "karas"), "--spacing: there is no spacing 'karas'; the nearest: karras"),
        (("--prompt", "a", "--device", "tpu"), "there are auto, cpu, cuda, mps"),
        (("--prompt", "a", "--precision", "int4"), "there are full, autocast, fp16, bf16"),
        (("--prompt", "a", "--model", "none.ckpt"), "--model none.ckpt: there is no such file"),
        (("--prompt", "a", "--config", "none.yaml"), "--config none.yaml: there is no such file"),
        (("--prompt", "a", "--plugin", "none.py"), "none.py: a plugin must be an existing .py file"),
        (("--prompt", "a", "--C", "3"), "--C 3: this model has 4"),
        (("--prompt", "a", "--f", "4"), "--f 4: this model has 8"),
        (("--prompt", "a", "--outdir", "p.txt"), "p.txt: files cannot be written there"),
        (("--prompt", "a", "--n_samples", "0"), "--n-samples: 0 is out of range"),
        (("--prompt", "a", "--save-intermediates", "1", "--skip-save"), "nowhere to write with --skip-save"),
        (("--promt", "a"), "--promt a: no such option; did you mean --prompt?"),
        (("--prompt", "a", "red", "cube"), "red cube: no such option; a prompt goes in quotes"),
        (("--prompt", "-a"), "expected one argument; one that begins with a dash is written --option=-value"),
        (("--reproduce", "none.png"), "none.png: there is no such file"),
        (("--prompt", "a", "--model", "nonesuch"), "nonesuch"),
        (("--prompt", "a", "--model", "p.txt"), "p.txt"),
    ],
)
def test_mistakes_get_one_sentence_and_status_2(
    txt2img: Run, capsys: Capture, options: tuple[str, ...], words: str
) -> None:
    Path("p.txt").write_text("a\n")
    Path("empty.txt").write_text("\n \n")
    Path("latin.txt").write_bytes(b"a\xfcb")
    assert txt2img(*options) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and words in err and err.count("\n") == 1, err
    assert not any(name.endswith(".png") for _, _, names in os.walk(".") for name in names)


def test_no_gpu_is_one_sentence(txt2img: Run, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert txt2img(*DRAW, "--device", "cuda") == 2
    assert "--device cuda: torch" in capsys.readouterr().err
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr("_device.multiplies_bfloat16", lambda: False)
    assert txt2img(*DRAW, "--n_samples", 2, "--n_iter", 2, "--device", "auto") == 0
    read = capsys.readouterr()
    assert "device: cpu, chosen by auto; precision: full" in read.out
    assert len(re.findall(r"\babout [0-9.e-]+ s a step of 2 pictures\n", read.err)) == 1
    assert txt2img(*DRAW) == 0  # on a device that was asked for
    assert "s a step" not in capsys.readouterr().err


def test_bfloat16_by_default_where_the_processor_has_it(
    txt2img: Run, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("_device.multiplies_bfloat16", lambda: True)
    assert txt2img(*DRAW) == 0
    assert "precision: bf16" in capsys.readouterr().out
    assert read_request("outputs/00000-0.png")["dtype"] == "bfloat16"
    monkeypatch.setattr("_device.multiplies_bfloat16", lambda: False)
    assert txt2img("--reproduce", "outputs/00000-0.png", "--outdir", "again") == 0  # in bfloat16, slow as it may be


@pytest.mark.parametrize(
    ("precision", "avx512", "packed"),
    [
        ("full", True, True),
        ("bf16", True, is_packable(torch.bfloat16)),
        ("autocast", True, False),
        ("full", False, False),
    ],
)
def test_networks_are_packed_for_a_cpu(
    txt2img: Run, monkeypatch: pytest.MonkeyPatch, precision: str, avx512: bool, packed: bool
) -> None:
    from ldm.models.latent_diffusion import LatentDiffusion
    from ldm.modules.packed import Packed

    decode, seen = LatentDiffusion.decode, []

    def spy(model: LatentDiffusion, z: torch.Tensor) -> torch.Tensor:
        parts = model.unet, model.autoencoder, model.text_encoder
        seen.append([any(isinstance(module, Packed) for module in part.modules()) for part in parts])
        return decode(model, z)

    monkeypatch.setattr(LatentDiffusion, "decode", spy)
    monkeypatch.setattr("_speed.has_avx512", lambda: avx512)
    assert txt2img(*DRAW, "--precision", precision) == 0
    is_float32_packed = avx512 and precision != "autocast"  # the autoencoder stays in it
    assert seen == [[packed, is_float32_packed, False]]


def test_a_plugin_runs_before_the_model_is_built(txt2img: Run, capsys: Capture) -> None:
    Path("mine.py").write_text("print('plugged in')\n")
    assert txt2img(*DRAW, "--plugin", "mine.py") == 0
    assert "plugged in" in capsys.readouterr().out


def test_a_full_disk_loses_nothing(txt2img: Run, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    import _output

    write, calls = _output.write_png, []

    def full(*arguments: Any, **options: Any) -> None:
        calls.append(arguments)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        write(*arguments, **options)

    monkeypatch.setattr(_output, "write_png", full)
    assert txt2img(*DRAW, "--n_iter", 3) == 1
    assert "the disk is full" in capsys.readouterr().err
    assert files() == ["00000-0.png"]
    shutil.rmtree("outputs")
