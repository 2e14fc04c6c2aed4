"""Every published single file finds its config, fits the model of it, and comes back as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm.checkpoint import layouts, single_file
from ldm.checkpoint.configs import CONFIGS, without_absent_tower
from ldm.checkpoint.convert import convert
from ldm.checkpoint.detect import FAMILIES, signature
from ldm.checkpoint.fit import check_fit
from ldm.checkpoint.meta import on_meta
from ldm.config import build, load_config

LAYOUTS = Path(__file__).parents[1] / "golden" / "layouts"
CONSTANTS = ("position_ids", "attn_mask", "logit_scale")  # in the files, and no weights
POSITIONS = "cond_stage_model.transformer.text_model.embeddings.position_ids"
TOWERS_WITHOUT_POOLED = "cond_stage_model.model.text_projection"  # CLIP's projection, which SD 2 has no use for


def one_number(shape: list[int], value: int) -> Tensor:
    """A tensor of any size in four bytes, all of it one number."""
    return torch.tensor(float(value)).expand(shape)


def ends(tensor: Tensor) -> tuple[torch.Size, torch.dtype, Tensor, Tensor]:
    return tensor.shape, tensor.dtype, tensor[(0,) * tensor.ndim], tensor[(-1,) * tensor.ndim]


@pytest.mark.parametrize("name", sorted(path.stem for path in LAYOUTS.glob("*.json")))
def test_published_files_fit_and_come_back(name: str) -> None:
    """At full size: names, shapes, dtypes, and each tensor in the place of its own number."""
    entries = json.loads((LAYOUTS / f"{name}.json").read_text())
    tensors = {key: one_number(shape, i) for i, (key, (shape, _)) in enumerate(entries.items())}
    found = signature(tensors)
    assert found is not None
    path = CONFIGS / f"{FAMILIES[found].configs[0]}.yaml"
    with on_meta():
        model = build(without_absent_tower(load_config(path), tensors))
    inside = layouts.to_internal(layouts.unwrapped(tensors), model)
    check_fit(model, inside, Path(name), path.name)
    model.load_state_dict(inside, assign=True)

    back, rest = single_file.to_original(model), single_file.left_over(tensors, model)
    dropped = {
        k
        for k in tensors
        if "." not in k or k.endswith(CONSTANTS) or k.startswith("low_scale_model.") or ".to_logits." in k
    }
    assert rest.keys() == dropped | ({TOWERS_WITHOUT_POOLED} & tensors.keys())
    assert back.keys() == tensors.keys() - rest.keys()
    assert [key for key in back if ends(back[key]) != ends(tensors[key])] == []


WITH_CONFIGS = {name for family in FAMILIES.values() for name in family.configs if (CONFIGS / f"{name}.yaml").is_file()}


@pytest.mark.parametrize("family", sorted(WITH_CONFIGS - {"ldm-text2img", "ddpm-cat-256"}))
@torch.no_grad()
def test_a_file_of_each_family_comes_back(
    family: str, miniature: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    """In miniature, every bit: original -> ours -> original, in half precision but for one tensor."""
    torch.manual_seed(0)
    tree = miniature(family)
    tensors = {k: torch.randn(v.shape).half() for k, v in single_file.to_original(build(tree)).items()}
    last = next(reversed(tensors))
    tensors[last] = tensors[last].float()
    save_file(tensors | {"betas": torch.rand(9)}, tmp_path / "in.safetensors")
    convert(tmp_path / "in.safetensors", tmp_path / "ours.safetensors", config=tree)
    convert(tmp_path / "ours.safetensors", tmp_path / "back.safetensors", layout="original")
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == tensors.keys()
    assert all(back[k].dtype == tensors[k].dtype and torch.equal(back[k], tensors[k]) for k in back)


@pytest.mark.parametrize("version", [1, 2])
def test_all_that_an_original_file_holds_comes_back(
    version: int, miniature: Callable[[int], dict[str, Any]], tmp_path: Path
) -> None:
    """What is no weight of the model, too, NaNs and all; and the other copy of the UNet, if none is named."""
    tree = miniature(version)
    weights = {k: v.detach() for k, v in single_file.to_original(build(tree)).items()}
    averaged = {f"model_ema.{k[6:].replace('.', '')}": v + 1 for k, v in weights.items() if k.startswith("model.")}
    averaged |= {"model_ema.num_updates": torch.tensor(7), "model_ema.decay": torch.tensor(0.9999)}
    rest = {"betas": torch.rand(9, dtype=torch.float64), "scale_factor": torch.tensor(0.18215)}
    if version == 1:
        rest[POSITIONS] = torch.arange(77)[None]
    else:
        rest["cond_stage_model.model.attn_mask"] = torch.full((77, 77), -torch.inf).triu(1)
        rest["cond_stage_model.model.text_projection"] = torch.full((16, 16), torch.nan)
    torch.save({"state_dict": weights | averaged | rest}, tmp_path / "in.ckpt")

    def back(name: str, **options: Any) -> dict[str, Tensor]:
        convert(tmp_path / "in.ckpt", tmp_path / name, layout="original", config=tree, **options)
        return load_file(tmp_path / name)

    whole = back("whole.safetensors")
    assert whole.keys() == weights.keys() | averaged.keys() | rest.keys()
    for name, wanted in (weights | averaged | rest).items():
        assert whole[name].dtype == wanted.dtype and torch.equal(whole[name].nan_to_num(5), wanted.nan_to_num(5)), name
    if version == 2:
        return
    chosen = back("chosen.safetensors", use_ema=True, dtype=torch.float16)
    assert chosen.keys() == weights.keys() | rest.keys()
    assert (chosen["betas"].dtype, chosen[POSITIONS].dtype) == (torch.float16, torch.int64)
    first = "model.diffusion_model.input_blocks.0.0.weight"
    assert torch.equal(chosen[first], (weights[first] + 1).half())


def test_older_names_of_the_text_tower_come_back_once(
    miniature: Callable[[int], dict[str, Any]], tmp_path: Path
) -> None:
    tree, text = miniature(1), "cond_stage_model.transformer."
    weights = {k: v.detach() for k, v in single_file.to_original(build(tree)).items()}
    file = {k.replace("text_model.", ""): v for k, v in weights.items()}
    save_file(file | {f"{text}embeddings.position_ids": torch.arange(77)[None]}, tmp_path / "in.safetensors")
    convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", layout="original", config=tree)
    assert load_file(tmp_path / "out.safetensors").keys() == weights.keys() | {f"{text}embeddings.position_ids"}


def test_a_measured_scale_stays_in_the_file(miniature: Callable[[str], dict[str, Any]], tmp_path: Path) -> None:
    tree = miniature("ldm-lsun-churches")
    tensors = {k: v.detach() for k, v in single_file.to_original(build(tree)).items()}
    save_file(tensors | {"scale_factor": torch.tensor(0.22)}, tmp_path / "in.safetensors")
    convert(tmp_path / "in.safetensors", tmp_path / "back.safetensors", layout="original", config=tree)
    assert load_file(tmp_path / "back.safetensors")["scale_factor"] == torch.tensor(0.22)
