"""What the scripts choose for a processor."""

from __future__ import annotations

import pytest
import torch
from _device import default_precision, multiplies_bfloat16


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
