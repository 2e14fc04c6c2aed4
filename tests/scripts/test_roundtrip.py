"""The script that writes, loads and saves files of full size, on small ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import roundtrip
import torch


@pytest.mark.long
def test_every_step_of_a_small_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert roundtrip.main(["sd-v2", "--small", "--folder", str(tmp_path / "new")]) == 0
    table = capsys.readouterr().out
    assert table.count("bit by bit") == 4 and "UNet2DConditionModel: " in table and "AutoencoderKL: " in table
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "sd-v2.safetensors", "sd-v2-again.safetensors", "sd-v2-diffusers",
    }  # fmt: skip
    with pytest.raises(SystemExit):
        roundtrip.main(["sd-v2", "--small", "--folder", str(tmp_path / "new")])
    assert "is not empty; give another" in capsys.readouterr().err


@pytest.mark.long
def test_a_family_before_clip_is_loaded_by_diffusers_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert roundtrip.main(["ldm-ffhq-vq4", "--small"]) == 0
    table = capsys.readouterr().out
    assert "UNet2DModel: " in table and "VQModel: " in table


@pytest.mark.long
def test_a_tensor_that_does_not_come_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write = roundtrip.convert

    def spoiled(path: Path, out: Path, **options: Any) -> None:
        write(path, out, **options)
        tensors = {key: tensor.clone() for key, tensor in roundtrip.read(out).tensors.items()}
        tensors["first_stage_model.decoder.conv_in.bias"][0] += 1
        roundtrip.write(out, tensors)

    monkeypatch.setattr(roundtrip, "convert", spoiled)
    assert roundtrip.main(["ldm-cin256-vq4", "--small"]) == 1
    assert "1 tensors of " in (error := capsys.readouterr().err) and "first_stage_model.decoder.conv_in.bias" in error


@pytest.mark.parametrize("name", ["ldm-text2img-1p4b", "ldm-lsun-churches-kl8", "sd-v2-unclip-h-unet-vae-text"])
def test_families_that_are_not_compared_have_a_small_file_too(name: str) -> None:
    _, small = roundtrip.family_of(name, True)
    _, published = roundtrip.family_of(name, False)
    assert set(small) <= set(published)
    assert sum(tensor.numel() for tensor in small.values()) < 5e7


def test_what_is_on_one_side_only() -> None:
    with pytest.raises(roundtrip.DifferentError, match="1 tensors of 1 differ, the first is b"):
        roundtrip.compare({"a": torch.ones(1)}, {"a": torch.ones(1), "b": torch.ones(1)})
