"""What --explain prints: how a job would be drawn, without a weight being read or a picture drawn."""

from __future__ import annotations

import argparse
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from _draw import asked_items, choose_device
from _memory import Peak, weight_bytes, without_scores
from _prepare import prepare
from _record import DTYPES
from torch import Tensor

from ldm.checkpoint.load import outline
from ldm.config import load_plugin
from ldm.generate import sample
from ldm.items import Item
from ldm.models.chunks import Chunk
from ldm.models.clip import spelled
from ldm.models.diffusion.denoiser import Conditioning
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.models.text_encoder import ChunkedTextEncoder
from ldm.prompt import Clause, parse
from ldm.settings import Settings

WIDTH = 80
SCENES = 6  # of a prompt that changes with the steps, how many are shown
PROMPTS = 8


def explain(options: argparse.Namespace) -> int:
    device, precision = choose_device(options)
    if options.plugin is not None:
        load_plugin(options.plugin)
    model = outline(
        options.model, config=options.config, variant=options.variant, parameterization=options.parameterization
    )
    settings, _ = prepare(options, model, {})
    items = asked_items(options)
    batch = items[: options.n_samples]
    lines = [*_prompts(model, items, settings), "", *_levels(model, settings), ""]
    lines += _work(model, batch, settings, DTYPES[precision], precision == "autocast", len(items))
    for name in ("refiner", "autoguide"):
        if getattr(options, name, None) is not None:
            lines.append(f"{name:<9} takes its own weights and calls, which are not counted here")
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


def _levels(model: LatentDiffusion, settings: Settings) -> Iterator[str]:
    spacing = f"spacing {settings.spacing}" if settings.spacing else "levels of one's own"
    sigmas = settings.levels(model.schedule).tolist()
    yield f"sigmas    {settings.sampled_steps} steps of {settings.sampler}, {spacing}"
    shown = [f"{sigma:.4g}" for sigma in sigmas]
    yield from _wrapped("  " + "  ".join(shown), "  ")


def _work(
    model: LatentDiffusion, batch: Sequence[Item], settings: Settings, dtype: torch.dtype, autocast: bool, count: int
) -> Iterator[str]:
    """Sizes, calls and memory: the loop itself runs on the meta device, and a spy listens at the denoiser."""
    for part in (model.unet, model.text_encoder):
        part.to(dtype)
    held = {
        "network": weight_bytes(model.unet),
        "text encoder": weight_bytes(model.text_encoder),
        "autoencoder": weight_bytes(model.autoencoder),
    }
    if autocast:
        model.unet.to(torch.bfloat16)
    spy = Spy(model)
    is_known = spy.listen(batch, settings)
    shape = model.latent_shape(settings.height, settings.width)
    drawing, decoding = spy.most, _decoding(model, shape)

    channels, height, width = shape
    yield f"sizes     {count} × {settings.width}x{settings.height} pixels, {len(batch)} at once"
    yield f"          latent {channels} × {height} × {width}" + _context(spy.rows)
    which = "" if len(batch) == count else ", for the first batch"  # others may have other prompts and scales
    yield f"calls     of the network{which}" + ("" if is_known else ", as many as its error tells it to")
    for (rows, length), times in spy.rows.items():
        states = f", {length} states each" if length else ""
        yield f"  {times if is_known else '?':>5} × {rows} row{'s' * (rows > 1)}{states}"
    yield "memory    an estimate: weights and tensors, without what libraries need besides"
    for name, size in held.items():
        yield f"  {name:<16}{_size(size)}"
    yield f"  {'drawing':<16}{_size(drawing)}"
    yield f"  {'decoding':<16}{_size(decoding)}"
    yield f"  {'all at once':<16}{_size(sum(held.values()) + max(drawing, decoding))}"


class Spy:
    """Stands before a denoiser on the meta device: which calls it gets, and what the largest takes."""

    def __init__(self, model: LatentDiffusion) -> None:
        self.model, self.denoiser = model, model.denoiser
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
    def listen(self, batch: Sequence[Item], settings: Settings) -> bool:
        """Whether the sampler's calls do not depend on what it is answered."""
        try:
            for _ in sample(self.model, batch, settings):
                pass
        except (RuntimeError, NotImplementedError):
            return False
        return True


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
