"""A job that was stopped is finished by --resume: the same set, bit for bit, nothing drawn twice."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ldm.files import owned
from ldm.png import read_request

Run = Callable[..., int]
Capture = pytest.CaptureFixture[str]
SIX = ("--from-file", "prompts.txt", "--n-samples", 2, "--steps", 2, "--n-iter", 2)


@pytest.fixture(autouse=True)
def prompts(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red cube\na cone\na blue sphere")
    picture = Image.linear_gradient("L").resize((32, 32)).convert("RGB")
    picture.save(tmp_path / "begin.png")


def contents(folder: str | Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()
    }


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts of all batches that are drawn from here on."""
    import _draw

    seen: list[str] = []
    generate = _draw.generate

    def spy(model: Any, items: Any, *rest: Any, **options: Any) -> Any:
        seen.extend(item.prompt for item in items)
        return generate(model, items, *rest, **options)

    monkeypatch.setattr(_draw, "generate", spy)
    return seen


EXTRA: dict[str, tuple[object, ...]] = {
    "plain": (),
    "with intermediates": ("--save-intermediates", 1),
    "grid alone": ("--skip-save",),
    "no grid": ("--skip-grid",),
    "random steps": ("--sampler", "euler_ancestral", "--seed", 9, "--scale", "1,4"),
}


@pytest.mark.long
@pytest.mark.parametrize("extra", EXTRA.values(), ids=EXTRA)
def test_whatever_is_missing_comes_back_bit_for_bit(txt2img: Run, extra: tuple[object, ...]) -> None:
    assert txt2img(*SIX, *extra, "--outdir", "whole") == 0
    whole = contents("whole")
    top = [name for name in whole if "/" not in name and "job" not in name]
    for lost in (top[-1:], [top[0], *top[3:]] if len(top) > 1 else [], top):
        shutil.rmtree("parts", ignore_errors=True)
        shutil.copytree("whole", "parts")
        for name in lost:
            Path("parts", name).unlink()
        assert txt2img(*SIX, *extra, "--outdir", "parts", "--resume") == 0
        assert contents("parts") == whole


def test_every_command_has_it() -> None:
    from _options import COMMANDS
    from _parser import make_parser

    assert all(make_parser(command).parse_args(["--resume"]).resume for command in COMMANDS) and len(COMMANDS) == 7


def test_only_batches_that_lack_something_are_drawn(
    txt2img: Run, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    assert txt2img(*SIX, "--resume") == 0  # nothing to go on with: a new job
    whole = contents("outputs")
    assert sorted(whole) == [f"0000{i}-{i}.png" for i in range(6)] + ["grid-00000.png", "job-00000.json"]
    seen = drawn(monkeypatch)
    capsys.readouterr()
    assert txt2img(*SIX, "--resume") == 0
    assert seen == [] and "job-00000.json: all of its 6 pictures are there" in capsys.readouterr().out
    Path("outputs/00003-3.png").unlink()
    kept = os.stat("outputs/00002-2.png").st_ino
    assert txt2img(*SIX, "--resume") == 0
    assert seen == ["a blue sphere", "a red cube"]  # with its company
    assert contents("outputs") == whole and os.stat("outputs/00002-2.png").st_ino == kept
    assert "5 of 6 pictures are there already" in capsys.readouterr().out
    Path("outputs/grid-00000.png").unlink()
    assert txt2img(*SIX, "--resume") == 0 and contents("outputs") == whole


def test_img2img_inpaint_and_their_pictures(img2img: Run, inpaint: Run, capsys: Capture) -> None:
    options = ("--init-img", "begin.png", "--prompt", "a", "--n-samples", 2, "--steps", 4)
    assert img2img(*options) == 0
    whole = contents("outputs")
    Path("outputs/00000-0.png").unlink()
    assert img2img(*options, "--resume") == 0 and contents("outputs") == whole
    Path("outputs/00000-0.png").unlink()
    Image.new("RGB", (32, 32), "teal").save("begin.png")
    assert img2img(*options, "--resume") == 2
    assert "job-00000.json was begun otherwise: --init-img was" in capsys.readouterr().err
    assert inpaint(*options, "--outpaint", "0,8,0,0", "--outdir", "in") == 0
    whole = contents("in")
    Path("in/00001-1.png").unlink()
    assert inpaint(*options, "--outpaint", "0,8,0,0", "--outdir", "in", "--resume") == 0 and contents("in") == whole


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (("--steps", 3), "--steps was 2, and is 3 here"),
        (("--seed", 4), "--seed was 0, and is 4 here"),
        (("--scale", 4), "--scale was not given, and is [4.0] here"),
        (("--n-samples", 3), "--n-samples was 2, and is 3 here"),
        (("--neg", "fog"), 'the --negative-prompt of picture 1 was not given, and is "fog" here'),
        (("--from-file", "other.txt"), 'the prompt of picture 2 was "a cone", and is "a cow" here'),
        (("--from-file", "longer.txt"), 'the prompt of picture 4 was "a red cube", and is "a dog" here'),
        (("--skip-grid",), "--skip-grid was not given, and is true here"),
        (("--precision", "bf16"), '--precision was "full", and is "bf16" here'),
    ],
)
def test_other_options_are_refused_with_the_difference(
    txt2img: Run, capsys: Capture, monkeypatch: pytest.MonkeyPatch, options: tuple[object, ...], difference: str
) -> None:
    Path("other.txt").write_text("a red cube\na cow\na blue sphere")
    Path("longer.txt").write_text("a red cube\na cone\na blue sphere\na dog")
    assert txt2img(*SIX) == 0
    Path("outputs/00005-5.png").unlink()
    before, _ = contents("outputs"), capsys.readouterr()
    monkeypatch.setattr("_draw.load", lambda *_, **__: pytest.fail("a model was loaded"))
    assert txt2img(*SIX, *options, "--resume") == 2
    error = capsys.readouterr().err
    assert f"job-00000.json was begun otherwise: {difference}; repeat its options" in error and error.count("\n") == 1
    assert contents("outputs") == before


