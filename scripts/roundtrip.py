"""A published file at full size, of synthetic weights: loaded, saved in the original layout and as a diffusers folder,
and read again. Every tensor comes back bit by bit, or the exit status is 1.

Nothing is downloaded: python scripts/roundtrip.py sd-v1 --small
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import _installed  # noqa: F401
import torch
from _bench.harness import forget_peak, memory
from _ending import ended
from _synthetic import shrink, weight
from torch import Tensor

import ldm
from ldm.checkpoint import single_file
from ldm.checkpoint.configs import CONFIGS, without_absent_tower
from ldm.checkpoint.convert import convert
from ldm.checkpoint.detect import FAMILIES, signature
from ldm.checkpoint.diffusers_save import to_diffusers
from ldm.checkpoint.meta import on_meta
from ldm.checkpoint.read import CheckpointError, read
from ldm.checkpoint.write import write
from ldm.config import build, load_config
from ldm.models.latent_diffusion import LatentDiffusion

LAYOUTS = Path(__file__).parents[1] / "tests" / "golden" / "layouts"
OF_DIFFUSERS = ("unet", "vae", "vqvae")  # parts of a folder whose classes are in that library


class Row(NamedTuple):
    step: str
    seconds: float
    peak: float  # memory of the process while it ran, in GB (10^9 bytes)
    found: str


class DifferentError(Exception):
    """Not every tensor came back."""


def family_of(name: str, small: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config of a published layout, and its tensors on the meta device, in float16 but for integers.

    Left out are names without a dot: constants of the noise schedule, and a scale.
    """
    entries = json.loads((LAYOUTS / f"{name}.json").read_text())
    dtypes = {key: torch.int64 if kind == "int64" else torch.float16 for key, (_, kind) in entries.items()}
    published = {
        key: torch.empty(shape, dtype=dtypes[key], device="meta") for key, (shape, _) in entries.items() if "." in key
    }
    found = signature(published)
    assert found is not None
    tree = dict(without_absent_tower(load_config(CONFIGS / f"{FAMILIES[found].configs[0]}.yaml"), published))
    if not small:
        return tree, published
    with on_meta():
        model = build(shrink(tree), name, expected=LatentDiffusion)
    assert isinstance(model, LatentDiffusion)
    return tree, single_file.to_original(model)


def synthetic(name: str, like: Tensor) -> Tensor:
    if not like.is_floating_point():
        return torch.zeros(like.shape, dtype=like.dtype)
    return weight(name, like.shape or (1,)).reshape(like.shape).half()


def compare(there: Mapping[str, Tensor], back: Mapping[str, Tensor]) -> str:
    """A sentence; DifferentError names the first tensor that is not the same, or is on one side only."""
    odd = sorted(there.keys() ^ back.keys()) or [k for k in there if not torch.equal(there[k], back[k])]
    if odd:
        raise DifferentError(f"{len(odd)} tensors of {len(there)} differ, the first is {odd[0]}")
    return f"{len(there)} tensors, bit by bit"


def timed(step: str, call: Callable[[], str]) -> Row:
    forget_peak()
    start = time.perf_counter()
    found = call()
    return Row(step, time.perf_counter() - start, memory("VmHWM") / 1e9, found)


def rows(name: str, small: bool, folder: Path) -> Iterator[Row]:
    """Each as soon as it is known."""
    tree, published = family_of(name, small)
    file, again, theirs = (folder / f"{name}{end}" for end in (".safetensors", "-again.safetensors", "-diffusers"))

    def load(path: Path) -> LatentDiffusion:
        return ldm.load(path, config=tree, dtype=torch.float16)

    def made() -> str:
        write(file, {key: synthetic(key, like) for key, like in published.items()})
        return f"{file.stat().st_size / 1e9:.2f} GB, float16"

    def original() -> str:
        convert(file, again, layout="original", config=tree)
        return compare(read(file).tensors, read(again).tensors)

    def saved() -> str:
        try:
            convert(file, theirs, layout="diffusers", config=tree)
        except CheckpointError as error:
            return f"refused: {error}"
        return f"{sum(one.stat().st_size for one in theirs.rglob('*.safetensors')) / 1e9:.2f} GB"

    def loaded() -> str:
        back, ours = load(theirs).state_dict(), load(file).state_dict()
        cut = {key for key in ours.keys() - back.keys() if ".resblocks." in key}  # of SD 2, the layer nothing reads
        return compare({key: tensor for key, tensor in ours.items() if key not in cut}, back)

    yield timed("write the original file", made)
    yield timed("load it", lambda: f"{len(load(file).state_dict())} tensors, none left over")
    yield timed("save in its own layout", original)
    yield timed("save as a diffusers folder", saved)
    if theirs.is_dir():
        yield timed("load the folder", loaded)
        yield timed("load it by diffusers", lambda: by_diffusers(theirs, to_diffusers(load(file))))


def by_diffusers(folder: Path, ours: Mapping[str, Mapping[str, Tensor]]) -> str:
    """The networks of whatever class the folder says they are."""
    import diffusers

    found = []
    for part in (part for part in OF_DIFFUSERS if part in ours):
        name = json.loads((folder / part / "config.json").read_text())["_class_name"]
        network = getattr(diffusers, name).from_pretrained(folder / part, torch_dtype=torch.float16)
        found.append(f"{name}: {compare(ours[part], network.state_dict())}")
    return "; ".join(found)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=sorted(path.stem for path in LAYOUTS.glob("*.json")))
    parser.add_argument("--small", action="store_true", help="the same layers with few channels: seconds, not minutes")
    parser.add_argument(
        "--folder", type=Path, help="an empty one, where the files stay (default: a temporary one; 3 times the file)"
    )
    options = parser.parse_args(argv)
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
        if any(options.folder.iterdir()):
            parser.error(f"--folder {options.folder} is not empty; give another")
    print(f"| {'step':26} | seconds | peak, GB | what came of it\n| {'-' * 26} | ------: | -------: | ---", flush=True)
    with tempfile.TemporaryDirectory(prefix="roundtrip-") as temporary:
        try:
            for row in rows(options.family, options.small, options.folder or Path(temporary)):
                print(f"| {row.step:26} | {row.seconds:7.1f} | {row.peak:8.2f} | {row.found}", flush=True)
        except (DifferentError, CheckpointError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(ended(main))
