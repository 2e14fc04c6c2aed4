"""From checked options to pictures on the disk: the device, the model, and the loop."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from _device import default_precision, find_device
from _fit import Choice, fit, tiled
from _guidance import make_guidance
from _manifest import Job
from _options import REFINE_AT
from _outline import outlines
from _output import Bar, Interrupts, Output, note
from _prepare import prepare, read_pictures
from _profile import profiled
from _ranks import Ranks
from _record import DTYPES, check_weights, compare, source, take_over
from _speed import hasten

from ldm.backends import check_backend, pinned
from ldm.checkpoint.load import load
from ldm.checkpoint.onnx_folder import has_provider, load_onnx
from ldm.generate import Progress, Result, generate
from ldm.items import Item, make_items, with_scales
from ldm.memory import NotEnoughMemoryError, is_out_of_memory
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.offload import Offload
from ldm.png import Folder
from ldm.refiner import Refiner

FOREIGN = re.compile(r"<(?:lora|lyco|hypernet):[^<>]{1,100}>")  # A1111's words for networks to add

AUTOCAST = {"cpu": torch.bfloat16, "cuda": torch.float16, "mps": torch.float16}
PROVIDERS = {  # of onnxruntime, for each kind of device: the one to be used, and those that help it out
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
    "mps": ("CoreMLExecutionProvider", "CPUExecutionProvider"),
}


class Listener:
    """Hears of each step and of each picture when it is finished; this one does nothing."""

    def step(self, progress: Progress) -> None:
        pass

    def picture(self, result: Result) -> None:
        pass


NOBODY = Listener()


class Pace(Listener):
    """Says once how long a step takes: the second, since the first warms up."""

    def __init__(self) -> None:
        self.begun: float | None = None  # when a step of the batch ended
        self.is_said = False

    def step(self, progress: Progress) -> None:
        if self.is_said:
            return
        float(progress.step.x.flatten()[0])  # waits for a GPU
        if self.begun is not None and progress.step.i > 0:
            count, self.is_said = len(progress.batch), True
            note(f"about {time.monotonic() - self.begun:.2g} s a step" + (f" of {count} pictures" if count > 1 else ""))
        self.begun = time.monotonic()


def draw(options: argparse.Namespace, listener: Listener = NOBODY) -> int:
    """Draw what `options` (from `_cli.parse`) ask for; of several processes, a share of it. Returns the exit status."""
    with Ranks() as ranks:
        return _draw(ranks.told(options), ranks, listener)


def _draw(options: argparse.Namespace, ranks: Ranks, listener: Listener) -> int:
    original = None if options.reproduce is None else take_over(options)
    folder = Folder(options.outdir)
    pictures = read_pictures(options)
    guidance = make_guidance(options)  # what is wrong with it is said before a model is loaded
    for scale in options.scale or ():
        guidance.check_scale(scale)
    device, precision = choose_device(options)
    items = asked_items(options)
    job = Job(options, folder, items, device, precision)  # --resume is looked into before a model is loaded
    if ranks.shared(job.is_finished):
        print(f"{job.path}: all of its {len(items)} pictures are there")
        return 0
    found = outlines(options)  # what cannot be is said before a weight is read
    choice = ranks.shared(fit(options, found, items, pictures, device, DTYPES[precision]))
    job.begin(choice.batch_size, choice.tile, choice.exact)

    model, refiner, autoguide = _models(options, choice, device, DTYPES[precision])
    settings, hints = prepare(options, model, pictures)
    made_by = source(options, model, device, precision)
    if original is not None:
        check_weights(options, original, made_by)

    _tell_what_is_not_read(model, items)
    networks = {"text_encoder": model.text_encoder, "unet": model.unet, "autoencoder": model.autoencoder}
    with (
        ranks.entered(job),
        Interrupts() as interrupts,
        Bar(settings, job.todo, hidden=ranks.rank > 0) as bar,
        _autocast(device, precision),
        profiled(options.profile, networks, model.device.type, model.dtype),
        pinned(options.attention),
    ):
        output = Output(options, job, model, settings, made_by, None if original is None else original["index"], ranks)
        how = {"batch_size": job.batch_size, "refiner": refiner, "autoguide": autoguide, "notice": note}
        heard = (output, bar, listener, Pace() if options.device == "auto" and ranks.rank == 0 else NOBODY)
        drawn = generate(model, job.todo, settings, hints, on_step=partial(_step, heard), **how)
        for place, result in zip(job.places, drawn, strict=True):
            output.picture(result, place)
            bar.picture()
            listener.picture(result)
            if interrupts.asked and result.index == len(result.batch) - 1:
                break
        output.finish()
    return _status(options, job, output, interrupts.asked) if ranks.rank == 0 else 130 * interrupts.asked


def _step(listeners: Sequence[Output | Bar | Listener], progress: Progress) -> None:
    for listener in listeners:
        listener.step(progress)


def _status(options: argparse.Namespace, job: Job, output: Output, is_stopped: bool) -> int:
    if is_stopped:
        more = "; --resume goes on" if job.path else ""
        print(f"stopped after {output.drawn} of {output.asked} pictures{more}", file=sys.stderr)
        return 130
    return 0 if options.reproduce is None else compare(options.reproduce, output.paths[0])


def _models(
    options: argparse.Namespace, choice: Choice, device: str, dtype: torch.dtype
) -> tuple[LatentDiffusion, Refiner | None, LatentDiffusion | None]:
    """All that a job draws with: the model, what finishes its pictures, and what is led away from."""
    try:
        return _loaded(options, choice, device, dtype)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise NotEnoughMemoryError(f"loading --model {options.model} to {device}") from error


def _loaded(
    options: argparse.Namespace, choice: Choice, device: str, dtype: torch.dtype
) -> tuple[LatentDiffusion, Refiner | None, LatentDiffusion | None]:
    check_backend(options.attention, device, AUTOCAST[device] if options.precision == "autocast" else dtype)
    home = "cpu" if choice.offload else device
    model = _load(options, home, dtype)
    refiner = _load_refiner(options, str(model.device), dtype)  # an ONNX model is on the CPU, for torch
    autoguide = _load_autoguide(options, str(model.device), dtype)
    models = [one for one in (model, refiner.model if refiner is not None else None, autoguide) if one is not None]
    model.autoencoder = tiled(model.autoencoder, choice.tile, choice.exact)
    if home != device:
        turns = Offload(device)
        for one in models:
            turns.join(one)
    hasten(options, models)
    return model, refiner, autoguide


def _load(options: argparse.Namespace, device: str, dtype: torch.dtype) -> LatentDiffusion:
    """The autoencoder stays in float32, whatever the networks' dtype: SDXL's overflows in float16."""
    if options.backend != "torch":
        return load_onnx(options.model, PROVIDERS["tensorrt" if options.backend == "tensorrt" else device])
    return load(
        options.model,
        config=options.config,
        device=device,
        dtype=dtype,
        autoencoder_dtype=torch.float32,
        use_ema=options.ema,
        variant=options.variant,
        parameterization=options.parameterization,
        autoencoder=options.vae,
        text_encoder=options.text_encoder,
        note=print,
    )


def _load_refiner(options: argparse.Namespace, device: str, dtype: torch.dtype) -> Refiner | None:
    """Its autoencoder is never used: the first model's decodes."""
    if options.refiner is None:
        return None
    second = load(options.refiner, device=device, dtype=dtype, variant=options.variant, note=print)
    return Refiner(second, REFINE_AT if options.refine_at is None else options.refine_at)


