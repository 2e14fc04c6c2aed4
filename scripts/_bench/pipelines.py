"""Rows from a prompt to pictures on a CPU: whole runs, a step with and without guidance, the shipped model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from _bench.floors import floor, synchronize
from _bench.harness import Bench, Line, error, row, settle, take_turns
from _bench.networks import BEST, INSTALLED, shared_copy
from _bench.weights import PROMPT, Checkpoint, checkpoint, hasten

SEED = 5


def pixels(results: Sequence[Any]) -> Any:
    """Pictures -> (N, H, W, 3) float, to be compared."""
    import numpy as np
    import torch

    return torch.stack([torch.from_numpy(np.array(getattr(one, "image", one))) for one in results]).float()


def dtype_name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def draw_ours(model: Any, **options: Any) -> Any:
    import ldm

    return pixels(list(ldm.txt2img(model, PROMPT, seed=SEED, sampler="ddim", **options)))


def draw_theirs(pipe: Any, towers: list[Any], tokens: Any, size: int, steps: int, scale: float, count: int = 1) -> Any:
    """Their pipeline from token ids to pictures, from our noise."""
    from _diffusers import states

    from ldm.noise import starting_noise

    context, _ = states(towers, tokens)
    z = starting_noise(range(SEED, SEED + count), (4, size // 8, size // 8)).to(context.device, pipe.unet.dtype)
    drawn = pipe(
        prompt_embeds=context[:1].expand(count, -1, -1),
        negative_prompt_embeds=context[1:].expand(count, -1, -1),
        latents=z,
        height=size,
        width=size,
        num_inference_steps=steps,
        guidance_scale=scale,
        output_type="pil",
    )
    return pixels(drawn.images)


def their_pipeline(file: Checkpoint, theirs: Any) -> Any:
    """Their text-to-image pipeline with our schedule's scheduler, from its modules."""
    from _diffusers import pipeline

    return pipeline(file.family, file.params, theirs)


@row("txt2img-sd1", "SD 1, 256 x 256, 10 steps of DDIM, guidance 7.5: text to uint8")
def txt2img_sd1(bench: Bench) -> Iterator[Line]:
    import torch
    from _diffusers import Theirs

    settle(bench.tiny)
    size, steps = (64, 2) if bench.tiny else (256, 10)
    file = checkpoint(bench, "sd-v1")
    with torch.inference_mode():
        theirs = file.theirs(torch.float32)
        best = Theirs(shared_copy(theirs.unet).to(memory_format=torch.channels_last), theirs.vae, theirs.towers)
        model = file.ours_by_default()
        tokens = model.text_encoder.tokenize([PROMPT, ""])
        is_same = model.dtype == torch.float32

        def draw(modules: Any) -> Callable[[], Any]:
            pipe = their_pipeline(file, modules)
            return lambda: draw_theirs(pipe, modules.towers, tokens, size, steps, 7.5)

        def ours(model: Any) -> Callable[[], Any]:
            return lambda: draw_ours(model, height=size, width=size, steps=steps, guidance_scale=7.5)

        sides = {"float32": ours(model if is_same else hasten(file.ours(torch.float32)))}
        sides |= {INSTALLED: draw(theirs), BEST: draw(best)} | ({} if is_same else {"default": ours(model)})
        turns = take_turns(sides, bench.rounds, counted=INSTALLED)
    for mine, peer, must in (
        ("float32", INSTALLED, ">= 1.25"),
        ("float32", BEST, ""),
        ("float32" if is_same else "default", INSTALLED, ">= 2.0"),
    ):
        dtype = torch.float32 if mine == "float32" else model.dtype
        least = floor(turns.operations[INSTALLED], dtype, tiny=bench.tiny)
        off = error(turns.outputs[mine], turns.outputs[peer])
        what = f"by default ({dtype_name(dtype)})" if must == ">= 2.0" else "float32"
        yield Line(f"{what}, {peer} (float32)", turns.seconds[mine], turns.seconds[peer], must, least, off)


