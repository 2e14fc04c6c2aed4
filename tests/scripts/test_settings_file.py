"""--settings: a file's options are those of the command line, which wins."""

from __future__ import annotations

from pathlib import Path

import pytest

Capture = pytest.CaptureFixture[str]


def parsed(*words: object):  # noqa: ANN201
    from _cli import parse

    return parse("txt2img", ["--prompt", "a", *map(str, words)])


def written(folder: Path, text: str) -> Path:
    path = folder / "fast.yaml"
    path.write_text(text)
    return path


def test_options_by_any_of_their_names_and_the_command_line_wins(tmp_path: Path) -> None:
    file = written(tmp_path, "ddim-steps: 7\nn_samples: 3\nskip-grid: true\nscale: [2, 3.5]\nW: 64\nema: false\n")
    options = parsed("--settings", file)
    assert (options.steps, options.n_samples, options.skip_grid, options.W, options.ema) == (7, 3, True, 64, False)
    assert options.scale == (2, 3.5) and options.H is None
    options = parsed("--steps", 4, f"--settings={file}", "--n-samples=1", "--ema", "--scale", 5)
    assert (options.steps, options.n_samples, options.W, options.ema, options.scale) == (4, 1, 64, True, (5,))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    from _parser import make_parser
    from _settings_file import read_settings, write_settings

    settings = {"precision": "bf16", "eta": 0.25, "skip-grid": True, "debug": False, "sampler": "DPM++ 2M Karras"}
    settings |= {"freeu": [1.3, 1.4, 0.9, 0.2], "seed": 7}
    del settings["debug"]
    write_settings(tmp_path / "s.yaml", settings, ["measured: here", "# twice"])
    words = read_settings(str(tmp_path / "s.yaml"), make_parser("txt2img"))
    assert words[:3] == ["--precision=bf16", "--eta=0.25", "--skip-grid"]
    options = parsed("--settings", tmp_path / "s.yaml")
    assert (options.precision, options.eta, options.seed, options.skip_grid) == ("bf16", 0.25, 7, True)
    assert options.freeu == (1.3, 1.4, 0.9, 0.2) and options.sampler == "DPM++ 2M Karras"
    write_settings(tmp_path / "none.yaml", {}, ["nothing is faster"])
    assert read_settings(str(tmp_path / "none.yaml"), make_parser("txt2img")) == []


@pytest.mark.parametrize(
    "text, said",
    [
        ("precison: bf16", "precison is no option that a settings file can have; did you mean precision?"),
        ("settings: other.yaml", "settings is no option that a settings file can have"),
        ("prompt: a dog", "prompt is no option that a settings file can have"),
        ("skip-grid: perhaps", "skip-grid is 'perhaps'; it can be true or false"),
        ("steps: true", "steps is True; write it as after --steps"),
        ("precision: fp8", "--precision"),
        ("steps: [", "not readable as YAML"),
        ("- steps", "expected a mapping"),
        ("steps: ${oc.env:HOME}", "is refused"),
    ],
)
def test_mistakes_are_one_sentence(text: str, said: str, tmp_path: Path, capsys: Capture) -> None:
    from _cli import main

    file = written(tmp_path, text)
    assert main("txt2img", ["--prompt", "a", "--settings", str(file)]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert ("fast.yaml" in err) == (said != "--precision")


def test_a_file_that_is_not_there_and_one_beside_reproduce(tmp_path: Path, capsys: Capture) -> None:
    from _cli import main

    assert main("txt2img", ["--prompt", "a", "--settings", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml: cannot be read as a config" in capsys.readouterr().err
    file = written(tmp_path, "steps: 3")
    assert main("txt2img", ["--reproduce", "x.png", "--settings", str(file)]) == 2
    assert "--reproduce takes everything from the picture; leave out --settings" in capsys.readouterr().err
