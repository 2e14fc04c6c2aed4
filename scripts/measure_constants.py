"""What each thing that a job does once saves, on the shipped model and one core: processor time, A B A B, the least.

python scripts/measure_constants.py [--rounds N] [--compile]. Processor time, so a busy machine disturbs it little.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import _installed  # noqa: F401
import torch
from _ending import ended
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import ldm.sampling
from ldm.checkpoint.configs import CONFIGS
from ldm.checkpoint.load import load
from ldm.config import build, load_config
from ldm.items import Item
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.modules.attention import BasicTransformerBlock
from ldm.modules.blocks import ResnetBlock
from ldm.settings import resolve

STEPS = 8
READERS: ldm.sampling.Readers = {}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often each is run (default: %(default)s)")
    parser.add_argument("--compile", action="store_true", help="compiled blocks too")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    model = load("scenes")
    with torch.inference_mode():
        for family, side in (("sd-v1", 64), ("sdxl-base", 128)):
            counts(family, side)
        for batch in (1, 4):
            shares(model, batch, options.rounds)
            steps(model, batch, options.rounds)
        texts(model, options.rounds)
        if options.compile:
            compiled(model, options.rounds)
    return 0


def counts(family: str, side: int) -> None:
    """The share of the operations of a UNet's call that is in keys and values of the context, by counting them."""
    with torch.device("meta"):
        model = build(load_config(CONFIGS / f"{family}.yaml"), family, expected=LatentDiffusion)
        unet: Any = model.unet
        x, context = torch.empty(2, 4, side, side), torch.empty(2, 77, unet.context_dim)
        y = None if unet.y_dim is None else torch.empty(2, unet.y_dim)
        found = []
        for work in (lambda: unet(x, torch.ones(2), context, y), lambda: keys_and_values(unet, context)):
            with FlopCounterMode(display=False) as counter:
                work()
            found.append(counter.get_total_flops())
    print(f"{family}, {side} x {side}: keys and values are {found[1] / found[0]:.4f} of {found[0] / 1e9:.0f} GFLOP")


def keys_and_values(unet: nn.Module, context: Tensor) -> list[Tensor]:
    crosses = [module.attn2 for module in unet.modules() if isinstance(module, BasicTransformerBlock)]
    return [layer(context) for cross in crosses for layer in (cross.to_k, cross.to_v)]


def least(rounds: int, **ways: Callable[[], object]) -> dict[str, float]:
    """Milliseconds of each way, in turns."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            start = time.process_time()
            way()
            found[name].append(1e3 * (time.process_time() - start))
    return {name: min(times[1:]) for name, times in found.items()}


def tell(what: str, found: dict[str, float], per: int = 1) -> None:
    first, *_ = found.values()
    ways = "; ".join(f"{name} {ms / per:.2f} ms ({ms / first:.3f})" for name, ms in found.items())
    print(f"{what}: {ways}", flush=True)


def shares(model: LatentDiffusion, batch: int, rounds: int) -> None:
    """What the parts of a call cost that depend on the condition alone, or on the timestep alone."""
    unet: Any = model.unet
    x, t, context = torch.randn(2 * batch, 4, 16, 16), torch.full((2 * batch,), 500.0), torch.randn(2 * batch, 64, 96)
    resnets = [module for module in unet.modules() if isinstance(module, ResnetBlock)]

    def timestep() -> None:
        emb = nn.functional.silu(unet.embed(x, t, None))
        for resnet in resnets:
            resnet.time_emb_proj(emb)

    ways = {
        "call": lambda: unet(x, t, context),
        "keys and values": lambda: keys_and_values(unet, context),
        "timestep": timestep,
    }
    tell(f"UNet of scenes, {2 * batch} rows", least(4 * rounds, **ways))


def draw(model: LatentDiffusion, items: Sequence[Item], scale: float) -> None:
    """Steps alone: the texts are read already, but in the first round."""
    for _ in ldm.sampling.sample(model, items, resolve(model, steps=STEPS, guidance_scale=scale), readers=READERS):
        pass


def steps(model: LatentDiffusion, batch: int, rounds: int) -> None:
    items = [Item("a large red sphere", "fog", i) for i in range(batch)]
    same = [Item("a large red sphere", "a large red sphere", i) for i in range(batch)]
    kept = ldm.sampling.constants_of

    def nothing_kept() -> None:
        ldm.sampling.constants_of = lambda network: nullcontext  # type: ignore[assignment, return-value]
        draw(model, items, 7.5)
        ldm.sampling.constants_of = kept

    ways = {
        "7.5": lambda: draw(model, items, 7.5),
        "7.5, nothing kept": nothing_kept,
        "guidance 1": lambda: draw(model, items, 1.0),
        "negative = prompt": lambda: draw(model, same, 7.5),
    }
    tell(f"step of {batch}", least(rounds, **ways), STEPS)


def texts(model: LatentDiffusion, rounds: int) -> None:
    four = ["a large red sphere", "a small cube", "two blue cones", "fog"]
    ways = {
        "4 texts alone": lambda: [model.condition([text]) for text in four],
        "4 together": lambda: model.condition(four),
        "1": lambda: model.condition(four[:1]),
    }
    tell("texts", least(4 * rounds, **ways))


def compiled(plain: LatentDiffusion, rounds: int) -> None:
    from _speed import keep_kernels

    from ldm.regions import compile_regions

    keep_kernels()
    model, items = load("scenes"), [Item("a large red sphere", "fog", 0)]
    start, busy = time.perf_counter(), time.process_time()
    compile_regions(model.unet)
    draw(model, items, 7.5)
    print(f"compiled in {time.perf_counter() - start:.1f} s ({time.process_time() - busy:.1f} s of this process)")
    ways = {"plain": lambda: draw(plain, items, 7.5), "compiled": lambda: draw(model, items, 7.5)}
    tell("step of 1", least(rounds, **ways), STEPS)


if __name__ == "__main__":
    raise SystemExit(ended(main))