def test_other_weights_are_refused(txt2img: Run, make_tiny: Callable[..., Path], capsys: Capture) -> None:
    assert txt2img(*SIX) == 0
    Path("outputs/00005-5.png").unlink()
    assert txt2img(*SIX, "--resume", "--model", make_tiny("other", {"layers_per_block": 2})) == 2
    assert "--model was" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "difference"),
    [(("--steps", 3), "--steps was 2, and is 3 here"), (("--neg", "fog"), "the --negative-prompt of picture 1 was")],
)
def test_a_finished_job_of_the_same_prompts_and_seeds_is_not_begun_otherwise(
    txt2img: Run, capsys: Capture, options: tuple[object, ...], difference: str
) -> None:
    assert txt2img(*SIX) == 0
    before = contents("outputs")
    assert txt2img(*SIX, *options, "--resume") == 2
    error = capsys.readouterr().err.rstrip().splitlines()[-1]
    assert f"job-00000.json was begun otherwise: {difference}" in error and "leave --resume out" in error
    assert contents("outputs") == before
    assert txt2img(*SIX, *options) == 0 and len(contents("outputs")) == 2 * len(before)


def test_a_finished_job_of_other_pictures_is_in_nobodys_way(txt2img: Run) -> None:
    assert txt2img(*SIX) == 0
    assert txt2img(*SIX, "--seed", 6, "--steps", 3, "--resume") == 0
    assert {"job-00000.json", "job-00001.json", "00011-11.png"} <= set(contents("outputs"))


def test_what_is_in_the_way_is_left_alone_and_named(txt2img: Run, capsys: Capture) -> None:
    assert txt2img(*SIX) == 0
    for name, spoil, words in (
        ("00002-2.png", lambda path: shutil.copy("begin.png", path), "carries no `ldm` chunk"),
        ("00002-2.png", lambda path: shutil.copy("outputs/00003-3.png", path), ""),
        ("00002-2.png", lambda path: path.write_bytes(path.read_bytes()[:-100]), "the picture is broken or cut off"),
        ("job-00000.json", lambda path: path.write_text(path.read_text()[:-5]), "not a job's manifest as it was"),
        ("job-00000.json", lambda path: path.write_text(path.read_text().replace("cone", "bone")), "it was changed"),
    ):
        kept = Path("outputs", name).read_bytes()
        spoil(Path("outputs", name))
        spoiled = contents("outputs")
        assert txt2img(*SIX, "--resume") == (2 if words else 0)
        error = capsys.readouterr().err
        assert not words or (f"outputs/{name}" in error and words in error)
        assert contents("outputs") == spoiled
        Path("outputs", name).write_bytes(kept)


def test_a_job_is_drawn_by_one_process_at_a_time(txt2img: Run, capsys: Capture) -> None:
    assert txt2img(*SIX) == 0
    Path("outputs/00002-2.png").unlink()
    with owned(Path("outputs/.job-00000.claim")):
        assert txt2img(*SIX, "--resume") == 2
    assert "job-00000.json is being drawn just now" in capsys.readouterr().err
    Path("outputs/.job-00000.claim").touch()  # of a process that was killed
    assert txt2img(*SIX, "--resume") == 0 and Path("outputs/00002-2.png").exists()


def test_a_random_seed_cannot_be_resumed(txt2img: Run, capsys: Capture) -> None:
    assert txt2img(*SIX, "--seed", "random", "--resume") == 2
    assert "give the one that was printed" in capsys.readouterr().err


def test_the_manifest_names_every_picture(txt2img: Run) -> None:
    assert txt2img(*SIX, "--seed", 40) == 0
    tree = json.loads(Path("outputs/job-00000.json").read_text())
    listed = {item["name"]: (item["prompt"], item["seed"]) for item in tree["items"]}
    found = {name[:-4]: read_request(f"outputs/{name}") for name in contents("outputs") if name[0] == "0"}
    assert listed == {name: (request["prompt"], request["seed"]) for name, request in found.items()}
    assert {request["job"] for request in found.values()} == {tree["hash"]} and tree["grids"] == ["grid-00000"]
    assert tree["parameters"]["--steps"] == 2 and tree["parameters"]["--model"].startswith("sha256 ")
