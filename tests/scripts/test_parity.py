"""Small versions of every family against `diffusers`; full size is for `python scripts/parity.py FAMILY`."""

from __future__ import annotations

import parity
import pytest
import torch
from _diffusers import build_theirs, pipeline

from ldm.generate import sample
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.noise import starting_noise
from ldm.refiner import Refiner
from ldm.request import Item, resolve


@pytest.mark.parametrize("family", parity.FAMILIES)
def test_we_compute_what_diffusers_computes(family: str) -> None:
    rows = {row.part: row for row in parity.compare(family, small=True)}
    assert {"text", "UNet", "encoder", "decoder", parity.LATENTS, parity.PIXELS} <= set(rows)
    for row in rows.values():
        assert row.relative < 1e-4, row  # a real difference, such as an epsilon, is more; rounding is 1e-6
    assert rows[parity.PIXELS].mean < 1


def test_a_difference_is_found(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    make = parity.make

    def slightly_other(family: str, small: bool) -> tuple[dict, LatentDiffusion]:
        params, model = make(family, small)
        model.unet.flip_sin_to_cos = False  # theirs is built from the config
        return params, model

    monkeypatch.setattr(parity, "make", slightly_other)
    assert parity.main(["sd-v1", "--small"]) == 1
    table = capsys.readouterr().out
    assert f"| {parity.PIXELS}" in table and "few channels" in table


@torch.inference_mode()
def test_the_step_where_the_refiner_takes_over_is_theirs() -> None:
    """Both hand over from base to refiner after 0.8 of 10 steps, and after 0.35, which is no whole step."""
    (base_params, base), (refiner_params, refiner) = (parity.make(f"sdxl-{name}", True) for name in ("base", "refiner"))
    their_base, their_refiner = build_theirs(base_params, base), build_theirs(refiner_params, refiner)
    for at in (0.8, 0.35):
        settings = resolve(base, steps=10)
        for step in sample(base, [Item(parity.PROMPT, None, 3)], settings, refiner=Refiner(refiner, at)):
            ours = step.x
        how = {"num_inference_steps": 10, "guidance_scale": settings.guidance_scale, "output_type": "latent"}
        side = settings.height
        begun = pipeline("sdxl-base", base_params, their_base)(
            **parity.prompts(base, their_base),
            latents=starting_noise([3], base.latent_shape(side, side)),
            denoising_end=at,
            height=side,
            width=side,
            **how,
        ).images
        finish = pipeline("sdxl-refiner", refiner_params, their_refiner)
        theirs = finish(**parity.prompts(refiner, their_refiner), image=begun, denoising_start=at, **how).images
        assert parity.row("latents", ours, theirs).relative < 1e-4
