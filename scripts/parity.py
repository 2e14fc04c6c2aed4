"""Do we compute what `diffusers` computes? A table for one family, module by module and from prompt to pixels.

The weights are made of their tensors' names, so nothing is downloaded: python scripts/parity.py sd-v1 --small
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import _installed  # noqa: F401
import torch
from _diffusers import Theirs, pipeline, states, towers_of, unet_of, vae_of
from _ending import ended
from _synthetic import filled, normal, remember, skeleton
from torch import Tensor

from ldm.hints import Hints
from ldm.items import Item
from ldm.models.autoencoder import AutoencoderKL
from ldm.models.framing import Framing
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.noise import keyed_noise, starting_noise
from ldm.sampling import sample
from ldm.settings import Settings, resolve

FAMILIES = ("sd-v1", "sd-v2", "sd-v2-v", "sd-v1-inpainting", "sd-x4-upscaler", "sdxl-base", "sdxl-refiner")
STEPS, SEED, NOISE_LEVEL = 10, 5, 20
PROMPT = "a photograph of an astronaut riding a horse"
LATENTS, PIXELS = f"latents, {STEPS} steps", "pixels / 255"
MOST_RELATIVE, MOST_PIXELS = 1e-3, 1.0  # what a family may differ by, end to end


@dataclass(frozen=True)
class Row:
    """How far ours is from theirs."""

    part: str
    maximum: float
    mean: float
    relative: float  # |ours - theirs| / |theirs|


def row(part: str, ours: Tensor, theirs: Tensor, scale: float = 1.0) -> Row:
    assert ours.shape == theirs.shape, (part, ours.shape, theirs.shape)
    ours, theirs = ours.double(), theirs.double()
    error = (ours - theirs).abs() * scale
    return Row(part, float(error.max()), float(error.mean()), float((ours - theirs).norm() / theirs.norm()))


# --- module by module, and from a prompt and a seed to pixels ----------------------------------------------------


@torch.inference_mode()
def compare(family: str, small: bool, device: str = "cpu", size: int | None = None) -> Iterator[Row]:
    """Each row as soon as it is known. Only one of text towers and UNet has weights at a time, which both sides share.

    size: of the pictures, in pixels; None is the one that the family was trained at.
    """
    params, model = skeleton(family, small, size)
    settings = resolve(model, steps=STEPS)
    tokens = model.text_encoder.tokenize([PROMPT, ""]).to(device)
    remember(model.text_encoder)
    with filled(model, "text_encoder", device=device):
        ours, theirs = model.text_encoder(tokens), _their_states(model, tokens)
        yield row("text", ours.states, theirs[0])
        if ours.pooled is not None:
            yield row("text, pooled", ours.pooled, theirs[1])
    with filled(model, "autoencoder", device=device):
        vae = vae_of(params, model)
        yield from autoencoder(model, vae, device)
        shown, hints = _shown(family, model, vae, settings, device)
        with filled(model, "unet", device=device):
            both = Theirs(unet_of(params, model), vae, [])
            yield unet_row(model, both.unet, tokens)
            for step in sample(model, [Item(PROMPT, None, SEED)], settings, hints):
                z = step.x
            their_z = draw_theirs(family, params, model, both, settings, prompts(model, *theirs) | shown)
            del both
        yield row(LATENTS, z, their_z)
        yield row(PIXELS, model.autoencoder.decode(z), _decode(vae, their_z), scale=255 / 2)


def _their_states(model: LatentDiffusion, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
    towers = [tower.to(tokens.device) for tower in towers_of(model)]  # for their buffers; weights are there
    return states(towers, tokens)


def autoencoder(model: LatentDiffusion, vae: Any, device: str) -> Iterator[Row]:
    side = model.image_size // model.autoencoder.downsample_factor
    image = normal("image", (1, 3, model.image_size, model.image_size)).clamp(-1, 1).to(device)
    assert isinstance(model.autoencoder, AutoencoderKL)
    moments = vae.encode(image).latent_dist.parameters
    yield row("encoder", _clamped(model.autoencoder.encode_moments(image)), _clamped(moments))
    z = normal("z", (1, model.autoencoder.latent_channels, side, side)).to(device)
    yield row("decoder", model.autoencoder.decode(z), _decode(vae, z))


def _clamped(moments: Tensor) -> Tensor:
    mean, logvar = moments.chunk(2, dim=1)
    return torch.cat([mean, logvar.clamp(-30, 20)], 1)


def _decode(vae: Any, z: Tensor) -> Tensor:
    pixels: Tensor = vae.decode(z / vae.config.scaling_factor).sample
    return pixels


def unet_row(model: LatentDiffusion, theirs: Any, tokens: Tensor) -> Row:
    context, pooled = model.text_encoder(tokens)
    side, unet = model.image_size // model.autoencoder.downsample_factor, model.unet
    x = normal("x", (2, unet.in_channels, side, side)).to(model.device)
    t = torch.tensor([501, 21], device=model.device)
    y, told = _told(model, pooled)
    answer = theirs(x, t, encoder_hidden_states=context, **told).sample
    return row("UNet", unet(x, t, context=context, y=y), answer)


def _told(model: LatentDiffusion, pooled: Tensor | None) -> tuple[Tensor | None, dict[str, Any]]:
    """`y` as our UNet takes it and as theirs does."""
    if model.low_resolution is not None:
        level = torch.full((2,), NOISE_LEVEL, device=model.device)
        return level, {"class_labels": level}
    if model.framing_embedding is None or pooled is None:
        return None, {}
    framing = Framing(1000, 900, 512, 640, 30, 20)
    numbers = [float(getattr(framing, name)) for name in model.framing_embedding.numbers]
    ids = torch.tensor([numbers] * len(pooled), device=model.device)
    told = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": ids}}
    return model.framing_embedding(pooled, framing), told


def draw_theirs(
    family: str,
    params: dict[str, Any],
    model: LatentDiffusion,
    theirs: Theirs,
    settings: Settings,
    given: dict[str, Any],
) -> Tensor:
    """The latents of their pipeline, which is given prompts and hints."""
    noise = starting_noise([SEED], model.latent_shape(settings.height, settings.width)).to(model.device)
    pipe = pipeline(family, params, theirs)
    if "noise on the hint" in given:  # ours: theirs would be of another generator
        add, own = pipe.low_res_scheduler.add_noise, given.pop("noise on the hint")
        pipe.low_res_scheduler.add_noise = lambda image, noise, level: add(image, own, level)
    size = {"height": settings.height, "width": settings.width}
    begin: dict[str, Any] = {"latents": noise}
    if family == "sdxl-refiner":  # the share of steps that the base has done: none
        begin, size = {"image": noise, "denoising_start": 0.5 / params["schedule"]["params"]["num_timesteps"]}, {}
    if family == "sd-x4-upscaler":
        size = {}
    drawn = pipe(
        **begin,
        **size,
        **given,
        num_inference_steps=STEPS,
        guidance_scale=settings.guidance_scale,
        output_type="latent",
    )
    latents: Tensor = drawn.images
    return latents


def prompts(model: LatentDiffusion, context: Tensor, pooled: Tensor | None) -> dict[str, Any]:
    """The states of the prompt, and of none against it, as their pipelines take them ready-made."""
    given = {"prompt_embeds": context[:1], "negative_prompt_embeds": context[1:]}
    if pooled is not None:
        given |= {"pooled_prompt_embeds": pooled[:1], "negative_pooled_prompt_embeds": pooled[1:]}
    if model.zero_unconditional:
        given |= {k: torch.zeros_like(v) for k, v in given.items() if k.startswith("negative")}
    return given


def _shown(
    family: str, model: LatentDiffusion, vae: Any, settings: Settings, device: str
) -> tuple[dict[str, Any], Hints]:
    """A picture to paint in or to enlarge: for their pipeline, and as our hints."""
    factor = model.autoencoder.downsample_factor
    if family == "sd-v1-inpainting":
        image = normal("image", (1, 3, settings.height, settings.width)).clamp(-1, 1).to(device)
        mask = torch.zeros(1, 1, settings.height, settings.width, device=device)
        mask[:, :, : settings.height // 2, settings.width // 4 :] = 1
        masked = image * (1 - mask)
        posterior, small = model.autoencoder.encode(masked), mask[:, :, ::factor, ::factor]
        assert not isinstance(posterior, Tensor)
        their_z = vae.encode(masked).latent_dist.mode() * vae.config.scaling_factor
        shown = {"image": image / 2 + 0.5, "mask_image": mask, "masked_image_latents": their_z, "strength": 1.0}
        return shown, Hints(concat=torch.cat([small, posterior.mode()], dim=1))
    if family == "sd-x4-upscaler":
        low = normal("low", (1, 3, settings.height // factor, settings.width // factor)).clamp(-1, 1).to(device)
        noise = keyed_noise([SEED], low.shape[1:], "noise on the hint").to(device)
        shown = {"image": low / 2 + 0.5, "noise_level": NOISE_LEVEL, "noise on the hint": noise}
        return shown, Hints(noisy=low, noise_level=NOISE_LEVEL)
    return {}, Hints()


def peak_memory() -> float:
    """The most that this process ever had in memory, in GB (10^9 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("--small", action="store_true", help="the same layers with few channels: seconds, not minutes")
    parser.add_argument("--size", type=int, metavar="PX", help="side of the pictures, a multiple of 64 (the family's)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(argv)
    if options.size is not None and (options.size <= 0 or options.size % 64):
        parser.error(f"--size {options.size}: give a positive multiple of 64")
    import diffusers

    torch.backends.cudnn.allow_tf32 = False  # ten bits of a convolution's inputs would be the largest error of all
    about = {"family": options.family, "small": options.small, "size": options.size, "device": options.device}
    about |= {"dtype": "float32", "diffusers": diffusers.__version__}
    if not options.json:
        size = "few channels" if options.small else "full size"
        size += "" if options.size is None else f", pictures of {options.size} pixels"
        print(f"{options.family}, {size}, float32 on {options.device}; diffusers {diffusers.__version__}\n", flush=True)
        print(f"| {'part':17} | {'max error':>9} | {'mean':>9} | {'relative':>9} |\n| {'-' * 17} {'| --------: ' * 3}|")
    rows = []
    for one in compare(options.family, options.small, options.device, options.size):
        rows.append(one)
        if not options.json:
            print(f"| {one.part:17} | {one.maximum:9.1e} | {one.mean:9.1e} | {one.relative:9.1e} |", flush=True)
    found = {one.part: one for one in rows}
    agrees = found[LATENTS].relative <= MOST_RELATIVE and found[PIXELS].mean <= MOST_PIXELS
    if options.json:
        about |= {"rows": [asdict(one) for one in rows], "agrees": agrees, "peak memory, GB": round(peak_memory(), 2)}
        print(json.dumps(about, indent=2))
    else:
        print(f"\npeak memory: {peak_memory():.1f} GB")
    return int(not agrees)


if __name__ == "__main__":
    raise SystemExit(ended(main))
