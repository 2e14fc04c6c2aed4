"""Rows of one GPU, from a prompt to pictures: seconds a picture, pictures a second, and the memory they take."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from typing import Any

from _bench.floors import floor
from _bench.harness import GB, Bench, Line, error, row, settle, take_turns
from _bench.networks import BEST, INSTALLED, shared_copy
from _bench.pipelines import draw_ours, pixels
from _bench.startup import processes
from _bench.weights import PROMPT, Checkpoint, checkpoint, hasten

SEED = 5


@row("gpu-txt2img-sd1", "SD 1, 512 x 512, 50 steps of DDIM, float16", gpu=True)
def sd1(bench: Bench) -> Iterator[Line]:
    yield from pictures(bench, "sd-v1", 512, 50, {1: "<= 0.42", 16: "<= 0.25"})


@row("gpu-txt2img-sd2", "SD 2.1, 768 x 768, 50 steps of DDIM, float16", gpu=True)
def sd2(bench: Bench) -> Iterator[Line]:
    yield from pictures(bench, "sd-v2-v", 768, 50, {1: "<= 0.9"}, must=">= 1.15")


@row("gpu-txt2img-sdxl", "SDXL, 1024 x 1024, 30 steps of DDIM, float16", gpu=True)
def sdxl(bench: Bench) -> Iterator[Line]:
    yield from pictures(bench, "sdxl-base", 1024, 30, {1: "<= 1.30"})


@row("gpu-throughput-sdxl", "SDXL, 1024 x 1024, 20 steps of DDIM, bfloat16, batches of 8", gpu=True)
def sdxl_throughput(bench: Bench) -> Iterator[Line]:
    yield from pictures(bench, "sdxl-base", 1024, 20, {8: "<= 0.667"}, "bfloat16")


def pictures(
    bench: Bench,
    family: str,
    size: int,
    steps: int,
    batches: dict[int, str],
    dtype_name: str = "float16",
    must: str = "",
) -> Iterator[Line]:
    """Each batch's seconds a picture, and a line with what they must be. Theirs decodes in float32, as ours does."""
    import torch
    from _diffusers import Theirs, pipeline

    settle(bench.tiny)
    dtype = getattr(torch, dtype_name)
    file = checkpoint(bench, family)
    size, steps = (64, 2) if bench.tiny else (size, steps)
    with torch.inference_mode():
        towers = file.theirs(dtype, "cuda", "text_encoder").towers
        unet, vae = file.theirs(dtype, "cuda", "unet").unet, file.theirs(torch.float32, "cuda", "autoencoder").vae
        best = shared_copy(unet).to(memory_format=torch.channels_last)
        model = hasten(file.ours(dtype, "cuda", autoencoder_dtype=torch.float32))
        tokens = model.text_encoder.tokenize([PROMPT, ""]).cuda()
        pipes = {
            name: pipeline(family, file.params, Theirs(each, vae, towers))
            for name, each in ((INSTALLED, unet), (BEST, best))
        }
        for count, seconds in batches.items():
            sides: dict[str, Callable[[], Any]] = {
                "ours": lambda n=count: draw_ours(
                    model, num_images=n, batch_size=n, height=size, width=size, steps=steps, negative_prompt=""
                )
            }
            for name, pipe in pipes.items():
                sides[name] = lambda p=pipe, n=count: theirs(p, towers, tokens, size, steps, model.guidance_scale, n)
            turns = take_turns(sides, bench.rounds, counted=INSTALLED)
            least = floor(turns.operations[INSTALLED], dtype, "cuda", tiny=bench.tiny) / count
            each = {name: taken / count for name, taken in turns.seconds.items()}
            for peer, wanted in ((INSTALLED, must), (BEST, "")):
                off = error(turns.outputs["ours"], turns.outputs[peer])
                yield Line(f"batch {count}, a picture, {peer}", each["ours"], each[peer], wanted, least, off)
            yield Line(f"batch {count}, seconds a picture", must=seconds, value=each["ours"])