@row("guidance-1", "SD 1, 512 x 512: a step at guidance 1 over one at 7.5")
def guidance_1(bench: Bench) -> Iterator[Line]:
    import torch

    settle(bench.tiny)
    size = 64 if bench.tiny else 512  # SD 1's own: in a smaller picture the reading of weights is most of a step
    with torch.inference_mode():
        model = checkpoint(bench, "sd-v1").ours_by_default()
        pairs = [(step_seconds(model, size, 1.0), step_seconds(model, size, 7.5)) for _ in range(bench.rounds)]
    one, both = (statistics.median(times) for times in zip(*pairs, strict=True))
    what = f"guidance 1, against ours at 7.5, {dtype_name(model.dtype)}"
    yield Line(what, one, both, must="<= 0.52", value=one / both, note="ratio is ours over ours")


class _EnoughError(Exception):
    pass


def step_seconds(model: Any, size: int, scale: float, steps: int = 3) -> float:
    """Of one step, from the end of the first, which warms up, to that of the last; nothing is decoded."""
    import ldm

    ends: list[float] = []

    def on_step(progress: Any) -> None:
        if not ends or progress.step.i + 1 >= steps:
            synchronize()
        ends.append(time.perf_counter())
        if len(ends) == steps:
            raise _EnoughError

    try:
        size_and_steps = {"height": size, "width": size, "steps": max(10, steps)}
        list(ldm.txt2img(model, PROMPT, guidance_scale=scale, on_step=on_step, **size_and_steps))
    except _EnoughError:
        pass
    return (ends[-1] - ends[0]) / (len(ends) - 1)


# --- the shipped model -------------------------------------------------------------------------------------------


@row("scenes", "the shipped model, text to uint8, ddim: one picture, and a batch of 16")
def scenes(bench: Bench) -> Iterator[Line]:
    import torch

    import ldm

    settle(bench.tiny)
    steps = 2 if bench.tiny else 30
    with torch.inference_mode():
        model, theirs = hasten(ldm.load("scenes")), ScenesInDiffusers()
        for count in (1, 2 if bench.tiny else 16):
            sides = {
                "ours": lambda n=count: draw_ours(model, steps=steps, num_images=n, batch_size=n),
                INSTALLED: lambda n=count: theirs.draw(PROMPT, n, steps),
            }
            turns = take_turns(sides, bench.rounds, counted=INSTALLED)
            least = floor(turns.operations[INSTALLED], torch.float32, tiny=bench.tiny)
            off = error(turns.outputs["ours"], turns.outputs[INSTALLED])
            ours, other = turns.seconds["ours"], turns.seconds[INSTALLED]
            yield Line(f"batch of {count}, {steps} steps, float32, {INSTALLED}", ours, other, ">= 1.5", least, off)


class ScenesInDiffusers:
    """The shipped UNet and autoencoder as diffusers' classes, under its DDIM; the text tower, which it lacks, is ours.

    The loop is the one of its documentation, without its pipeline's checks.
    """

    def __init__(self) -> None:
        from _diffusers import scheduler, unet_of, vae_of

        from ldm.checkpoint.fit import fill
        from ldm.checkpoint.load import skeleton, weights_path

        file = weights_path("scenes")
        found = skeleton(file)
        fill(found.model, found.tensors, file, found.source)
        self.model, params = found.model.eval(), found.tree["params"]
        self.unet, self.vae = unet_of(params, self.model), vae_of(params, self.model)
        self.scheduler, self.shift = scheduler(params), self.model.autoencoder.shift_factor

    def draw(self, prompt: str, count: int, steps: int) -> Any:
        import torch
        from PIL import Image

        from ldm.noise import starting_noise

        context = self.model.condition(["", prompt]).context.repeat_interleave(count, 0)
        x = starting_noise(range(SEED, SEED + count), self.model.latent_shape(128, 128))
        self.scheduler.set_timesteps(steps)
        for t in self.scheduler.timesteps:
            answer = self.unet(torch.cat([x, x]), t, encoder_hidden_states=context).sample
            away, towards = answer.chunk(2)
            v = away + self.model.guidance_scale * (towards - away)
            x = self.scheduler.step(v, t, x, eta=0.0).prev_sample
        pictures = self.vae.decode(x / self.vae.config.scaling_factor + self.shift).sample
        bytes_ = ((pictures / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        return pixels([Image.fromarray(one) for one in bytes_])
