"""What is written into a picture about its making, and how that is taken up again by --reproduce."""

from __future__ import annotations

import argparse
import hashlib
import sys
from dataclasses import MISSING, asdict, fields
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from _guidance import parameters, take_over_guidance
from _options import ATTENTION, BACKENDS, OPTION_NAMES, OWN_DEFAULTS, PARTS, PICTURES, REFINE_AT
from PIL import ImageChops
from PIL.PngImagePlugin import PngInfo

from ldm import images
from ldm.checkpoint.load import weights_path
from ldm.checkpoint.onnx_folder import UNET
from ldm.files import regular_size
from ldm.generate import Result
from ldm.items import Item
from ldm.models.autoencoder import Autoencoder
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.models.tiled_autoencoder import TiledAutoencoder
from ldm.names import SAMPLERS, SPACINGS
from ldm.png import parameters_text, read_request, text_chunks
from ldm.settings import Settings

KINDS: dict[str, tuple[type, ...]] = {  # what a setting of each type is in JSON; others are numbers or nothing
    "int": (int,),
    "str": (str,),
    "str | None": (str, type(None)),
    "tuple[float, ...] | None": (list, type(None)),
    "tuple[int, int] | None": (list, type(None)),
}
WEIGHTS, GRAPHS = (".json", ".safetensors", ".bin"), (".yaml", ".onnx", ".data")  # what in a folder makes a model
MAX_THREADS = 4096  # that a picture or a manifest may ask for
DTYPES = {"full": torch.float32, "autocast": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def source(options: argparse.Namespace, model: LatentDiffusion, device: str, precision: str) -> dict[str, Any]:
    """What all pictures of a run share, besides the settings: program, model and machine."""
    return {
        "version": our_version(),
        "torch": torch.__version__,
        "command": options.command,
        "model": {
            "name": options.model,
            "config": options.config,
            "sha256": sha256(weights_path(options.model)),
            "parameterization": model.parameterization,
            "ema": options.ema,
            "variant": options.variant,
            "refine_at": options.refine_at if options.refine_at is not None or options.refiner is None else REFINE_AT,
            "parts": {
                name: {"file": file, "sha256": sha256(weights_path(file))} for name, file in part_files(options).items()
            },
        },
        "device": device,
        "device_name": torch.cuda.get_device_name() if device == "cuda" else device,
        "precision": precision,
        "backend": options.backend,
        "dtype": str(DTYPES[precision]).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "attention": options.attention or "auto",
        "compile": options.compile,
        **tiles_of(model.autoencoder),
        "pictures": {name: {"file": file, "sha256": sha256(file)} for name, file in picture_files(options).items()},
        "own": {name: getattr(options, name) for name in OWN_DEFAULTS[options.command]},
    }


def tiles_of(autoencoder: Autoencoder) -> dict[str, Any]:
    if not isinstance(autoencoder, TiledAutoencoder):
        return {"tile": 0, "exact_tiles": False}
    return {"tile": autoencoder.size, "exact_tiles": autoencoder.exact}


def as_tiled(options: argparse.Namespace, tree: dict[str, Any]) -> None:
    """Lets `options` ask for the tiles that are written down there; older pictures and jobs have none."""
    options.exact_tiles = tree.get("exact_tiles") is True
    if options.command != "upscale":  # which has tiles of its own
        options.tile = int(tree.get("tile", 0))


def our_version() -> str:
    try:
        return version("ldm")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"


def picture_files(options: argparse.Namespace) -> dict[str, str]:
    """The pictures that a job is drawn from, by option."""
    return {name: getattr(options, name) for name in PICTURES if getattr(options, name, None) is not None}


def part_files(options: argparse.Namespace) -> dict[str, str]:
    """The files of weights besides the model's, by option."""
    return {name: getattr(options, name) for name in PARTS if getattr(options, name) is not None}


def check_weights(options: argparse.Namespace, original: dict[str, Any], made_by: dict[str, Any]) -> None:
    """ValueError unless the files of weights are those that drew the original."""
    was, now = original["model"], made_by["model"]
    hashes = [
        {"model": one["sha256"]} | {k: v["sha256"] for k, v in one.get("parts", {}).items()} for one in (was, now)
    ]
    for name in dict.fromkeys([*hashes[0], *hashes[1]]):
        if hashes[0].get(name) != hashes[1].get(name):
            option = f"--{name.replace('_', '-')} {getattr(options, name)}"
            raise ValueError(f"{option}: not the file that drew {options.reproduce}; name that one")


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
    parts = {name: Path(part["file"]).stem for name, part in made_by["model"]["parts"].items()}
    text = parameters_text(
        item.prompt,
        item.negative_prompt,
        {
            "Steps": settings.steps,
            "Sampler": SAMPLERS.get(settings.sampler, (settings.sampler,))[0],  # a plugin's has no other name
            "Schedule type": settings.spacing and SPACINGS.get(settings.spacing, (settings.spacing,))[0],
            "Schedule max sigma": settings.sigma_max,
            "Schedule min sigma": settings.sigma_min,
            "Schedule rho": settings.rho,
            "CFG scale": settings.guidance_scale if item.guidance_scale is None else item.guidance_scale,
            "Seed": item.seed,
            "Size": f"{settings.width}x{settings.height}",
            "Model hash": made_by["model"]["sha256"][:10],
            "Model": Path(made_by["model"]["name"]).stem,
            "VAE": parts.get("vae"),
            "Variation seed": item.variation_seed,
            "Variation seed strength": item.variation_strength or None,
            "Denoising strength": settings.strength,
            "Deep cache": None if settings.deep_cache == 1 else settings.deep_cache,
            "Clip skip": None if settings.clip_skip == 1 else settings.clip_skip,
            "Eta": settings.eta,
            "Sigma churn": settings.s_churn,
            "Sigma tmin": settings.s_tmin,
            "Sigma tmax": settings.s_tmax,
            "Sigma noise": settings.s_noise,
            "Refiner": parts.get("refiner"),
            "Refiner switch at": made_by["model"]["refine_at"],
            **parameters(settings.guidance, parts.get("autoguide")),
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
        settings, model, pictures = request["settings"], request["model"], request["pictures"]
        take_over_guidance(options, settings)
        for field in fields(Settings):
            if field.name in ("guidance_scale", "guidance"):
                continue
            value = settings.get(field.name, field.default)  # pictures made before there was a field have its default
            kinds = KINDS.get(str(field.type), (int, float, type(None)))
            if value is MISSING or not isinstance(value, kinds):
                raise TypeError(f"{field.name} is {value!r}")
            setattr(options, OPTION_NAMES.get(field.name, field.name), value)
        options.command = {name: name for name in OWN_DEFAULTS}[request["command"]]  # whichever script is asked
        for name in OWN_DEFAULTS[options.command]:
            setattr(options, name, request["own"][name])
        items = [_item(one) for one in request["batch"]]
        options.items, options.precision = items, {name: name for name in DTYPES}[request["precision"]]
        options.model = options.model or str(model["name"])
        options.config = options.config or model["config"]
        for name in ("parameterization", "ema", "variant", "refine_at"):
            setattr(options, name, model.get(name))
        for name in PARTS:
            setattr(options, name, getattr(options, name) or model.get("parts", {}).get(name, {}).get("file"))
        options.device = options.device or str(request["device"])
        options.backend = {name: name for name in BACKENDS}[request.get("backend", "torch")]
        options.attention = {name: name for name in ATTENTION}[request.get("attention", "auto")]
        options.compile = request.get("compile") is True  # pictures made before there was either have neither
        for name in PICTURES:
            setattr(options, name, getattr(options, name, None) or pictures.get(name, {}).get("file"))
        as_tiled(options, request)
        threads, _ = int(request["threads"]), (items[request["index"]], model["sha256"])
        if not 1 <= threads <= MAX_THREADS:
            raise ValueError(f"threads is {threads}")
        began_from = {name: str(picture["sha256"]) for name, picture in pictures.items()}
    except (AttributeError, KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        what = f"its request is not one of ours ({type(error).__name__}: {error})"
        raise ValueError(f"--reproduce {options.reproduce}: {what}; name a picture drawn here") from error
    for name, file in picture_files(options).items():
        try:
            is_it = regular_size(file) >= 0 and not Path(file).is_dir() and sha256(file) == began_from.get(name)
        except (OSError, ValueError) as error:  # a picture may name anything: a device, a path that no file can have
            why = error.strerror if isinstance(error, OSError) else error
            what = f"cannot be read ({why}), and {options.reproduce} began from it"
            raise ValueError(f"--{name.replace('_', '-')} {file}: {what}; name that picture") from error
        if not is_it:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} {file}: not what {options.reproduce} began from; name that picture")
    options.n_samples = options.batch_size = len(items)  # the same company
    options.outdir = options.outdir or "outputs"
    torch.set_num_threads(threads)  # the threads split sums among them
    return request


def _item(one: dict[str, Any]) -> Item:
    negative = one["negative_prompt"]
    other, scale = one.get("variation_seed"), one.get("guidance_scale")  # older pictures have none
    return Item(
        str(one["prompt"]),
        None if negative is None else str(negative),
        int(one["seed"]),
        None if other is None else int(other),
        float(one.get("variation_strength", 0)),
        guidance_scale=None if scale is None else float(scale),
    )


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
    """Of a file; of a folder, that of its configs and weights, in order of their names."""
    digest = hashlib.sha256()
    if Path(path).is_dir():
        kinds = GRAPHS if (Path(path) / UNET).is_file() else WEIGHTS
        for file in sorted(file for file in Path(path).rglob("*") if file.suffix in kinds):
            digest.update(f"{file.relative_to(path).as_posix()} {sha256(file)}\n".encode())
        return digest.hexdigest()
    try:
        status = Path(path).stat()
        return _sha256_of_file(str(path), status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}), and is needed") from error


@cache
def _sha256_of_file(path: str, size: int, modified: int) -> str:
    """Once for each content: a checkpoint takes seconds."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
