"""What the scripts choose for a processor, and set it to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from _device import default_precision, multiplies_bfloat16

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("avx512", "amx", "expected"), [(1, 0, True), (0, 1, True), (1, 1, True), (0, 0, False)])
def test_bfloat16_where_the_processor_multiplies_in_it(
    avx512: int, amx: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bool(avx512))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: bool(amx))
    assert multiplies_bfloat16() is expected
    assert default_precision("cpu") == ("bf16" if expected else "full")


def test_float32_where_torch_cannot_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert default_precision("cpu") == "full"


def test_half_precision_on_a_gpu_whatever_the_processor() -> None:
    assert {default_precision(device, has) for device in ("cuda", "mps") for has in (True, False)} == {"fp16"}


MAP = """
import resource, sys, torch
sys.path.insert(0, "scripts")
from _device import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
mapped = faults()
print(keep_freed_memory())
faults()
print(mapped > 4 * faults() or mapped == 0)
"""


def test_freed_memory_is_kept_for_the_next_tensor() -> None:
    out = subprocess.run([sys.executable, "-c", MAP], capture_output=True, text=True, check=True, cwd=ROOT)
    on_linux = sys.platform.startswith("linux")
    assert out.stdout.split() == ([str(on_linux), "True"] if on_linux else ["False", out.stdout.split()[1]])
