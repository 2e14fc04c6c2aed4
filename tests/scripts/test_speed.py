"""Options that are to change how fast a picture is drawn."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ldm.png import read_request

Run = Any
Capture = pytest.CaptureFixture[str]


def test_attention_is_pinned_recorded_and_reproduced(
    txt2img: Run, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.backends import cuda

    from ldm.models.diffusion.denoiser import Denoiser

    math_alone: list[bool] = []
    call = Denoiser.__call__

    def spy(*args: Any) -> Any:
        math_alone.append(cuda.math_sdp_enabled() and not cuda.flash_sdp_enabled())
        return call(*args)

    monkeypatch.setattr(Denoiser, "__call__", spy)
    assert txt2img("--prompt", "a", "--steps", 2, "--attention", "math") == 0
    assert math_alone == [True, True] and cuda.flash_sdp_enabled()
    assert read_request("outputs/00000-0.png")["attention"] == "math"
    assert txt2img("--reproduce", "outputs/00000-0.png", "--outdir", "again") == 0
    assert math_alone == [True] * 4 and "bit for bit" in capsys.readouterr().out
    assert txt2img("--prompt", "a", "--steps", 1) == 0
    assert math_alone[4:] == [False] and read_request("outputs/00001-0.png")["attention"] == "auto"


def test_a_kernel_that_is_not_there_is_one_sentence(txt2img: Run, capsys: Capture) -> None:
    assert txt2img("--prompt", "a", "--attention", "cudnn") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --attention cudnn: torch") and error.count("\n") == 1
    assert txt2img("--prompt", "a", "--attention", "fast") == 2
    assert "there are auto, math, flash, efficient, cudnn" in capsys.readouterr().err
    assert not list(Path().rglob("*.png"))


@pytest.mark.long
def test_compile_is_for_every_network_and_is_recorded(txt2img: Run, tiny_file: Path, monkeypatch: Any) -> None:
    import _speed

    import ldm.regions

    compiled: list[Any] = []
    monkeypatch.setattr(ldm.regions, "compile_regions", compiled.append)
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path.cwd() / "cache"))
    monkeypatch.delenv(_speed.CACHE, raising=False)
    assert txt2img("--prompt", "a", "--steps", 1, "--compile", "--autoguide", tiny_file, "--refiner", tiny_file) == 0
    assert len(set(compiled)) == 3 and read_request("outputs/00000-0.png")["compile"] is True
    assert os.environ[_speed.CACHE] == str(Path.cwd() / "cache" / "ldm" / "kernels")
    assert txt2img("--reproduce", "outputs/00000-0.png", "--outdir", "again") == 0
    assert len(compiled) == 6
    monkeypatch.setenv(_speed.CACHE, "mine")
    _speed.keep_kernels()
    assert os.environ[_speed.CACHE] == "mine"


def test_no_compiler_is_one_sentence(txt2img: Run, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    import _speed
    from torch._inductor import cpp_builder

    def missing() -> str:
        raise RuntimeError("no g++")

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    monkeypatch.setenv(_speed.CACHE, "kernels")
    assert txt2img("--prompt", "a", "--compile") == 2
    assert (
        capsys.readouterr().err
        == "error: --compile: torch finds no C++ compiler; install g++, or leave --compile out\n"
    )


ROOT = Path(__file__).parents[2]
MAP = """
import ctypes, sys, torch
sys.path.insert(0, "scripts")
from _speed import keep_freed_memory

class Heap(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]

mallinfo2 = ctypes.CDLL("libc.so.6").mallinfo2
mallinfo2.restype = Heap

def mapped_apart():
    before = mallinfo2().hblkhd
    big = torch.ones(1 << 24)
    return mallinfo2().hblkhd - before

print(mapped_apart() >= 1 << 26, keep_freed_memory(), mapped_apart(), mallinfo2().fordblks >= 1 << 26)
"""


@pytest.mark.long
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_kept_for_the_next_tensor() -> None:
    """A large tensor has a mapping of its own at first; then it comes from the heap, and what it leaves stays there."""
    out = subprocess.run([sys.executable, "-c", MAP], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.split() == ["True", "True", "0", "True"]


HOLE = """
import sys, torch
from types import SimpleNamespace
sys.path.insert(0, "scripts")
import _speed
from ldm.modules.blocks import Upsample

def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) >> 10  # MB

_speed.keep_freed_memory()
decoder = torch.nn.Sequential(Upsample(1)).requires_grad_(False)
model = SimpleNamespace(autoencoder=SimpleNamespace(decoder=decoder), unet=torch.nn.Linear(40, 40))

def given_back():
    large, above = torch.ones(1 << 24), torch.ones(1 << 10)
    full = resident()
    del large
    decoder(torch.ones(1, 1, 4, 4))
    return full - resident() > 50

_speed.give_back_holes(model)  # whose UNet is small
print(given_back())
_speed.LARGE = 16
print(given_back())
decoder[0]._forward_hooks.clear(), decoder[0]._forward_pre_hooks.clear()
print(given_back())
_speed.give_back_holes(model)
decoder[0]._forward_hooks.clear(), decoder[0]._forward_pre_hooks.clear()
print(given_back())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc_trim is glibc's")
def test_holes_are_given_back_before_a_decoder_and_where_its_tensors_are_large() -> None:
    out = subprocess.run([sys.executable, "-c", HOLE], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.split() == ["False", "True", "False", "True"]


def test_a_library_that_cannot_keep_memory_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import _speed

    monkeypatch.setattr(sys, "platform", "darwin")
    assert not _speed.keep_freed_memory()