def theirs(pipe: Any, towers: list[Any], tokens: Any, size: int, steps: int, scale: float, count: int) -> Any:
    """Their pipeline's steps from token ids and our noise, then their decoder in the dtype that it has."""
    import torch
    from _diffusers import states

    from ldm.noise import starting_noise

    context, pooled = states(towers, tokens)
    given = {"prompt_embeds": context[:1], "negative_prompt_embeds": context[1:]}
    if pooled is not None:
        given |= {"pooled_prompt_embeds": pooled[:1], "negative_pooled_prompt_embeds": pooled[1:]}
    given = {name: value.repeat(count, *[1] * (value.ndim - 1)) for name, value in given.items()}
    z = starting_noise(range(SEED, SEED + count), (4, size // 8, size // 8)).to(context.device, context.dtype)
    told = {"num_inference_steps": steps, "guidance_scale": scale, "output_type": "latent"}
    z = pipe(**given, latents=z, height=size, width=size, **told).images
    vae, drawn = pipe.vae, []
    for one in z.split(1):  # one by one, as ours
        decoded = vae.decode(one.to(vae.dtype) / vae.config.scaling_factor).sample
        drawn.append((decoded / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu())
    return pixels(list(torch.cat(drawn).numpy()))


# --- memory, and the first picture -------------------------------------------------------------------------------


@row("gpu-memory-sdxl", "SDXL, 1024 x 1024, float16: the most that torch has allocated on the GPU", gpu=True)
def memory_sdxl(bench: Bench) -> Iterator[Line]:
    file = checkpoint(bench, "sdxl-base")
    theirs = bench.alone(their_peak, file, bench.tiny) / GB
    for offloaded, must in ((False, "<= 7.6"), (True, "<= 6.0")):
        if offloaded and importlib.util.find_spec("ldm.offload") is None:
            yield Line("offloaded", note="not measured: there is no ldm.offload")
            continue
        ours = bench.alone(our_peak, file, bench.tiny, offloaded) / GB
        what = "offloaded" if offloaded else "whole on the GPU"
        yield Line(f"{what}, {INSTALLED}", ours, theirs, must, unit="GB", value=ours, note="must: GB")


def our_peak(file: Checkpoint, tiny: bool, offloaded: bool) -> int:
    import torch

    settle(tiny)
    with torch.inference_mode():
        model = file.ours(torch.float16, "cpu" if offloaded else "cuda", autoencoder_dtype=torch.float32)
        if offloaded:
            importlib.import_module("ldm.offload").Offload("cuda").join(model)
        model = hasten(model)
        torch.cuda.reset_peak_memory_stats()
        draw_ours(model, steps=2, **({"height": 64, "width": 64} if tiny else {}))
    return torch.cuda.max_memory_allocated()


def their_peak(file: Checkpoint, tiny: bool) -> int:
    import torch

    settle(tiny)
    with torch.inference_mode():
        pipe = file.theirs_from_file(torch.float16).to("cuda")
        torch.cuda.reset_peak_memory_stats()
        pipe(PROMPT, num_inference_steps=2, **({"height": 64, "width": 64} if tiny else {}))
    return torch.cuda.max_memory_allocated()


OUR_FIRST = """
import json, sys, torch, ldm
config = json.loads(sys.argv[5]) or None
model = ldm.load(sys.argv[1], config=config, dtype=torch.float16, autoencoder_dtype=torch.float32, device="cuda")
next(iter(ldm.txt2img(model, sys.argv[2], steps=30))).image.save(sys.argv[4])
"""
THEIR_FIRST = """
import sys, torch
from diffusers import StableDiffusionXLPipeline
pipe = StableDiffusionXLPipeline.from_single_file(
    sys.argv[1], config=sys.argv[3], torch_dtype=torch.float16, local_files_only=True
).to("cuda")
pipe(sys.argv[2], num_inference_steps=30).images[0].save(sys.argv[4])
"""


@row("gpu-first-sdxl", "SDXL, fp16 file, 30 steps: a new process, to the first picture on the disk", gpu=True)
def first_picture(bench: Bench) -> Iterator[Line]:
    file = checkpoint(bench, "sdxl-base")
    told = [str(file.file), PROMPT, str(file.configs), str(bench.folder / "first.png")]
    told.append(json.dumps(file.tree if bench.tiny else None))  # of few channels is no published family
    sides = {"ours": ["-c", OUR_FIRST, *told], "theirs": ["-c", THEIR_FIRST, *told]}
    taken, _ = processes(sides, bench)
    share = taken["ours"] / taken["theirs"]
    yield Line("to a PNG, from_single_file", taken["ours"], taken["theirs"], "<= 0.6", value=share)
