"""Each parser of what others wrote: good cases to spoil, and the reading, which ends with a result or a ValueError that
names the file. A case is bytes, those of a file (of `keys`: see foreign_names.py; what ldm writes: own_words.py)."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from hypothesis import strategies as st
from torch import Tensor

from _fuzz import spoil
from _fuzz.foreign_names import keys, read_keys
from _fuzz.own_words import manifests, pictures, read_manifest, read_picture
from ldm.checkpoint.configs import CONFIGS
from ldm.checkpoint.meta import on_meta
from ldm.config import build, check, load_config

Cases = st.SearchStrategy[bytes]


@dataclass(frozen=True)
class Parser:
    """refuses: False where everything is a text, and nothing may fail."""

    name: str
    file: str  # what a case is called
    cases: Callable[[], Cases]
    read: Callable[[Path], object]
    refuses: bool = True


# --- weights -----------------------------------------------------------------------------------------------------


def weights() -> dict[str, Tensor]:
    made = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2, dtype=torch.float16)}
    return made | {"b": torch.arange(4), "c.scale": torch.tensor(0.5, dtype=torch.bfloat16), "d": torch.zeros(0, 3)}


def safetensors() -> Cases:
    from safetensors.torch import save

    whole = save(weights(), {"format": "pt", "config": "{}"})
    length = 8 + int.from_bytes(whole[:8], "little")
    header, size = json.loads(whole[8:length]), len(whole) - length
    own = spoil.written("own.safetensors", _write)
    within = st.tuples(spoil.texts_of([header, {"a": header["a.weight"]}]), st.sampled_from((size, 24, 0, 1 << 16)))
    return st.one_of(within.map(lambda case: spoil.safetensors(*case)), spoil.bytes_of([whole, own]))


def _write(path: Path) -> None:
    from ldm.checkpoint.write import write

    write(path, weights(), {"config": "{}"})


def read_weights(path: Path) -> object:
    from ldm.checkpoint.read import read

    return read(path)


def checkpoints() -> Cases:
    contents = {"state_dict": weights(), "epoch": 3, "callbacks": [1.5, None, ("a", b"b")]}
    zips, old = (_saved(contents, is_zip) for is_zip in (True, False))
    with zipfile.ZipFile(io.BytesIO(zips)) as file:
        records = [(name, file.read(name)) for name in file.namelist()]
    pickles = [data for name, data in records if name.endswith(".pkl")]
    program = spoil.programs_of([*pickles, b"\x80\x02}."])
    in_zip = program.map(lambda new: spoil.zipped([(n, new if n.endswith(".pkl") else data) for n, data in records]))
    others = st.lists(st.sampled_from(records), max_size=12).map(spoil.zipped)
    compressed = program.map(lambda new: spoil.zipped([("a/data.pkl", new)], zipfile.ZIP_DEFLATED))
    return st.one_of(in_zip, others, compressed, spoil.bytes_of([zips, old]), spoil.programs_of(list(_pickles(old))))


def _saved(contents: object, is_zip: bool) -> bytes:
    with io.BytesIO() as buffer:
        torch.save(contents, buffer, _use_new_zipfile_serialization=is_zip)
        return buffer.getvalue()


def _pickles(old: bytes) -> Iterator[bytes]:
    """A file of before torch 1.6 as one program: its parts follow each other, and an edit may move what ends one."""
    import pickletools

    file = io.BytesIO(old)
    for _ in range(5):
        for _ in pickletools.genops(file):
            pass
    yield old[: file.tell()]


# --- text --------------------------------------------------------------------------------------------------------


def configs() -> Cases:
    from _selfcheck.case import miniature

    names = ("sd-v1", "scenes", "sdxl-base", "train/scenes", "train/judge")
    texts = [(CONFIGS / f"{name}.yaml").read_bytes() for name in names if (CONFIGS / f"{name}.yaml").is_file()]
    return st.one_of(spoil.texts_of([miniature()]), spoil.bytes_of(texts))


def read_config(path: Path) -> None:
    import ldm.models.latent_diffusion
    import ldm.models.text_encoder
    import ldm.training.experiments
    import ldm.training.scene_experiments  # noqa: F401  (each registers what configs name)
    from ldm.checkpoint.original_config import translate

    tree = translate(load_config(path), str(path))
    check(tree, str(path))
    if tree["target"] == "LatentDiffusion":
        with on_meta():
            build(tree, str(path))


PROMPTS = (
    "a (red:1.3) cube [on a sunny day:at night:0.4], [red|blue|] sphere :1.2 AND a dog\\:) BREAK ((fog)) [cone:8]",
    "[[a:b:3]:(c:0.5):0.25] \\(\\AND\\) AND AND [x|[y|z]|(w:-2)] :.5 BREAK BREAK",
    "ein großer Würfel, 立方体 🧊 :9.9 AND [from:to:999999999]",
)


def read_prompt(path: Path) -> None:
    from ldm.prompt import parse

    text = path.read_bytes().decode("utf-8", "surrogateescape")
    for compose in (True, False):
        found = parse(text, compose=compose)
        for steps in (1, 7, 1000):
            found.schedule(steps)


def read_prompt_file(path: Path) -> None:
    from _cli import parse

    parse("txt2img", ["--from-file", str(path)])


PARSERS = {
    parser.name: parser
    for parser in (
        Parser("safetensors", "a.safetensors", safetensors, read_weights),
        Parser("checkpoint", "a.ckpt", checkpoints, read_weights),
        Parser("config", "a.yaml", configs, read_config),
        Parser("picture", "a.png", pictures, read_picture),
        Parser("prompt", "a.prompt", lambda: spoil.bytes_of([p.encode() for p in PROMPTS], 8), read_prompt, False),
        Parser(
            "prompt file",
            "a.txt",
            lambda: spoil.bytes_of(["\r\n".join(PROMPTS).encode(), b"\xef\xbb\xbfa\n"]),
            read_prompt_file,
        ),
        Parser("keys", "a.json", keys, read_keys),
        Parser("manifest", "job-00000.json", manifests, read_manifest),
    )
}