def _load_autoguide(options: argparse.Namespace, device: str, dtype: torch.dtype) -> LatentDiffusion | None:
    if options.autoguide is None:
        return None
    return load(options.autoguide, device=device, dtype=dtype, variant=options.variant, note=print)


def _autocast(device: str, precision: str) -> AbstractContextManager[Any]:
    if precision != "autocast":
        return nullcontext()
    return torch.autocast(device, AUTOCAST[device])


def choose_device(options: argparse.Namespace) -> tuple[str, str]:
    """(device, precision), said aloud; ValueError if the one asked for is not there."""
    device = find_device(options.device)
    if options.backend == "onnx" and options.device == "auto" and not has_provider(PROVIDERS[device]):
        device = "cpu"
    precision = options.precision or ("full" if options.backend != "torch" else default_precision(device))
    name = f" ({torch.cuda.get_device_name()})" if device == "cuda" else ""
    by = ", chosen by auto" if options.device == "auto" else ""
    print(f"device: {device}{name}{by}; precision: {precision}")
    return device, precision


def _tell_what_is_not_read(model: LatentDiffusion, items: Sequence[Item]) -> None:
    for text in dict.fromkeys(text for item in items for text in (item.prompt, item.negative_prompt)):
        if text is not None and (rest := model.text_encoder.unseen(text)):
            print(f"the prompt is longer than the model reads; not seen: {rest[:200]!r}", file=sys.stderr)
        for network in FOREIGN.findall(text or ""):
            print(f"{network} in the prompt is read as text: no such networks are loaded here", file=sys.stderr)


def asked_items(options: argparse.Namespace) -> list[Item]:
    """Everything to draw, in order; picture i has seed i, with --fixed-code that of its place in the batch."""
    if options.reproduce is not None:
        return list(options.items)
    prompts = [prompt for _ in range(options.n_iter) for prompt in options.prompts for _ in range(options.repeat)]
    items = make_items(
        prompts,
        options.negative_prompt,
        options.seed,
        variation_seed=options.variation_seed,
        variation_strength=options.variation_strength,
        cycle=options.n_samples if options.fixed_code else None,
    )
    several = options.scale is not None and len(options.scale) > 1
    return with_scales(items, options.scale, make_guidance(options)) if several else items
