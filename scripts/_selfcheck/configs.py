"""Configs that are no YAML, no config, or of values that cannot be; and files of settings."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from _selfcheck.case import Case, miniature

NAME = "configs"
PROMPT = ("--prompt", "a red cube")
ABSENT = object()
CHANGES: tuple[tuple[str, Any, str], ...] = (  # where in the miniature's config, what stands there, what is named
    ("target", "LatentDifusion", "LatentDifusion"),
    ("target", "os.system", "os.system"),
    ("target", 5, "target"),
    ("target", "UNet", "UNet"),
    ("target", ["UNet"], "target"),
    ("params", [1], "params"),
    ("params", "unet", "params"),
    ("params.unet", ABSENT, "params.unet"),
    ("params.unet", None, "params.unet"),
    ("params.unet", 5, "params.unet"),
    ("params.unet", {"target": "subprocess.Popen", "params": {"args": "touch gone"}}, "subprocess.Popen"),
    ("params.unet", {"target": "AutoencoderKL", "params": {}}, "unet"),
    ("params.unett", {"target": "UNet"}, "unett"),
    ("params.parameterization", "epsilon", "parameterization"),
    ("params.parameterization", True, "parameterization"),
    ("params.image_size", -8, "image_size"),
    ("params.image_size", 0, "image_size"),
    ("params.image_size", 33, "33"),
    ("params.image_size", "32px", "image_size"),
    ("params.image_size", 1 << 40, "image_size"),
    ("params.guidance_scale", "high", "guidance_scale"),
    ("params.guidance_scale", float("nan"), "scale"),
    ("params.guidance_scale", float("inf"), "scale"),
    ("params.schedule", {"target": "NoiseSchedule", "params": {"num_timesteps": 0}}, "timesteps"),
    ("params.schedule", {"target": "NoiseSchedule", "params": {"num_timesteps": -5}}, "timesteps"),
    ("params.schedule", {"target": "NoiseSchedule", "params": {"num_timesteps": 1 << 40}}, "timesteps"),
    ("params.schedule", {"target": "NoiseSchedule", "params": {"beta_start": float("nan")}}, "beta_start"),
    ("params.schedule", {"target": "NoiseSchedule", "params": {"beta_start": -1.0}}, "beta_start"),
    ("params.schedule", {"target": "NoiseSchedule", "params": {"beta_end": 2.0}}, "beta_end"),
    ("params.unet.params.in_channels", 5, "channels"),
    ("params.unet.params.in_channels", 0, "in_channels"),
    ("params.unet.params.in_channels", -4, "in_channels"),
    ("params.unet.params.out_channels", 1 << 40, "bad.yaml"),
    ("params.unet.params.block_out_channels", [], "block_out_channels"),
    ("params.unet.params.block_out_channels", [32, 33], "33"),
    ("params.unet.params.block_out_channels", [32, "64"], "block_out_channels"),
    ("params.unet.params.block_out_channels", [1 << 24, 1 << 24], "bad.yaml"),
    ("params.unet.params.attention_levels", [True], "attention_levels"),
    ("params.unet.params.layers_per_block", 0, "layers_per_block"),
    ("params.unet.params.layers_per_block", 100_000, "layers_per_block"),
    ("params.unet.params.head_channels", 0, "bad.yaml"),
    ("params.unet.params.head_channels", 7, "head_channels"),
    ("params.unet.params.context_dim", 1.5, "context_dim"),
    ("params.autoencoder.params.norm_num_groups", 0, "norm_num_groups"),
    ("params.autoencoder.params.norm_num_groups", 3, "norm_num_groups"),
    ("params.autoencoder.params.scaling_factor", 0.0, "scaling_factor"),
    ("params.autoencoder.params.scaling_factor", float("nan"), "scaling_factor"),
    ("params.text_encoder.params.heads", 0, "heads"),
    ("params.text_encoder.params.heads", 5, "heads"),
    ("params.text_encoder.params.layers", -1, "layers"),
    ("params.text_encoder.params.context_length", 0, "context_length"),
)
TEXTS = {
    "empty": b"",
    "a comment": b"# nothing\n",
    "a list": b"- 1\n- 2\n",
    "a word": b"hello\n",
    "not YAML": b"target: [unclosed\n",
    "a tab": b"target:\n\t- x\n",
    "a duplicate key": b"target: UNet\ntarget: UNet\n",
    "an anchor that grows": b"a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n",
    "a Python object": b"target: !!python/object/apply:os.system ['touch gone']\n",
    "a resolver": b"target: ${oc.env:HOME}\n",
    "a resolver in a resolver": b"target: ${oc.decode:${oc.env:HOME}}\n",
    "itself": b"target: ${target}\n",
    "nothing there": b"target: ${a.b}\n",
    "missing": b"target: ???\n",
    "deep": b"a: " + b"[" * 5000 + b"]" * 5000,
    "binary": bytes(range(256)),
    "UTF-16": "target: UNet\n".encode("utf-16"),
    "two megabytes": b"a: 1\n" * 500_000,
    "two documents": b"target: UNet\n---\ntarget: UNet\n",
    "a date for a name": b"2020-01-01: 5\ntarget: UNet\n",
}
SETTINGS = {
    "an unknown option": (b"stepz: 5\n", "stepz"),
    "a bad value": (b"steps: many\n", "--steps"),
    "a mapping": (b"steps: {a: 1}\n", "steps"),
    "of one job only": (b"prompt: a cube\n", "prompt"),
    "a list": (b"- steps\n", "bad.yaml"),
    "a number for a switch": (b"compile: 5\n", "compile"),
}


def changed(where: str, value: Any) -> bytes:
    """The miniature's config with one value changed. JSON is YAML, but for its NaN."""
    tree = copy.deepcopy(miniature())
    *path, last = where.split(".")
    node = tree
    for key in path:
        node = node[key]
    if value is ABSENT:
        del node[last]
    else:
        node[last] = value
    return json.dumps(tree).replace("NaN", ".nan").replace("Infinity", ".inf").encode()


def cases() -> Iterator[Case]:
    config = (*PROMPT, "--config", "bad.yaml")
    for where, value, says in CHANGES:
        shown = "left out" if value is ABSENT else str(value)[-50:]
        yield Case(f"{where}: {shown}", config, says, {"bad.yaml": changed(where, value)})
    for name, text in TEXTS.items():
        yield Case(name, config, "bad.yaml", {"bad.yaml": text})
    for name, (text, says) in SETTINGS.items():
        yield Case(f"settings: {name}", (*PROMPT, "--settings", "bad.yaml"), says, {"bad.yaml": text})
    yield Case("no such name", (*PROMPT, "--config", "sd-v9"), "sd-v9")
