"""Names and shapes of foreign checkpoints, spoiled: a case is what is done to those of a small file, in JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from _fuzz import spoil
from ldm.checkpoint.configs import CONFIGS
from ldm.checkpoint.meta import on_meta
from ldm.config import build, load_config

FAMILIES = ("sd-v1", "sd-v2", "sdxl-base", "ldm-cin256", "ldm-ffhq", "ldm-text2img", "sd-v2-depth", "ddpm-cat-256")


@cache
def family(name: str) -> tuple[Any, dict[str, tuple[int, ...]], dict[str, Any]]:
    """Few levels of the widths they have, on the meta device: the model, its file's shapes by name, its config."""
    from ldm.checkpoint import single_file

    tree = load_config(CONFIGS / f"{name}.yaml")
    for part in ("unet", "autoencoder"):
        params = tree["params"][part].get("params", {})
        for key in ("block_out_channels", "attention_levels", "transformer_depth"):
            if isinstance(params.get(key), list):
                params[key] = params[key][1:3] if key == "attention_levels" else params[key][:2]
    text = tree["params"]["text_encoder"].get("params", {})
    for tower in (text.get("first", {}).get("params", {}), text.get("second", {}).get("params", {}), text):
        if "layers" in tower or "name" in tower:
            tower |= {"layers": 2}
    if "depth_estimator" in tree["params"]:
        tree["params"]["depth_estimator"]["params"] = {"layers": 4, "hooks": [1, 3], "stage_depths": [2, 1, 1]}
    with on_meta():
        made = build(tree, name)
    try:
        named = single_file.to_original(made)
    except ValueError:  # of networks that no original file has
        named = made.state_dict()
    return made, {key: tuple(tensor.shape) for key, tensor in named.items()}, tree


def keys() -> st.SearchStrategy[bytes]:
    shapes = {name: family(name)[1] for name in FAMILIES}
    names = [key for found in shapes.values() for key in found]
    words = st.one_of(
        st.sampled_from(names), st.sampled_from(spoil.TEXTS), st.sampled_from(names).map(lambda n: n[:-1])
    )
    sizes = st.lists(st.sampled_from((0, 1, 2, 3, 7, 64, 320, 768, 1024, 2**20)), max_size=3)
    edits = {"drop": st.just(None), "rename": words, "shape": sizes, "double": words, "prefix": words}

    def of(base: str) -> st.SearchStrategy[Any]:
        one = [st.tuples(st.just(kind), st.sampled_from(list(shapes[base])), what) for kind, what in edits.items()]
        return st.fixed_dictionaries({"base": st.just(base), "edits": st.lists(st.one_of(one), min_size=1, max_size=5)})

    return st.sampled_from(FAMILIES).flatmap(of).map(lambda case: json.dumps(case).encode())


def edited(shapes: dict[str, tuple[int, ...]], edits: Sequence[Any]) -> dict[str, tuple[int, ...]]:
    for kind, name, what in edits:
        if kind == "prefix":  # before every name that has the same beginning
            start = name.partition(".")[0]
            shapes = {f"{what}.{key}" if key.startswith(start) else key: shape for key, shape in shapes.items()}
        elif name in shapes and kind == "shape":
            shapes = {**shapes, name: tuple(what)}
        elif name in shapes:
            shapes = dict(shapes)
            shape = shapes[name] if kind == "double" else shapes.pop(name)
            shapes |= {what: shape} if what is not None else {}
    return shapes


def read_keys(path: Path) -> None:
    """As `load` does, but for the numbers: what is not read from a file names none, and `load` adds it."""
    from ldm.checkpoint import configs, detect, layouts
    from ldm.checkpoint.fit import check_fit
    from ldm.checkpoint.read import CheckpointError, Weights

    case = json.loads(path.read_bytes())
    made, shapes, tree = family(case["base"])
    found = {k: torch.empty(s, device="meta", dtype=torch.float16) for k, s in edited(shapes, case["edits"]).items()}
    tensors = layouts.unwrapped(found)
    str(detect.signature(tensors)), detect.parts(tensors)
    fitted, _ = configs.find_config(Weights(tensors), path, tree)
    configs.with_cut_tower(fitted, Weights(tensors), str(path))
    try:
        ours = layouts.to_internal(tensors, made)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    check_fit(made, ours, path, case["base"])
