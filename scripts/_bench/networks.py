"""Rows of single networks on a CPU: one call of the UNet, one of the decoder."""

from __future__ import annotations

import gc
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from _bench.floors import floor
from _bench.harness import Bench, Line, error, row, settle, take_turns
from _bench.weights import call_ours, call_theirs, checkpoint, hasten, unet_inputs

INSTALLED, BEST = "diffusers as installed", "diffusers, channels_last"
CPU_UNET = "batch 2, 64 x 64 latents, one call"


@row("unet-sd1-fp32", f"SD 1 UNet, float32: {CPU_UNET}")
def unet_sd1_fp32(bench: Bench) -> Iterator[Line]:
    yield from unet(bench, "sd-v1", "float32", {INSTALLED: ">= 1.15", BEST: ""}, must_error=1e-4)


@row("unet-sd1-bf16", f"SD 1 UNet, bfloat16: {CPU_UNET}")
def unet_sd1_bf16(bench: Bench) -> Iterator[Line]:
    yield from unet(bench, "sd-v1", "bfloat16", {INSTALLED: "", BEST: ">= 1.25"})


@row("unet-sdxl-bf16", f"SDXL UNet, bfloat16: {CPU_UNET}")
def unet_sdxl_bf16(bench: Bench) -> Iterator[Line]:
    yield from unet(bench, "sdxl-base", "bfloat16", {INSTALLED: "", BEST: ">= 1.2"})


def unet(
    bench: Bench, family: str, dtype_name: str, peers: dict[str, str], must_error: float | None = None
) -> Iterator[Line]:
    """One line a peer, all in one process: what it must show, by the peer's name."""
    import torch

    settle(bench.tiny)
    dtype = getattr(torch, dtype_name)
    file = checkpoint(bench, family)
    given = unet_inputs(file.params, 2, 16 if bench.tiny else 64, dtype)
    sides: dict[str, Callable[[], Any]] = {}
    with torch.inference_mode():
        theirs = file.theirs(dtype, "cpu", "unet").unet
        sides |= twins(theirs, given, peers)
        ours = hasten(file.ours(dtype))
        weights = sum(p.numel() for p in theirs.parameters()) * dtype.itemsize
        keep_only(ours, "unet", "framing_embedding")
        sides = {"ours": call_ours(ours, given)} | sides
        turns = take_turns(sides, bench.rounds, counted=INSTALLED)
        least = floor(turns.operations[INSTALLED], dtype, weights=weights, tiny=bench.tiny)
    for peer, must in peers.items():
        off = error(turns.outputs["ours"], turns.outputs[peer])
        yield Line(f"{dtype_name}, {peer}", turns.seconds["ours"], turns.seconds[peer], must, least, off)
    if must_error is not None:
        yield Line("its error", error=off, value=off, must=f"<= {must_error}")


def twins(theirs: Any, given: dict[str, Any], peers: dict[str, str]) -> dict[str, Callable[[], Any]]:
    """Their network once as it is and once in channels_last, which shares what that does not change."""
    import torch

    sides = {INSTALLED: call_theirs(theirs, given)}
    if BEST in peers:
        best = shared_copy(theirs).to(memory_format=torch.channels_last)
        turned = given | {"x": given["x"].contiguous(memory_format=torch.channels_last)}
        sides[BEST] = call_theirs(best, turned)
    return sides


def shared_copy(module: Any) -> Any:
    """A second module of the same kind and config, on the memory of the first one's weights."""
    from ldm.checkpoint.meta import on_meta

    with on_meta():
        copy = type(module).from_config(module.config)
    copy.load_state_dict(module.state_dict(), assign=True)
    return copy.eval()


def keep_only(model: Any, *parts: str) -> None:
    """Give back the memory of the parts that the row does not use."""
    for name in {name for name, _ in model.named_children()} - set(parts):
        setattr(model, name, None)
    gc.collect()


