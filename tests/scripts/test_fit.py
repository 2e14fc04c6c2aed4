"""What is chosen for a job by the memory that is free, and batches: all full, and as many as fit."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.png import read_request

Run = Callable[..., int]
Capture = pytest.CaptureFixture[str]
LARGE = ("--H", 64, "--W", 64)


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


Chosen = Callable[..., tuple[Any, Any]]


@pytest.fixture
def chosen(tiny_file: Path, txt2img: Run, monkeypatch: pytest.MonkeyPatch) -> Chosen:
    """(choice, what it would take) of a job with the miniature model, with so much memory free on the device."""
    import _fit
    from _cli import parse
    from _draw import asked_items
    from _outline import outlines

    def choose(free: int | None, device: str, *words: object) -> tuple[Any, Any]:
        monkeypatch.setattr(_fit, "free_memory", lambda device: free)
        options = parse("txt2img", ["--model", str(tiny_file), "--prompt", "a", *map(str, (*LARGE, *words))])
        found = outlines(options)
        choice = _fit.choose(options, found, asked_items(options), {}, device, torch.float32)
        return choice, _fit.Demand(found, (64, 64), "a", 2)

    monkeypatch.setattr(_fit, "TILES", (32, 16))
    return choose


@pytest.mark.long
def test_what_does_not_fit_is_moved_and_cut(chosen: Chosen) -> None:
    """With just the memory that a way takes, it is chosen, or one before it that takes no more; less is a doubt. On a
    GPU parts are moved before the picture is cut; on a CPU there is nowhere to move them."""
    import _fit

    _, demand = chosen(None, "cuda")
    for device, turns in (("cuda", (False, True)), ("cpu", (False,))):
        ways = list(product((0, 32, 16), turns))
        needs = [demand.of(tile, tile > 0, offload, 1) for tile, offload in ways]
        assert needs[0] > needs[1] >= min(needs) == needs[-1]  # this network works harder than its decoder does on 32
        for need in set(needs):
            choice, _ = chosen(int(need / _fit.SHARE) + 1, device)
            first = next(i for i, other in enumerate(needs) if other <= need)
            assert (choice.tile, choice.offload, choice.fits) == (*ways[first], True)
            assert choice.exact == (choice.tile > 0)
    choice, _ = chosen(int(demand.of(16, True, True, 1) / _fit.SHARE) - 1000, "cuda")
    assert (choice.tile, choice.offload, choice.fits) == (16, True, False)
    assert "may be too much" in choice.said(_fit.Choice())


@pytest.mark.long
def test_what_was_asked_for_stays(chosen: Chosen) -> None:
    for words, way in [
        (("--tile", 0, "--no-offload"), (0, False, False)),
        (("--tile", 32), (32, False, True)),
        (("--tile", "--exact-tiles", "--offload"), (512, True, True)),
    ]:
        choice, _ = chosen(1000, "cuda", *words)
        assert (choice.tile, choice.exact, choice.offload) == way and not choice.fits
    choice, _ = chosen(1000, "cpu")
    assert (choice.tile, choice.offload) == (16, False)  # there is nowhere to go
    choice, _ = chosen(None, "mps", "--batch-size", "auto")
    assert (choice.tile, choice.offload, choice.batch_size) == (0, False, 1)  # nobody knows how much is free


def test_the_prediction_grows_as_the_network_does(chosen: Chosen) -> None:
    """Four pictures are predicted from one and two: within a hundredth of what the network takes for four."""
    from _memory import Peak

    _, demand = chosen(None, "cpu")
    with torch.inference_mode(), Peak() as peak:
        demand._call(8)
    assert abs(demand.drawing(4) / peak.most - 1) < 0.01


@pytest.mark.long
def test_many_tiles_are_predicted_by_a_few(chosen: Chosen, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest picture would take minutes otherwise. No less than what all tiles take, and not much more."""
    import _fit

    decode, seen = _fit.TiledAutoencoder.decode, []

    def spy(self: Any, z: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(z.shape[-2:]))
        return decode(self, z)

    monkeypatch.setattr(_fit.TiledAutoencoder, "decode", spy)
    _, demand = chosen(None, "cpu")
    few = demand.picture(16, exact=True)
    demand.size = (8192, 64)
    demand._picture.clear()
    many = demand.picture(16, exact=True)
    assert many == pytest.approx(few * 128, rel=1e-4) and seen == [(6, 6)] * 2
    monkeypatch.setattr(_fit, "FEW", 4)
    demand.size = (64, 64)
    demand._picture.clear()
    whole = demand.picture(16, exact=True)
    assert seen[2:] == [(8, 8)] and whole <= few <= 2 * whole


