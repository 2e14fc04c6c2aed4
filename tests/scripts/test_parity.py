"""Small versions of every family against `diffusers`; full size is for `python scripts/parity.py FAMILY`."""

from __future__ import annotations

import json
from typing import Any

import parity
import pytest
import torch
from _diffusers import Theirs, build_theirs, pipeline, states
from _synthetic import filled
from torch import nn

from ldm.items import Item
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.noise import starting_noise
from ldm.refiner import Refiner
from ldm.sampling import sample
from ldm.settings import resolve

LONG = [pytest.param(family, marks=pytest.mark.long) for family in parity.FAMILIES[1:]]


@pytest.mark.parametrize("family", [parity.FAMILIES[0], *LONG])
def test_we_compute_what_diffusers_computes(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    params, model = parity.skeleton(family, True)
    monkeypatch.setattr(parity, "skeleton", lambda *_: (params, model))
    rows = {}
    for row in parity.compare(family, small=True):
        rows[row.part] = row
        assert not (has_weights(model.unet) and has_weights(model.text_encoder))  # SDXL's are 10.3 and 3.3 GB
    assert {"text", "UNet", "encoder", "decoder", parity.LATENTS, parity.PIXELS} <= set(rows)
    for row in rows.values():
        assert row.relative < 1e-4, row  # a real difference, such as an epsilon, is more; rounding is 1e-6
    assert rows[parity.PIXELS].mean < 1
    assert not has_weights(model)


def has_weights(module: nn.Module) -> bool:
    return any(not parameter.is_meta for parameter in module.parameters())


@pytest.mark.long
def test_a_difference_is_found(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    skeleton = parity.skeleton

    def slightly_other(family: str, small: bool, size: int | None) -> tuple[dict, LatentDiffusion]:
        params, model = skeleton(family, small, size)
        model.unet.flip_sin_to_cos = False  # theirs is built from the config
        return params, model

    monkeypatch.setattr(parity, "skeleton", slightly_other)
    assert parity.main(["sd-v1", "--small"]) == 1
    table = capsys.readouterr().out
    assert f"| {parity.PIXELS}" in table and "few channels" in table and "peak memory" in table


@pytest.mark.long
def test_another_size_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert parity.main(["sd-v1", "--small", "--size", "64", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["family"], found["size"], found["agrees"]) == ("sd-v1", 64, True)
    assert {one["part"] for one in found["rows"]} >= {"text", "UNet", parity.LATENTS}
    assert 0 < found["peak memory, GB"] < 100
    with pytest.raises(SystemExit):
        parity.main(["sd-v1", "--small", "--size", "60"])
    assert "give a positive multiple of 64" in capsys.readouterr().err


def read(model: LatentDiffusion, theirs: Theirs) -> dict[str, Any]:
    tokens = model.text_encoder.tokenize([parity.PROMPT, ""])
    return parity.prompts(model, *states(theirs.towers, tokens))


@pytest.mark.long
@torch.inference_mode()
def test_the_step_where_the_refiner_takes_over_is_theirs() -> None:
    """Both hand over from base to refiner after 0.8 of 10 steps, and after 0.35, which is no whole step."""
    parts = ("text_encoder", "autoencoder", "unet")
    (base_params, base), (refiner_params, refiner) = (
        parity.skeleton(f"sdxl-{name}", True) for name in ("base", "refiner")
    )
    with filled(base, *parts), filled(refiner, *parts):
        their_base, their_refiner = build_theirs(base_params, base), build_theirs(refiner_params, refiner)
        for at in (0.8, 0.35):
            settings = resolve(base, steps=10)
            for step in sample(base, [Item(parity.PROMPT, None, 3)], settings, refiner=Refiner(refiner, at)):
                ours = step.x
            how = {"num_inference_steps": 10, "guidance_scale": settings.guidance_scale, "output_type": "latent"}
            side = settings.height
            begun = pipeline("sdxl-base", base_params, their_base)(
                **read(base, their_base),
                latents=starting_noise([3], base.latent_shape(side, side)),
                denoising_end=at,
                height=side,
                width=side,
                **how,
            ).images
            finish = pipeline("sdxl-refiner", refiner_params, their_refiner)
            theirs = finish(**read(refiner, their_refiner), image=begun, denoising_start=at, **how).images
            assert parity.row("latents", ours, theirs).relative < 1e-4