@row("unet-sd1-default", f"SD 1 UNet, each side's own defaults: {CPU_UNET}")
def unet_sd1_default(bench: Bench) -> Iterator[Line]:
    import torch

    settle(bench.tiny)
    file = checkpoint(bench, "sd-v1")
    with torch.inference_mode():
        theirs = file.theirs(torch.float32, "cpu", "unet").unet  # from_pretrained's default
        model = file.ours_by_default()
        keep_only(model, "unet")
        side = 16 if bench.tiny else 64
        ours = unet_inputs(file.params, 2, side, model.dtype)
        given = unet_inputs(file.params, 2, side, torch.float32)
        sides = {"ours": call_ours(model, ours), INSTALLED: call_theirs(theirs, given)}
        turns = take_turns(sides, bench.rounds, counted=INSTALLED)
        least = floor(turns.operations[INSTALLED], model.dtype, tiny=bench.tiny)
    off = error(turns.outputs["ours"], turns.outputs[INSTALLED])
    what = f"{str(model.dtype).removeprefix('torch.')}, {INSTALLED} (float32)"
    yield Line(what, turns.seconds["ours"], turns.seconds[INSTALLED], ">= 2.0", least, off)


@row("vae-decode", "SD 1 autoencoder, float32: 64 x 64 latents to pixels")
def vae_decode(bench: Bench) -> Iterator[Line]:
    yield from decoding(bench, "float32", ">= 1.3")


@row("vae-decode-bf16", "the same in bfloat16")
def vae_decode_bf16(bench: Bench) -> Iterator[Line]:
    yield from decoding(bench, "bfloat16", ">= 1.6")


def decoding(bench: Bench, dtype_name: str, must: str, device: str = "cpu", side: int = 64) -> Iterator[Line]:
    import torch

    settle(bench.tiny)
    dtype = getattr(torch, dtype_name)
    file = checkpoint(bench, "sd-v1")
    with torch.inference_mode():
        theirs = file.theirs(dtype, device, "autoencoder").vae
        best = shared_copy(theirs).to(memory_format=torch.channels_last)
        model = hasten(file.ours(dtype, device))
        keep_only(model, "autoencoder", "unet")
        z = torch.randn(1, 4, *[8 if bench.tiny else side] * 2, generator=torch.Generator().manual_seed(1))
        z = z.to(device, dtype)
        scaled = z / theirs.config.scaling_factor
        turned = scaled.contiguous(memory_format=torch.channels_last)
        sides = {
            "ours": lambda: model.decode(z),
            INSTALLED: lambda: theirs.decode(scaled).sample,
            BEST: lambda: best.decode(turned).sample,
        }
        turns = take_turns(sides, bench.rounds, counted=INSTALLED)
        least = floor(turns.operations[INSTALLED], dtype, device, tiny=bench.tiny)
    for peer, wanted in ((INSTALLED, must), (BEST, "")):
        off = error(turns.outputs["ours"], turns.outputs[peer])
        yield Line(f"{dtype_name}, {peer}", turns.seconds["ours"], turns.seconds[peer], wanted, least, off)


@row("openvino", f"SD 1 UNet, float32, against OpenVINO with a static shape: {CPU_UNET}")
def against_openvino(bench: Bench) -> Iterator[Line]:
    if importlib.util.find_spec("openvino") is None:
        yield Line("openvino is not installed: pip install openvino", note="not installed")
        return
    import openvino
    import torch

    settle(bench.tiny)
    file = checkpoint(bench, "sd-v1")
    given = unet_inputs(file.params, 2, 16 if bench.tiny else 64, torch.float32)
    examples = (given["x"], given["t"].float(), given["context"])
    theirs = file.theirs(torch.float32, "cpu", "unet").unet

    class Plain(torch.nn.Module):
        def __init__(self, unet: Any) -> None:
            super().__init__()
            self.unet = unet

        def forward(self, x: Any, t: Any, context: Any) -> Any:
            return self.unet(x, t, encoder_hidden_states=context).sample

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing: the shape is static
        graph = openvino.convert_model(
            Plain(theirs), example_input=examples, input=[tuple(example.shape) for example in examples]
        )
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.compile_model(graph, "CPU", options)
    del theirs, graph
    gc.collect()
    with torch.inference_mode():
        model = hasten(file.ours(torch.float32))
        keep_only(model, "unet")
        arrays = [example.numpy() for example in examples]
        sides = {"ours": call_ours(model, given), "openvino": lambda: torch.from_numpy(compiled(arrays)[0])}
        turns = take_turns(sides, bench.rounds)
    off = error(turns.outputs["ours"], turns.outputs["openvino"])
    what = f"float32, OpenVINO {openvino.__version__.partition('-')[0]}"
    yield Line(what, turns.seconds["ours"], turns.seconds["openvino"], error=off)
