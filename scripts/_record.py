"""What is written into a picture about its making, and how that is taken up again by --reproduce."""

from __future__ import annotations

import argparse
import hashlib
import sys
from dataclasses import asdict, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from PIL import ImageChops
from PIL.PngImagePlugin import PngInfo

from ldm import images
from ldm.checkpoint.load import weights_path
from ldm.pipeline import Result
from ldm.png import parameters_text, read_request, text_chunks
from ldm.request import Item, Settings

OPTIONS = {"guidance_scale": "scale", "height": "H", "width": "W"}  # settings whose option has another name
DTYPES = {"full": torch.float32, "autocast": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def source(options: argparse.Namespace, device: str, precision: str) -> dict[str, Any]:
    """What all pictures of a run share, besides the settings: program, model and machine."""
    init = getattr(options, "init_img", None)
    try:
        ours = version("ldm")
    except PackageNotFoundError:  # run from a checkout that is not installed
        ours = "unknown"
    return {
        "version": ours,
        "torch": torch.__version__,
        "command": options.command,
        "model": {"name": options.model, "config": options.config, "sha256": sha256(weights_path(options.model))},
        "device": device,
        "device_name": torch.cuda.get_device_name() if device == "cuda" else device,
        "precision": precision,
        "dtype": str(DTYPES[precision]).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "init_image": None if init is None else {"file": init, "sha256": sha256(init)},
    }


def describe(result: Result, made_by: dict[str, Any], shows: str = "picture") -> PngInfo:
    """Both text chunks of a picture, or of what else `shows` it: a grid that begins with it, a step on its way.

    The batch is in it because its pictures' last bits depend on their company.
    """
    settings, item = result.settings, result.item
    request = made_by | {
        "shows": shows,
        "prompt": item.prompt,
        "negative_prompt": item.negative_prompt,
        "seed": item.seed,
        "settings": asdict(settings),
        "batch": [asdict(one) for one in result.batch],
        "index": result.index,
    }
    text = parameters_text(
        item.prompt,
        item.negative_prompt,
        {
            "Steps": settings.steps,
            "Sampler": settings.sampler.upper(),
            "Schedule type": settings.spacing.capitalize(),
            "CFG scale": settings.guidance_scale,
            "Seed": item.seed,
            "Size": f"{settings.width}x{settings.height}",
            "Model hash": made_by["model"]["sha256"][:10],
            "Model": Path(made_by["model"]["name"]).stem,
            "Denoising strength": settings.strength,
            "Eta": settings.eta,
            "Version": f"ldm {made_by['version']}",
        },
    )
    return text_chunks(text, request)


def take_over(options: argparse.Namespace) -> dict[str, Any]:
    """Fill `options` from the picture named by --reproduce, but for the few typed beside it; return its request."""
    request = read_request(options.reproduce)
    if request.get("shows", "picture") != "picture":
        raise ValueError(
            f"--reproduce {options.reproduce}: this is a {request['shows']}; name a single finished picture"
        )
    try:
        settings, model, init = request["settings"], request["model"], request["init_image"]
        for field in fields(Settings):
            kinds = {"int": int, "str": str}.get(str(field.type), (int, float, type(None)))
            if not isinstance(settings[field.name], kinds):
                raise TypeError(f"{field.name} is {settings[field.name]!r}")
            setattr(options, OPTIONS.get(field.name, field.name), settings[field.name])
        items = [Item(str(one["prompt"]), str(one["negative_prompt"]), int(one["seed"])) for one in request["batch"]]
        options.items, options.precision = items, {name: name for name in DTYPES}[request["precision"]]
        options.model = options.model or str(model["name"])
        options.config = options.config or model["config"]
        options.device = options.device or str(request["device"])
        options.init_img = None if init is None else getattr(options, "init_img", None) or str(init["file"])
        threads, _ = int(request["threads"]), (items[request["index"]], model["sha256"])
        began_from = None if init is None else init["sha256"]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"--reproduce {options.reproduce}: its request is not one of ours ({what})") from error
    if began_from is not None and sha256(options.init_img) != began_from:
        raise ValueError(f"--init-img {options.init_img}: not what {options.reproduce} began from; name that picture")
    options.n_samples = len(items)  # the same company
    options.outdir = options.outdir or "outputs"
    torch.set_num_threads(max(1, threads))  # the threads split sums among them
    return request


def compare(original: str, remade: Path) -> int:
    """Say whether the remade picture is the original, bit for bit; the exit status."""
    a, b = images.load_image(original), images.load_image(remade)
    if a.size == b.size and ImageChops.difference(a, b).getbbox() is None:
        print(f"the same as {original}, bit for bit")
        return 0
    request = read_request(original)
    print(
        f"failed: not the same as {original}, which was made on {request.get('device_name')} with torch "
        f"{request.get('torch')}, ldm {request.get('version')}; here: torch {torch.__version__}",
        file=sys.stderr,
    )
    return 1


def sha256(path: str | Path) -> str:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}), and is needed") from error
