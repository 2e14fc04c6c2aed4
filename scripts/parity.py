"""Do we compute what `diffusers` computes? A table for one family, module by module and from prompt to pixels.

The weights are made of their tensors' names, so nothing is downloaded: python scripts/parity.py sd-v1 --small
"""

from __future__ import annotations

import argparse
import math
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from _diffusers import Theirs, build_theirs, pipeline
from torch import Tensor

from ldm.checkpoint.configs import CONFIGS
from ldm.checkpoint.meta import on_meta
from ldm.config import build, load_config
from ldm.generate import sample
from ldm.hints import Hints
from ldm.models.autoencoder import AutoencoderKL
from ldm.models.framing import Framing
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.noise import keyed_noise, starting_noise
from ldm.request import Item, Settings, resolve

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


# --- weights and inputs ------------------------------------------------------------------------------------------


def normal(name: str, shape: Sequence[int]) -> Tensor:
    """Standard-normal float32 numbers that depend on the name alone."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(f"0:{name}".encode())))
    return torch.from_numpy(rng.standard_normal(tuple(shape), dtype=np.float32))


def weight(name: str, shape: Sequence[int]) -> Tensor:
    """Fan-in scaled normals for weights, 1 + 0.1 n for gains, 0.1 n for biases."""
    values = normal(name, shape)
    if len(shape) >= 2:
        embedding = "embedding" in name
        return values * (0.5 if embedding else 1.0) / math.sqrt(shape[-1] if embedding else math.prod(shape[1:]))
    return 1 + 0.1 * values if name.endswith("weight") else 0.1 * values


def shrink(tree: dict[str, Any]) -> dict[str, Any]:
    """The same architecture with few channels: levels, depths and kinds of layers stay."""
    params = tree["params"]
    unet, towers = params["unet"]["params"], params["text_encoder"]["params"]
    towers = [towers["first"]["params"], towers["second"]["params"]] if "first" in towers else [towers]
    for tower in towers:
        quick = tower.pop("name").endswith("quickgelu")
        tower |= {"width": 32, "heads": 2, "layers": 3, "activation": "quick_gelu" if quick else "gelu"}
        tower |= {"projection_dim": 24} if "projection_dim" in tower else {}
    for part in (unet, params["autoencoder"]["params"]):
        widths = part["block_out_channels"]
        part["block_out_channels"] = [32 * (width // widths[0]) for width in widths]
    unet["context_dim"] = 32 * len(towers)
    if "head_channels" in unet:
        unet["head_channels"] = 8
    if "framing_embedding" in params:
        framing = params["framing_embedding"]["params"]
        framing["dim"] = 16
        unet["y_dim"] = 24 + 16 * len(framing["numbers"])
    params["image_size"] = 16 * 2 ** (len(params["autoencoder"]["params"]["block_out_channels"]) - 1)
    return tree


def make(family: str, small: bool) -> tuple[dict[str, Any], LatentDiffusion]:
    """The params of a family's config, and its model with weights made of names."""
    tree = load_config(CONFIGS / f"{family}.yaml")
    tree = shrink(tree) if small else tree
    with on_meta():
        model = build(tree, family, expected=LatentDiffusion)
    assert isinstance(model, LatentDiffusion)
    model.load_state_dict({k: weight(k, t.shape) for k, t in model.state_dict().items()}, assign=True)
    params: dict[str, Any] = tree["params"]
    return params, model.eval()


# --- module by module --------------------------------------------------------------------------------------------


def modules(family: str, model: LatentDiffusion, theirs: Theirs) -> Iterator[Row]:
    tokens = model.text_encoder.tokenize([PROMPT, ""]).to(model.device)
    (states, pooled), (their_states, their_pooled) = model.text_encoder(tokens), theirs.states(tokens)
    yield row("text", states, their_states)
    if pooled is not None:
        assert their_pooled is not None
        yield row("text, pooled", pooled, their_pooled)

    side, unet = model.image_size // model.autoencoder.downsample_factor, model.unet
    x = normal("x", (2, unet.in_channels, side, side)).to(model.device)
    t = torch.tensor([501, 21], device=model.device)
    y, told = _told(model, pooled)
    answer = theirs.unet(x, t, encoder_hidden_states=states, **told).sample
    yield row("UNet", unet(x, t, context=states, y=y), answer)

    image = normal("image", (1, 3, model.image_size, model.image_size)).clamp(-1, 1).to(model.device)
    assert isinstance(model.autoencoder, AutoencoderKL)
    moments = theirs.vae.encode(image).latent_dist.parameters
    mean, logvar = model.autoencoder.encode_moments(image).chunk(2, dim=1)
    yield row("encoder", torch.cat([mean, logvar.clamp(-30, 20)], 1), _clamped(moments))
    z = normal("z", (1, model.autoencoder.latent_channels, side, side)).to(model.device)
    yield row("decoder", model.decode(z), _decode(theirs, z))


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


def _clamped(moments: Tensor) -> Tensor:
    mean, logvar = moments.chunk(2, dim=1)
    return torch.cat([mean, logvar.clamp(-30, 20)], 1)


def _decode(theirs: Theirs, z: Tensor) -> Tensor:
    pixels: Tensor = theirs.vae.decode(z / theirs.vae.config.scaling_factor).sample
    return pixels


# --- end to end --------------------------------------------------------------------------------------------------


