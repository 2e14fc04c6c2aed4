"""How fast, and in how much memory. `load`: a checkpoint, against reading its bytes, and against diffusers.

Every way is measured in processes of its own, in rounds, of which the fastest counts. Imports are not counted; what is
read is read from the disk, as far as the system drops a file from its cache when asked to.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import _installed  # noqa: F401

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    load = commands.add_parser("load", help="loading a checkpoint: seconds, and peak memory over the file's size")
    load.add_argument("file", nargs="?", help="a .safetensors file (default: one of --family, with random weights)")
    load.add_argument("--family", default="sd-v1", help="a config's name (default: %(default)s)")
    load.add_argument("--dtype", choices=("fp16", "fp32"), default="fp16", help="of that file (default: %(default)s)")
    load.add_argument("--rounds", type=int, default=3, help="how often (default: %(default)s)")
    load.add_argument("--folder", help="where the temporary files go, of the size of a checkpoint")
    load.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(argv)
    try:
        if options.rounds < 1:
            raise ValueError(f"--rounds {options.rounds} measures nothing; give 1 or more")
        rows = benchmark_load(options.file, options.family, options.dtype, options.folder, options.rounds)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(rows, indent=2) if options.json else table(rows))
    return 0


def benchmark_load(file: str | None, family: str, dtype: str, folder: str | None, rounds: int) -> list[Row]:
    """One row per way of getting the weights into memory, with an error instead of numbers where one cannot."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        path, configs = Path(name) / "model.safetensors", Path(name) / "configs"
        if file is None:
            alone(synthesize, path, family, dtype)
        else:
            path = Path(file)
        stored = alone(describe, path, configs, family if file is None else None)
        measured = [alone(measure, name, path, configs, stored) for _ in range(rounds) for name in WAYS]
    rows = [min(measured[i :: len(WAYS)], key=lambda row: row.get("seconds", 0.0)) for i in range(len(WAYS))]
    size = rows[0]["bytes"]
    for row in rows:
        if "seconds" in row:
            row |= {"times reading": row["seconds"] / rows[0]["seconds"], "peak over size": row["peak bytes"] / size}
    return rows


def table(rows: Sequence[Row]) -> str:
    lines = [f"{rows[0]['bytes'] / 1e9:>5.2f} GB       seconds  of them busy  × reading  peak memory / size"]
    for row in rows:
        if "seconds" in row:
            numbers = f"{row['seconds']:>7.2f} {row['busy']:>13.2f} {row['times reading']:>10.2f}"
            lines.append(f"{row['way']:<14} {numbers} {row['peak over size']:>19.2f}")
        else:
            lines.append(f"{row['way']:<14} {row['error']}")
    return "\n".join(lines)


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result, out of a fresh process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


# --- the file ----------------------------------------------------------------------------------------------------


def synthesize(path: Path, family: str, dtype: str) -> None:
    """A file in the original layout of the family, at full size; its weights are pieces of the same random numbers."""
    import torch

    from ldm.checkpoint import single_file
    from ldm.checkpoint.configs import find_config
    from ldm.checkpoint.meta import on_meta
    from ldm.checkpoint.read import Weights
    from ldm.checkpoint.write import write
    from ldm.config import build

    tree, source = find_config(Weights({}), path, family)
    with on_meta():
        shapes = {name: tensor.shape for name, tensor in single_file.to_original(build(tree, source)).items()}
    pool = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0)).mul_(0.02)
    pool = pool.to({"fp16": torch.float16, "fp32": torch.float32}[dtype])
    repeats = {name: -(-shape.numel() // len(pool)) for name, shape in shapes.items()}
    write(path, {n: pool.repeat(repeats[n])[: shape.numel()].reshape(shape) for n, shape in shapes.items()})


def describe(path: Path, configs: Path, family: str | None) -> str:
    """Write the configs that diffusers needs, so that it asks no network. The dtype the UNet is stored in."""
    from ldm.checkpoint.diffusers_save import save_configs
    from ldm.checkpoint.load import skeleton
    from ldm.checkpoint.read import CheckpointError
    from ldm.files import write_text

    found = skeleton(path, family)
    configs.mkdir(exist_ok=True)
    write_text(configs / "tree.json", json.dumps(found.tree))
    try:
        save_configs(found.model, found.tree, configs)
    except CheckpointError:
        pass  # diffusers has no such model: it will miss its model_index.json
    return str(found.tensors["unet.conv_in.weight"].dtype).removeprefix("torch.")


# --- the ways ----------------------------------------------------------------------------------------------------


def measure(way: str, path: Path, configs: Path, dtype: str) -> Row:
    """Seconds until every weight is in memory, those of them that kept processors busy, and the peak of the memory
    that it took, over what imports took."""
    row: Row = {"way": way, "bytes": path.stat().st_size}
    try:
        load = WAYS[way](path, configs, dtype)
        evict(path)
        before, start, busy = memory("VmRSS"), time.perf_counter(), time.process_time()
        touch(load())
        row |= {"seconds": time.perf_counter() - start, "busy": time.process_time() - busy}
        return row | {"peak bytes": memory("VmHWM") - before}
    except Exception as error:  # another library's
        return row | {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}


def reading(path: Path, configs: Path, dtype: str) -> Callable[[], list[Any]]:
    def read() -> list[Any]:
        buffer = bytearray(1 << 22)
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
        return []

    return read


def with_ldm(path: Path, configs: Path, dtype: str) -> Callable[[], list[Any]]:
    import omegaconf  # noqa: F401  (what it would import while loading)
    import torch

    import ldm

    load, config = ldm.load, json.loads((configs / "tree.json").read_text())
    return lambda: [load(path, config=config, dtype=getattr(torch, dtype))]


def with_diffusers(path: Path, configs: Path, dtype: str) -> Callable[[], list[Any]]:
    import diffusers
    import torch
    from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401  (what it would import while loading)

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    pipeline = getattr(diffusers, json.loads((configs / "model_index.json").read_text())["_class_name"])
    options = {"config": str(configs), "torch_dtype": getattr(torch, dtype), "local_files_only": True}

    def load() -> list[Any]:
        parts = pipeline.from_single_file(str(path), **options).components.values()
        return [part for part in parts if isinstance(part, torch.nn.Module)]

    return load


WAYS: dict[str, Callable[[Path, Path, str], Callable[[], list[Any]]]] = {
    "reading": reading,
    "ldm.load": with_ldm,
    "diffusers": with_diffusers,
}


def touch(modules: Sequence[Any]) -> None:
    """Read something of every page, since a mapped file is in memory only where it was looked at."""
    for module in modules:
        for parameter in module.parameters():
            parameter.detach().flatten()[::1024].sum()


def evict(path: Path) -> None:
    """Ask the system to forget what it knows of the file."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def memory(kind: str) -> int:
    """Bytes of this process in memory, now (VmRSS) or at most so far (VmHWM)."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith(kind))
        return int(line.split()[1]) << 10
    import resource  # systems without /proc tell the most only

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    raise SystemExit(main())
