"""--explain, and the syntax of prompts on the command line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from ldm.png import read_request

Run = Callable[..., int]
Capture = pytest.CaptureFixture[str]


def pixels(path: str) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def test_it_tells_what_would_be_drawn(txt2img: Run, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    import ldm.checkpoint.load

    monkeypatch.setattr(ldm.checkpoint.load, "fill", lambda *_, **__: pytest.fail("weights were read"))
    text = "a (red:1.3) cube [by day:by night:0.5] AND redcube fog :-0.5"
    assert txt2img("--explain", "--prompt", text, "--neg", "one BREAK two", "--steps", 4, "--n_samples", 2) == 0
    assert not os.path.exists("outputs") or not os.listdir("outputs")
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    lines = [" ".join(line.split()) for line in out.splitlines()]
    begin = lines.index("steps 1 to 2")
    assert lines[begin : begin + 7] == [
        "steps 1 to 2",
        "AND, weight 1",
        "chunk: 5 of 14 tokens",
        "a red×1.3 cube by day",
        "AND, weight -0.5",
        "chunk: 3 of 14 tokens",
        "red- cube fog",
    ]
    assert "a red×1.3 cube by night" in lines and "chunk 2 of 2: 1 of 14 tokens" in lines
    assert "sigmas 4 steps of ddim, spacing uniform" in lines
    levels = [float(word) for word in lines[lines.index("sigmas 4 steps of ddim, spacing uniform") + 1].split()]
    assert len(levels) == 5 and levels == sorted(levels, reverse=True) and levels[-1] == 0
    assert "sizes 2 × 32x32 pixels, 2 at once" in lines
    assert "latent 4 × 4 × 4; 16 or 32 states of text" in lines
    # of two pictures and their opposites: two prompts of 16 states, and twice what is led away from, of 32
    assert "4 × 4 rows, 16 states each" in lines and "4 × 4 rows, 32 states each" in lines


@pytest.mark.parametrize("sampler", ["heun", "dpm_fast"])
def test_its_calls_are_those_that_are_made(
    txt2img: Run, capsys: Capture, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    from ldm.models.diffusion.denoiser import Conditioning, Denoiser

    made: list[tuple[int, int]] = []
    call = Denoiser.__call__

    def spy(self: Denoiser, x: torch.Tensor, sigma: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        made.append((len(x), cond.context.shape[1]))
        return call(self, x, sigma, cond)

    job = ("--prompt", "a BREAK b AND [c|d BREAK d] :0.5", "--steps", 3, "--scale", 2, "--n_samples", 2)
    job += ("--sampler", sampler)
    assert txt2img("--explain", *job) == 0
    out = capsys.readouterr().out
    monkeypatch.setattr(Denoiser, "__call__", spy)
    assert txt2img(*job, "--skip-grid") == 0
    for rows, length in set(made):
        assert f"{made.count((rows, length)):>5} × {rows} row{'s' * (rows > 1)}, {length} states each" in out
    assert out.count(" states each") == len(set(made))


def test_an_adaptive_sampler_makes_as_many_calls_as_it_needs(txt2img: Run, capsys: Capture) -> None:
    """For one picture, whatever the batch: the steps suit the worst, and each should be as it is alone."""
    assert txt2img("--explain", "--prompt", "a", "--sampler", "dpm_adaptive", "--n_samples", 3) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "3 × 32x32 pixels, 1 at once" in out and "? × 2 rows, 16 states each" in out and "chosen 1 at once" in out


@pytest.mark.long
def test_a_published_family_by_name(txt2img: Run, capsys: Capture) -> None:
    """sd-v1, whose weights are nowhere here: 860 million in the network, 123 and 84 in tower and autoencoder."""
    assert txt2img("--model", "sd-v1", "--explain", "--prompt", "a " * 80, "--precision", "fp16", "--steps", 2) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "chunk 1 of 2: 75 of 75 tokens" in out and "154 states" in out
    assert "network 1.72 GB" in out and "text encoder 246.1 MB" in out and "autoencoder 334.6 MB" in out


def test_encoders_without_syntax(capsys: Capture) -> None:
    from types import SimpleNamespace

    from _explain import _read

    from ldm.models.encoders import NoText

    (line,) = _read(SimpleNamespace(text_encoder=NoText()), "(a:1.2)", 1, compose=True)
    assert "read as it stands" in line


def test_mistakes(txt2img: Run, capsys: Capture) -> None:
    assert txt2img("--explain", "--prompt", "a", "--model", "nonesuch") == 2
    assert "nonesuch" in capsys.readouterr().err
    assert txt2img("--prompt", "a", "--clip-skip", 2) == 2
    assert "--clip-skip is 2; for this text tower it can be 1" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["img2img", "inpaint", "upscale"])
def test_commands_that_have_none_say_which_has_it(command: str) -> None:
    from _cli import parse

    with pytest.raises(ValueError, match=f"^--explain: scripts/txt2img.py takes it; this is scripts/{command}.py$"):
        parse(command, ["--explain", "--init-img", "a.png", "--prompt", "a"])


def test_scales_that_differ(txt2img: Run, capsys: Capture) -> None:
    """The negative prompt plays no part only if no picture has another scale, and the calls are those of one batch."""
    job = ("--explain", "--prompt", "a", "--neg", "b", "--steps", 3)
    for scale, is_idle, calls in [("1,2", False, "for the first batch 3 × 1 row,"), ("1,1", True, "3 × 1 row,")]:
        assert txt2img(*job, "--n-iter", 2, "--scale", scale) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert ("plays no part" in out) == is_idle and calls in out
    assert txt2img(*job, "--scale", 1, "--cfg-pp") == 0  # which renoises with the estimate for the negative prompt
    out = " ".join(capsys.readouterr().out.split())
    assert "plays no part" not in out and "for the first batch" not in out and "3 × 2 rows," in out


def test_peak_is_the_largest_sum_alive() -> None:
    from _memory import Peak

    weight = torch.zeros(1000, 1000, device="meta")
    with torch.inference_mode(), Peak() as peak:
        x = torch.zeros(10, 1000, device="meta")  # 40 kB
        y = x @ weight.t()  # 40 kB, and a view of what was there
        z = torch.cat([x, y])  # 80 kB: 160 alive
        del x, y
        z = z[:5].relu()  # 20 kB beside 80
    assert peak.most == 160_000 and peak.now == 20_000 and z.shape == (5, 1000)


def test_the_words_that_are_cut_are_told(txt2img: Run, capsys: Capture) -> None:
    spaces = " " * 9_999  # the longest prompt that is read, and quick to read
    Path("p.txt").write_text(f"a{spaces}and the end\na{spaces}\n")
    assert txt2img("--from-file", "p.txt", "--neg", f"b{spaces}fog", "--steps", 1, "--skip-grid") == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "not seen" in line]
    assert said == [f"the prompt is longer than the model reads; not seen: {rest!r}" for rest in ("and the end", "fog")]


def test_prompts_with_syntax_are_drawn_and_drawn_again(
    txt2img: Run, capsys: Capture, make_tiny: Callable[..., Path]
) -> None:
    tower = {"target": "OpenCLIPTextEncoder", "params": {"width": 16, "heads": 2, "layers": 3, "context_length": 16}}
    model = make_tiny("deeper", text_encoder=tower)
    Path("p.txt").write_text(f"a [red|blue] (cube:1.4)\n{'long ' * 30}\na AND b :0.5\nplain\n")
    job = ("--model", model, "--from-file", "p.txt", "--n_samples", 4, "--steps", 3, "--skip-grid", "--clip-skip", 2)
    assert txt2img(*job, "--neg", "[fog:rain:0.5]") == 0
    assert "not seen" not in capsys.readouterr().err
    request = read_request("outputs/00002-2.png")
    assert request["prompt"] == "a AND b :0.5" and request["settings"]["clip_skip"] == 2
    with Image.open("outputs/00002-2.png") as image:
        assert ", Clip skip: 2, " in image.text["parameters"]
    assert txt2img("--reproduce", "outputs/00002-2.png", "--model", model, "--outdir", "again") == 0
    assert "bit for bit" in capsys.readouterr().out
    assert pixels("again/00000-2.png") == pixels("outputs/00002-2.png")


def test_a_picture_of_before_there_was_clip_skip(txt2img: Run, capsys: Capture) -> None:
    from PIL.PngImagePlugin import PngInfo

    assert txt2img("--prompt", "a", "--steps", 1) == 0
    with Image.open("outputs/00000-0.png") as image:
        info = PngInfo()
        info.add_text("ldm", image.text["ldm"].replace(', "clip_skip": 1', ""))
        assert "clip_skip" not in info.chunks[0][1].decode("latin-1")
        image.save("old.png", pnginfo=info)
    assert txt2img("--reproduce", "old.png", "--outdir", "again") == 0
    assert "bit for bit" in capsys.readouterr().out