def end_to_end(family: str, params: dict[str, Any], model: LatentDiffusion, theirs: Theirs) -> Iterator[Row]:
    """From a prompt and a seed: ours through `generate`'s loop, theirs through the pipeline of the family."""
    settings = resolve(model, steps=STEPS)
    shown, hints = _shown(family, model, theirs, settings)
    for step in sample(model, [Item(PROMPT, None, SEED)], settings, hints):
        z = step.x
    their_z = draw_theirs(family, params, model, theirs, settings, shown)
    yield row(LATENTS, z, their_z)
    yield row(PIXELS, model.decode(z), _decode(theirs, their_z), scale=255 / 2)


def draw_theirs(
    family: str,
    params: dict[str, Any],
    model: LatentDiffusion,
    theirs: Theirs,
    settings: Settings,
    shown: dict[str, Any],
) -> Tensor:
    """The latents of their pipeline."""
    noise = starting_noise([SEED], model.latent_shape(settings.height, settings.width)).to(model.device)
    pipe = pipeline(family, params, theirs)
    if "noise on the hint" in shown:  # ours: theirs would be of another generator
        add, own = pipe.low_res_scheduler.add_noise, shown.pop("noise on the hint")
        pipe.low_res_scheduler.add_noise = lambda image, noise, level: add(image, own, level)
    size = {"height": settings.height, "width": settings.width}
    begin: dict[str, Any] = {"latents": noise}
    if family == "sdxl-refiner":  # the share of steps that the base has done: none
        begin, size = {"image": noise, "denoising_start": 0.5 / params["schedule"]["params"]["num_timesteps"]}, {}
    if family == "sd-x4-upscaler":
        size = {}
    drawn = pipe(
        **prompts(model, theirs),
        **begin,
        **size,
        **shown,
        num_inference_steps=STEPS,
        guidance_scale=settings.guidance_scale,
        output_type="latent",
    )
    latents: Tensor = drawn.images
    return latents


def prompts(model: LatentDiffusion, theirs: Theirs) -> dict[str, Tensor]:
    """The prompt, and none against it, as their pipelines take them ready-made."""
    states, pooled = theirs.states(model.text_encoder.tokenize([PROMPT, ""]).to(model.device))
    given = {"prompt_embeds": states[:1], "negative_prompt_embeds": states[1:]}
    if pooled is not None:
        given |= {"pooled_prompt_embeds": pooled[:1], "negative_pooled_prompt_embeds": pooled[1:]}
    if model.zero_unconditional:
        given |= {k: torch.zeros_like(v) for k, v in given.items() if k.startswith("negative")}
    return given


def _shown(family: str, model: LatentDiffusion, theirs: Theirs, settings: Settings) -> tuple[dict[str, Any], Hints]:
    """A picture to paint in or to enlarge: for their pipeline, and as our hints."""
    factor = model.autoencoder.downsample_factor
    if family == "sd-v1-inpainting":
        image = normal("image", (1, 3, settings.height, settings.width)).clamp(-1, 1).to(model.device)
        mask = torch.zeros(1, 1, settings.height, settings.width, device=model.device)
        mask[:, :, : settings.height // 2, settings.width // 4 :] = 1
        masked = image * (1 - mask)
        posterior, small = model.encode(masked), mask[:, :, ::factor, ::factor]
        assert not isinstance(posterior, Tensor)
        their_z = theirs.vae.encode(masked).latent_dist.mode() * theirs.vae.config.scaling_factor
        shown = {"image": image / 2 + 0.5, "mask_image": mask, "masked_image_latents": their_z, "strength": 1.0}
        return shown, Hints(concat=torch.cat([small, posterior.mode()], dim=1))
    if family == "sd-x4-upscaler":
        low = normal("low", (1, 3, settings.height // factor, settings.width // factor)).clamp(-1, 1).to(model.device)
        noise = keyed_noise([SEED], low.shape[1:], "noise on the hint").to(model.device)
        shown = {"image": low / 2 + 0.5, "noise_level": NOISE_LEVEL, "noise on the hint": noise}
        return shown, Hints(noisy=low, noise_level=NOISE_LEVEL)
    return {}, Hints()


@torch.inference_mode()
def compare(family: str, small: bool, device: str = "cpu") -> Iterator[Row]:
    """Each row as soon as it is known."""
    params, model = make(family, small)
    model = model.to(device)
    theirs = build_theirs(params, model)
    for tower in theirs.towers:
        tower.to(device)  # for its buffers; weights are there
    yield from modules(family, model, theirs)
    yield from end_to_end(family, params, model, theirs)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("--small", action="store_true", help="the same layers with few channels: seconds, not minutes")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(argv)
    import diffusers

    torch.backends.cudnn.allow_tf32 = False  # ten bits of a convolution's inputs would be the largest error of all
    size = "few channels" if options.small else "full size"
    print(f"{options.family}, {size}, float32 on {options.device}; diffusers {diffusers.__version__}\n", flush=True)
    print(f"| {'part':17} | {'max error':>9} | {'mean':>9} | {'relative':>9} |\n| {'-' * 17} {'| --------: ' * 3}|")
    rows = []
    for one in compare(options.family, options.small, options.device):
        print(f"| {one.part:17} | {one.maximum:9.1e} | {one.mean:9.1e} | {one.relative:9.1e} |", flush=True)
        rows.append(one)
    found = {one.part: one for one in rows}
    return int(found[LATENTS].relative > MOST_RELATIVE or found[PIXELS].mean > MOST_PIXELS)


if __name__ == "__main__":
    sys.exit(main())
