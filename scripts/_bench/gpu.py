"""Rows of one GPU: networks, decoding, training. Whole pictures are in gpu_pictures.py."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

from _bench.floors import clock, count, floor
from _bench.harness import Bench, Line, error, row, settle, take_turns
from _bench.networks import BEST, INSTALLED, decoding, shared_copy
from _bench.pipelines import step_seconds
from _bench.weights import call_theirs, checkpoint, hasten, unet_inputs


@row("gpu-unet-sd1", "SD 1, 512 x 512, bfloat16: steps at guidance 7.5, not compiled", gpu=True)
def unet_sd1(bench: Bench) -> Iterator[Line]:
    yield from steps(bench, compiled=False, must=">= 1.6", rate=">= 90")


@row("gpu-unet-sd1-compiled", "the same, both sides compiled", gpu=True)
def unet_sd1_compiled(bench: Bench) -> Iterator[Line]:
    yield from steps(bench, compiled=True, must=">= 1.15", rate=">= 125")


def steps(bench: Bench, compiled: bool, must: str, rate: str) -> Iterator[Line]:
    """Ours: whole steps, guidance and sampler in them, as `ldm.txt2img` takes them. Theirs: calls of the UNet alone."""
    import torch

    settle(bench.tiny)
    file, dtype = checkpoint(bench, "sd-v1"), torch.bfloat16
    side = 16 if bench.tiny else 64
    with torch.inference_mode():
        given = unet_inputs(file.params, 2, side, dtype, "cuda")
        theirs = file.theirs(dtype, "cuda", "unet").unet
        best = shared_copy(theirs).to(memory_format=torch.channels_last)
        if compiled:
            theirs.compile()
            best.compile(mode="max-autotune", fullgraph=True)  # its documentation's fastest
        turned = given | {"x": given["x"].contiguous(memory_format=torch.channels_last)}
        model = hasten(file.ours(dtype, "cuda"), compiled)
        few = 3 if bench.tiny else 30
        calls = {INSTALLED: call_theirs(theirs, given), BEST: call_theirs(best, turned)}
        _, operations = (None, 0.0) if compiled else count(calls[INSTALLED])  # what is compiled cannot be counted
        seconds: dict[str, list[float]] = {name: [] for name in ("ours", *calls)}
        for _ in range(bench.rounds + 1):  # the first warms up
            seconds["ours"].append(step_seconds(model, 8 * side, 7.5, few))
            for name, call in calls.items():
                seconds[name].append(clock(repeated(call, few)) / few)
        taken = {name: statistics.median(times[1:]) for name, times in seconds.items()}
        least = floor(operations, dtype, "cuda", tiny=bench.tiny) if operations else None
    for peer, wanted in ((INSTALLED, must), (BEST, "")):
        yield Line(f"bfloat16, {peer}", taken["ours"], taken[peer], wanted, least)
    yield Line("steps a second", must=rate, value=1 / taken["ours"])


def repeated(call: Callable[[], Any], times: int) -> Callable[[], Any]:
    def several() -> Any:
        for _ in range(times):
            answer = call()
        return answer

    return several


@row("gpu-vae-decode", "SD 1 autoencoder: 128 x 128 latents to 1024 x 1024", gpu=True)
def vae_decode(bench: Bench) -> Iterator[Line]:
    for line in decoding(bench, "bfloat16", "", "cuda", side=128):
        yield line
    assert line.ours is not None
    yield Line("milliseconds", must="<= 40", value=line.ours * 1e3)


@row("gpu-train-sd1", "SD 1 UNet, latents of 512 x 512, batch 16: a step of AdamW, bfloat16 autocast", gpu=True)
def train(bench: Bench) -> Iterator[Line]:
    import torch

    settle(bench.tiny)
    file = checkpoint(bench, "sd-v1")
    batch, side = (2, 16) if bench.tiny else (16, 64)
    given = unet_inputs(file.params, batch, side, torch.float32, "cuda")
    noise = torch.randn(batch, 4, side, side, device="cuda")
    theirs = file.theirs(torch.float32, "cuda", "unet").unet
    ours = file.ours(torch.float32, "cuda").unet
    seconds, losses = {}, {}
    turned = given["x"].contiguous(memory_format=torch.channels_last)
    for name, module, predict in (
        ("ours", ours, lambda: ours(turned, given["t"], context=given["context"])),
        (INSTALLED, theirs, call_theirs(theirs, given)),
    ):  # one after another: two optimizers would not leave room for a fair batch
        module.requires_grad_(True)
        if name == "ours":
            module.to(memory_format=torch.channels_last)
        step = training_step(module, predict, noise, fused=True if name == "ours" else None)
        turns = take_turns({name: step}, max(3, bench.rounds))
        seconds[name], losses[name] = turns.seconds[name], turns.outputs[name]
        module.to("cpu").requires_grad_(False)
        torch.cuda.empty_cache()
    off = error(losses["ours"], losses[INSTALLED])
    yield Line(f"batch {batch}, {INSTALLED}", seconds["ours"], seconds[INSTALLED], ">= 1.1", error=off)
    yield Line("pictures a second", must=">= 95", value=batch / seconds["ours"])


def training_step(module: Any, predict: Callable[[], Any], noise: Any, fused: bool | None) -> Callable[[], Any]:
    import torch

    from _bench.training import step

    def autocast() -> Any:
        with torch.autocast("cuda", torch.bfloat16):
            return predict().float()

    return step(module, autocast, noise, fused)
