"""The row of memory: the most that a process takes while it draws, and while it decodes."""

from __future__ import annotations

from collections.abc import Iterator

from _bench.harness import GB, Bench, Line, forget_peak, memory, row, settle
from _bench.weights import PROMPT, Checkpoint, checkpoint, hasten


@row("memory", "SD 1, float32, peak memory of a process: txt2img at 256 x 256, and decoding to 1024 x 1024")
def peaks(bench: Bench) -> Iterator[Line]:
    """Each side loads the file its own way and works, in a process of its own; the process's whole peak counts.
    Of decoding counts what is taken over the weights."""
    file = checkpoint(bench, "sd-v1")
    for what, work in (("txt2img, whole process", txt2img_peak), ("1024 x 1024 decode, over the weights", decode_peak)):
        ours, theirs = (bench.alone(work, side, file, bench.tiny) / GB for side in ("ours", "theirs"))
        share = ours / theirs if theirs else None  # a tiny one may find its memory where another row left it
        yield Line(f"{what}, against diffusers as installed", ours, theirs, "<= 0.75", unit="GB", value=share)


def txt2img_peak(side: str, file: Checkpoint, tiny: bool) -> int:
    import torch

    settle(tiny, peer=side == "theirs")
    size = 64 if tiny else 256
    with torch.inference_mode():
        if side == "ours":
            from _bench.pipelines import draw_ours

            draw_ours(hasten(file.ours(torch.float32)), height=size, width=size, steps=2, guidance_scale=7.5)
        else:
            pipe = file.theirs_from_file(torch.float32)
            pipe(PROMPT, height=size, width=size, num_inference_steps=2, guidance_scale=7.5)
    return memory("VmHWM")


def decode_peak(side: str, file: Checkpoint, tiny: bool) -> int:
    import torch

    settle(tiny, peer=side == "theirs")
    with torch.inference_mode():
        z = torch.randn(1, 4, *[16 if tiny else 128] * 2, generator=torch.Generator().manual_seed(1))
        if side == "ours":
            decode = hasten(file.ours(torch.float32)).decode
        else:
            vae = file.theirs(torch.float32, "cpu", "autoencoder").vae
            decode = lambda z: vae.decode(z / vae.config.scaling_factor).sample  # noqa: E731
        before = memory("VmRSS")
        forget_peak()
        decode(z)
    return memory("VmHWM") - before
