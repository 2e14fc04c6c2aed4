"""What ldm wrote itself, and somebody may have changed: the request in a picture, the manifest of a job."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from _fuzz import spoil
from ldm.config import build

Cases = st.SearchStrategy[bytes]


def requests() -> list[dict[str, Any]]:
    """What pictures say of themselves: one drawn from words, one from another picture, which is missing."""
    from dataclasses import asdict

    from ldm.items import Item
    from ldm.settings import resolve

    settings = asdict(resolve(model(), steps=4, sampler="euler", spacing="karras", sigma_max=9.0))
    about = {
        "name": "scenes",
        "config": None,
        "sha256": "0" * 64,
        "parameterization": None,
        "ema": None,
        "variant": None,
    }
    about |= {"refine_at": None, "parts": {"vae": {"file": "vae.safetensors", "sha256": "0" * 64}}}
    rest = {"command": "txt2img", "device": "cpu", "precision": "full", "backend": "torch", "threads": 1, "tile": 0}
    rest |= {"attention": "auto", "compile": False, "exact_tiles": False, "own": {}, "index": 0, "shows": "picture"}
    rest |= {"pictures": {}, "seed": 7, "prompt": "a cube", "model": about, "settings": settings}
    rest |= {"batch": [asdict(Item("a cube", None, 7)), asdict(Item("fog", "sun", 8))]}
    begun = {"init_img": {"file": "missing.png", "sha256": "0" * 64}}
    other = {"command": "img2img", "own": {"strength": 0.75}, "pictures": begun}
    return [json.loads(json.dumps(one)) for one in (rest, rest | other)]


@cache
def model() -> Any:
    from _selfcheck.case import miniature

    return build(miniature(), "miniature")


def pictures() -> Cases:
    from PIL import Image

    from ldm.png import parameters_text, text_chunks, write_png

    image, asked = Image.linear_gradient("L").resize((8, 8)).convert("RGB"), requests()
    words = parameters_text("a cube", "fog", {"Steps": 4, "Sampler": "Euler", "CFG scale": 3.5, "Model": "a, b: c"})
    whole = spoil.written("a.png", lambda path: write_png(image, path, text_chunks(words, asked[0])))
    chunks = spoil.chunks_of(whole)
    bare = [chunk for chunk in chunks if chunk[0] != b"tEXt"]
    said = st.one_of(
        spoil.texts_of(asked).map(lambda t: b"ldm\0" + t), spoil.bytes_of([b"parameters\0" + words.encode()])
    )
    kinds = st.sampled_from((b"tEXt", b"tEXt", b"zTXt", b"iTXt"))
    with_text = st.tuples(kinds, said).map(lambda chunk: spoil.png([bare[0], chunk, *bare[1:]]))
    moved = st.lists(st.sampled_from(chunks), max_size=8).map(lambda some: spoil.png([chunks[0], *some]))
    return st.one_of(with_text, with_text, moved, spoil.bytes_of([whole]))


def read_picture(path: Path) -> None:
    """As --reproduce does, up to the settings, whose own words for what is wrong need not name the picture."""
    from _guidance import make_guidance
    from _prepare import prepare
    from _record import take_over

    from ldm.images import load_image

    load_image(path)
    options = copy.copy(_options("--reproduce", str(path)))
    take_over(options)
    try:
        make_guidance(options)
        if options.command == "txt2img":
            prepare(options, model(), {})
    except ValueError:
        pass
    finally:
        torch.set_num_threads(1)


@cache
def _options(*argv: str) -> Any:
    from _cli import parse

    return parse("txt2img", list(argv))


JOB = ("--prompt", "a cube", "--steps", "2", "--n-samples", "2", "--n-iter", "2", "--tile", "0")


def manifests() -> Cases:
    from _manifest import _hash

    text = spoil.written("job-00000.json", _begin)
    tree = json.loads(text)

    def sealed(tree: Any) -> bytes:
        try:
            tree["hash"] = _hash(tree)
        except (LookupError, TypeError, AttributeError, ValueError):
            pass
        return json.dumps(tree).encode()

    return st.one_of(spoil.trees_of([tree]).map(sealed), spoil.bytes_of([text]))


def _begin(path: Path) -> None:
    with _job(path.parent, False):
        pass


def _job(folder: Path, resume: bool) -> Any:
    from _draw import asked_items
    from _manifest import Job

    from ldm.png import Folder

    options = copy.copy(_options(*JOB))
    options.outdir, options.resume = str(folder), resume
    job = Job(options, Folder(folder), asked_items(options), "cpu", "full")
    if not resume:
        job.begin(2, 0, False)
    return job


def read_manifest(path: Path) -> None:
    try:
        _job(path.parent, True)
    finally:
        torch.set_num_threads(1)
