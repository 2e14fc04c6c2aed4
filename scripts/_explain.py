"""What --explain prints: how a job would be drawn, without a weight being read or a picture drawn."""

from __future__ import annotations

import argparse
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import torch
from _draw import asked_items, choose_device
from _fit import choose
from _memory import Peak, weight_bytes, without_scores
from _outline import Outlines, outlines
from _record import DTYPES
from torch import Tensor

from ldm.items import Item
from ldm.models.chunks import Chunk
from ldm.models.clip import spelled
from ldm.models.diffusion.denoiser import Conditioning
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.models.text_encoder import ChunkedTextEncoder
from ldm.prompt import parse
from ldm.prompt_tree import Clause
from ldm.sampling import sample
from ldm.settings import Settings

WIDTH = 80
SCENES = 6  # of a prompt that changes with the steps, how many are shown
PROMPTS = 8


def explain(options: argparse.Namespace) -> int:
    device, precision = choose_device(options)
    found = outlines(options)
    items = asked_items(options)
    lines = [*_prompts(found.model, items, found.settings), "", *_levels(found), ""]
    choice = choose(options, found, items, {}, device, DTYPES[precision])
    lines += _work(found, items, choice.batch_size, DTYPES[precision], precision == "autocast")
    lines += choice.described()
    print("\n".join(lines))
    return 0


# --- prompts --------------------------------------------------------------------------------------------------------


def _prompts(model: LatentDiffusion, items: Sequence[Item], settings: Settings) -> Iterator[str]:
    asked = [("prompt", item.prompt) for item in items] + [("negative", item.negative_prompt) for item in items]
    told = list(dict.fromkeys(asked))
    for name, text in told[:PROMPTS]:
        shown = "not given" if text is None else text
        yield from _wrapped(f"{name:<9} {shown}", "          ")
        if text is not None:
            yield from _read(model, text, settings.sampled_steps, compose=name == "prompt")
    if len(told) > PROMPTS:
        yield f"… and {len(told) - PROMPTS} more"
    scales = {settings.guidance_scale if item.guidance_scale is None else item.guidance_scale for item in items}
    is_led = scales != {1} or settings.guidance.cfg_pp
    if not is_led and not any("AND" in text for _, text in told if text):
        yield "          (at guidance scale 1 the negative prompt plays no part)"


def _read(model: LatentDiffusion, text: str, steps: int, compose: bool) -> Iterator[str]:
    encoder = model.text_encoder
    if not isinstance(encoder, ChunkedTextEncoder):
        yield "  read as it stands: this model's text encoder knows no weights and chunks"
        return
    schedule = parse(text, compose=compose).schedule(steps)
    ends = [first for first, _ in schedule[1:]] + [steps]
    for (first, clauses), end in list(zip(schedule, ends, strict=True))[:SCENES]:
        if len(schedule) > 1:
            yield f"  step {first + 1}" if end == first + 1 else f"  steps {first + 1} to {end}"
        for clause in clauses:
            yield from _clause(encoder, clause, len(clauses) > 1)
    if len(schedule) > SCENES:
        yield f"  … and {len(schedule) - SCENES} more changes"
    if rest := encoder.unseen(text):
        yield f"  not read: {len(rest)} more characters"


def _clause(encoder: ChunkedTextEncoder, clause: Clause, is_composed: bool) -> Iterator[str]:
    chunks = encoder.chunks(clause.passage)
    if is_composed:
        yield f"  AND, weight {clause.weight:g}"
    for i, chunk in enumerate(chunks):
        of = f" {i + 1} of {len(chunks)}" if len(chunks) > 1 else ""
        yield f"    chunk{of}: {len(chunk)} of {encoder.context_length - 2} tokens"
        yield from _wrapped("      " + "  ".join(_words(chunk)), "      ")


def _words(chunk: Chunk) -> Iterator[str]:
    """Tokens, with the weight behind each that has one; a dash where a word goes on in the next."""
    for token, weight in chunk:
        text = spelled(token)
        word = text.rstrip() if text.endswith(" ") else f"{text}-"
        yield word if weight == 1 else f"{word}×{weight:.4g}"


# --- work -----------------------------------------------------------------------------------------------------------


def _levels(found: Outlines) -> Iterator[str]:
    settings = found.settings
    spacing = f"spacing {settings.spacing}" if settings.spacing else "levels of one's own"
    sigmas = settings.levels(found.model.schedule).tolist()
    yield f"sigmas    {settings.sampled_steps} steps of {settings.method}, {spacing}"
    shown = [f"{sigma:.4g}" for sigma in sigmas]
    yield from _wrapped("  " + "  ".join(shown), "  ")
    if found.refiner is not None:
        yield f"  the refiner is asked below sigma {found.refiner.sigma_switch(found.model):.4g}"