@pytest.mark.long
def test_as_many_at_once_as_fit(txt2img: Run, chosen: Chosen, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """Five of eight fit: two batches of four, and the pictures of one at a time to a gray level."""
    import _fit

    _, demand = chosen(None, "cpu")
    free = int(demand.of(0, False, False, 5) / _fit.SHARE) + 1
    monkeypatch.setattr(_fit, "free_memory", lambda device: free)
    Path("p.txt").write_text("".join(f"a {'long ' * (15 * (i % 3 == 1))}cube\n" for i in range(8)))
    job = ("--from-file", "p.txt", *LARGE, "--steps", 2, "--skip-grid")
    assert txt2img(*job, "--batch-size", "auto") == 0
    said = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("memory: "))
    assert said.endswith("free (4 pictures at once)")
    names = sorted(name for name in os.listdir("outputs") if name.endswith(".png"))
    requests = [read_request(f"outputs/{name}") for name in names]
    assert [len(request["batch"]) for request in requests] == [4] * 8
    assert [request["index"] for request in requests] == [0, 1, 2, 3] * 2
    assert txt2img(*job, "--batch-size", 1, "--outdir", "alone") == 0
    assert max(np.abs(pixels(f"outputs/{name}") - pixels(f"alone/{name}")).max() for name in names) <= 1


def test_batches_are_full_whatever_is_in_them(txt2img: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven prompts of several lengths and scales in batches of three are three walks, of 3, 3 and 1 pictures, and no
    walk asks the network for a row twice."""
    from ldm import generate
    from ldm.models.diffusion.denoiser import Conditioning, Denoiser

    batches: list[int] = []
    rows: list[int] = []
    sample, call = generate.sample, Denoiser.__call__

    def counted(model: Any, batch: Any, *arguments: Any) -> Any:
        batches.append(len(batch))
        return sample(model, batch, *arguments)

    def seen(self: Denoiser, x: torch.Tensor, sigma: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        rows.append(len(x))
        return call(self, x, sigma, cond)

    monkeypatch.setattr(generate, "sample", counted)
    monkeypatch.setattr(Denoiser, "__call__", seen)
    Path("p.txt").write_text("".join(f"a {'long ' * (20 * (i % 3))}(cube:1.{i})\n" for i in range(7)))
    assert txt2img("--from-file", "p.txt", "--scale", "2,3", "--steps", 2, "--n-samples", 3, "--skip-grid") == 0
    assert batches == [3, 3, 1] and len(list(Path("outputs").glob("*.png"))) == 7
    assert sum(rows) == 2 * 2 * 7


@pytest.mark.long
@pytest.mark.parametrize("exact", [False, True])
def test_tiles_are_written_down_and_reproduced(txt2img: Run, img2img: Run, capsys: Capture, exact: bool) -> None:
    words = ("--tile", 32, *(("--exact-tiles",) if exact else ()))
    job = ("--prompt", "a", *LARGE, "--steps", 2)
    assert txt2img(*job, *words, "--save-intermediates", 2) == 0
    assert txt2img(*job, "--outdir", "whole") == 0
    request = read_request("outputs/00000-0.png")
    assert (request["tile"], request["exact_tiles"]) == (32, exact)
    off = np.abs(pixels("outputs/00000-0.png") - pixels("whole/00000-0.png")).max()
    assert off <= 1 if exact else off > 1
    last = pixels("outputs/00000-0-steps/0002.png")
    assert np.array_equal(last, pixels("outputs/00000-0.png"))  # what is decoded on the way is cut, too
    assert txt2img("--reproduce", "outputs/00000-0.png", "--outdir", "again") == 0
    assert "bit for bit" in capsys.readouterr().out
    begin = ("--prompt", "a", "--init-img", "whole/00000-0.png", "--strength", 0)
    assert img2img(*begin, *words, "--outdir", "from") == 0 and img2img(*begin, "--outdir", "plain") == 0
    off = np.abs(pixels("from/00000-0.png") - pixels("plain/00000-0.png")).max()
    assert off <= 1 if exact else off > 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--tile", 20), "tile 20 with overlap 0: give multiples of 8"),
        (("--exact-tiles",), "--exact-tiles: nothing is cut into tiles; give --tile a size"),
        (("--batch-size", "many"), "--batch-size: 'many' is not a whole number; give 1 … 10000, or auto"),
    ],
)
def test_mistakes(txt2img: Run, capsys: Capture, words: tuple[object, ...], sentence: str) -> None:
    assert txt2img("--prompt", "a", *words) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.long
def test_explain_tells_what_is_chosen(txt2img: Run, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    import _fit

    monkeypatch.setattr(_fit, "free_memory", lambda device: 1_000_000)
    monkeypatch.setattr(_fit, "TILES", (32, 16))
    assert txt2img("--explain", "--prompt", "a", *LARGE) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "chosen 1 at once (of 1 MB free), which may be too many autoencoder in exact tiles of 16 pixels" in out


def test_offload_has_nowhere_to_go_on_a_cpu(txt2img: Run, capsys: Capture) -> None:
    assert txt2img("--prompt", "a", "--steps", 1, "--offload") == 0
    assert "--offload: there is one memory only, the CPU's; nothing is moved" in capsys.readouterr().out
