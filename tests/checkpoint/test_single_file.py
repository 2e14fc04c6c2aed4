"""The shipped configs against the published files' lists of tensors, on the meta device."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ldm.checkpoint import single_file
from ldm.checkpoint.configs import CONFIGS
from ldm.checkpoint.fit import check_fit
from ldm.checkpoint.meta import on_meta
from ldm.config import build, load_config
from ldm.models.latent_diffusion import LatentDiffusion

LAYOUTS = Path(__file__).parents[1] / "golden" / "layouts"
PUBLISHED = {"sd-v2-v": "sd-v2", "ldm-text2img": "ldm-text2img-1p4b"}
NO_WEIGHTS = {  # in the files, and not in the model
    "sd-v1": {"cond_stage_model.transformer.text_model.embeddings.position_ids"},
    "sd-v2": {f"cond_stage_model.model.{name}" for name in ("text_projection", "logit_scale", "attn_mask")},
    "ldm-text2img": {f"cond_stage_model.transformer.to_logits.{name}" for name in ("weight", "bias")},
}


def skeleton(config: str) -> LatentDiffusion:
    with on_meta():
        return build(load_config(CONFIGS / f"{config}.yaml"), config)


def layout(name: str) -> dict[str, torch.Tensor]:
    entries = json.loads((LAYOUTS / f"{name}.json").read_text())
    return {
        key: torch.empty(shape, dtype=getattr(torch, dtype), device="meta") for key, (shape, dtype) in entries.items()
    }


@pytest.mark.parametrize("config", ["sd-v1", "sd-v2", "sd-v2-v", "ldm-text2img"])
def test_published_layout(config: str) -> None:
    """Every tensor of the file has its place, of its shape, there and back."""
    model, published = skeleton(config), layout(PUBLISHED.get(config, config))
    published |= {
        f"model_ema.{name.replace('.', '')}": torch.empty(1) for name in published if name.startswith("model.")
    }
    check_fit(model, single_file.to_internal(published, model), Path(config), config)

    back = single_file.to_original(model)
    weights = {name for name in published if "." in name and not name.startswith("model_ema.")} - NO_WEIGHTS[
        config.removesuffix("-v")
    ]
    assert back.keys() == weights
    assert [name for name in back if back[name].shape != published[name].shape] == []


@pytest.mark.parametrize(
    ("config", "parameterization", "guidance_scale", "image_size"),
    [("sd-v1", "eps", 7.5, 512), ("sd-v2", "eps", 9.0, 512), ("sd-v2-v", "v", 9.0, 768)],
)
def test_numbers_no_file_tells(config: str, parameterization: str, guidance_scale: float, image_size: int) -> None:
    model = skeleton(config)
    assert (model.parameterization, model.guidance_scale, model.image_size) == (
        parameterization,
        guidance_scale,
        image_size,
    )
    assert model.autoencoder.scaling_factor == 0.18215
    assert model.schedule.sigmas[[0, -1]].tolist() == pytest.approx([0.0292, 14.6146], abs=1e-4)
    tower = model.text_encoder
    assert (tower.layer, tower.final_norm, tower.pad_id) == (
        ("last", True, 49407) if config == "sd-v1" else ("penultimate", True, 0)
    )


def test_scenes_is_small() -> None:
    assert sum(tensor.numel() for tensor in skeleton("scenes").parameters()) < 25e6