def _work(found: Outlines, items: Sequence[Item], at_once: int, dtype: torch.dtype, autocast: bool) -> Iterator[str]:
    """Sizes, calls and memory: the loop itself runs on the meta device, and spies listen at the denoisers."""
    model, settings, batch = found.model, found.settings, items[:at_once]
    models = {"network": model}
    if found.refiner is not None:
        models["refiner"] = found.refiner.model
    if found.autoguide is not None:
        models["autoguide"] = found.autoguide
    held = _weights(models, dtype, autocast)
    spies = {name: Spy(one) for name, one in models.items()}
    is_known = listen(found, batch)
    shape = model.latent_shape(settings.height, settings.width)
    drawing, decoding = max(spy.most for spy in spies.values()), _decoding(model, shape)

    channels, height, width = shape
    yield f"sizes     {len(items)} × {settings.width}x{settings.height} pixels, {len(batch)} at once"
    yield f"          latent {channels} × {height} × {width}" + _context(spies["network"].rows)
    which = "" if len(batch) == len(items) else ", for the first batch"  # others may have other prompts and scales
    for name, spy in spies.items():
        yield f"calls     of the {name}{which}" + ("" if is_known else ", as many as its error tells it to")
        for (rows, length), times in spy.rows.items():
            states = f", {length} states each" if length else ""
            yield f"  {times if is_known else '?':>5} × {rows} row{'s' * (rows > 1)}{states}"
        if is_known and not spy.rows:
            yield f"  {0:>5}"
    yield "memory    an estimate: weights and tensors, without what libraries need besides"
    for name, size in held.items():
        yield f"  {name:<16}{_size(size)}"
    yield f"  {'drawing':<16}{_size(drawing)}"
    yield f"  {'decoding':<16}{_size(decoding)}"
    yield f"  {'all at once':<16}{_size(sum(held.values()) + max(drawing, decoding))}"


class Spy:
    """Stands before a denoiser on the meta device: which calls it gets, and what the largest takes."""

    def __init__(self, model: LatentDiffusion) -> None:
        self.denoiser = model.denoiser
        self.rows: Counter[tuple[int, int]] = Counter()  # (rows, states of each) of a call
        self.most = 0
        model.denoiser = self  # type: ignore[assignment]
        without_scores(model)

    def __call__(self, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        call = len(x), 0 if cond.context is None else cond.context.shape[1]
        if call not in self.rows:
            with Peak() as peak:
                self.denoiser(x, sigma, cond)
            self.most = max(self.most, peak.most)
        self.rows[call] += 1
        return x


@torch.inference_mode()
def listen(found: Outlines, batch: Sequence[Item]) -> bool:
    """Draws. Whether the sampler's calls do not depend on what it is answered."""
    try:
        for _ in sample(found.model, batch, found.settings, refiner=found.refiner, autoguide=found.autoguide):
            pass
    except (RuntimeError, NotImplementedError):
        return False
    return True


def _weights(models: Mapping[str, LatentDiffusion], dtype: torch.dtype, autocast: bool) -> dict[str, int]:
    """Bytes of what is held; the networks get the dtype that they will have."""
    held: dict[str, int] = {}
    for name, model in models.items():
        model.unet.to(dtype)
        model.text_encoder.to(dtype)
        parts = {name: model.unet, "text encoder": model.text_encoder, "autoencoder": model.autoencoder}
        if model is models["network"]:
            held |= {part: weight_bytes(module) for part, module in parts.items()}
        else:  # it is loaded whole, and its autoencoder in the networks' dtype
            model.autoencoder.to(dtype)
            held[name] = sum(weight_bytes(module) for module in parts.values())
        if autocast:
            model.unet.to(torch.bfloat16)
    return held


@torch.inference_mode()
def _decoding(model: LatentDiffusion, shape: tuple[int, int, int]) -> int:
    """Bytes for one picture; they are decoded one by one."""
    like = next(model.autoencoder.parameters(), torch.zeros((), device="meta"))
    with Peak() as peak:
        model.autoencoder.decode(torch.zeros((1, *shape), device="meta", dtype=like.dtype))
    return peak.most


def _context(rows: Counter[tuple[int, int]]) -> str:
    lengths = sorted({length for _, length in rows if length})
    return f"; {' or '.join(map(str, lengths))} states of text" if lengths else ""


def _size(count: int) -> str:
    return f"{count / 1e9:>9.2f} GB" if count >= 1e9 else f"{count / 1e6:>9.1f} MB"


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False) or [text.rstrip()]
