"""The options of the commands that draw, as a table. Nothing here costs an import of torch."""

from __future__ import annotations

import math
from typing import Any

from _kinds import (
    MAX_SIDE,
    bare,
    count_or_auto,
    falling,
    names,
    number,
    numbers,
    one_of,
    pair,
    seed,
    several,
    side,
    sides,
    whole,
)

from ldm.names import SAMPLERS, SPACINGS

Option = tuple[str, Any, str | None, str]  # names, type or True for a switch, metavar, help

ATTENTION = ("auto", "math", "flash", "efficient", "cudnn")
PRECISIONS = ("full", "autocast", "fp16", "bf16")
BACKENDS = ("torch", "onnx", "tensorrt")  # the others draw with a folder of scripts/export_onnx.py
WITH_TORCH = {  # options that only torch's networks have, and what else to do
    "explain": "explain the model that was exported",
    "config": "the folder has its own",
    "ema": "give it to scripts/export_onnx.py",
    "variant": "give it to scripts/export_onnx.py",
    "parameterization": "give it to scripts/export_onnx.py",
    "vae": "give it to scripts/export_onnx.py",
    "text_encoder": "give it to scripts/export_onnx.py",
    "pag": "it edits the network while it draws, and a graph is finished",
    "freeu": "it edits the network while it draws, and a graph is finished",
    "deep_cache": "it skips parts of the network, and a graph is one piece",
    "compile": "onnxruntime compiles a graph as it loads it",
    "attention": "onnxruntime chooses its kernels itself",
    "offload": "onnxruntime holds the graphs",
    "tile": "exported autoencoders are run whole",
    "exact_tiles": "they run a network layer by layer, and a graph is one piece",
    "clip_skip": "a graph gives the family's own states",
}
PICTURES = ("init_img", "mask", "depth")  # options that name pictures to draw from
OPTION_NAMES = {  # settings, and parts of `Guidance`, whose option has another name
    "height": "H",
    "width": "W",
    "guidance_scale": "scale",
    "rescale": "guidance_rescale",
    "threshold": "dynamic_threshold",
    "interval": "guidance_interval",
    "autoguide": "autoguide_scale",
}
REFINE_AT = 0.8
PARTS = ("vae", "text_encoder", "refiner", "autoguide")  # options that name other files of weights than --model
OWN_DEFAULTS: dict[str, dict[str, Any]] = {  # what one command alone has, besides pictures
    "txt2img": {},
    "img2img": {"strength": 0.75},
    "inpaint": {"strength": 1.0, "mask_blur": 0, "outpaint": (0, 0, 0, 0), "fit_mask": False},
    "depth2img": {"strength": 0.8},
    "upscale": {"noise_level": 20, "tile": None},
    "variations": {"noise_level": 0},
    "sample": {},
}


def own_model(command: str) -> str:
    """The shipped model that a command draws with where none is named."""
    return {"inpaint": "scenes-inpainting", "upscale": "scenes-x4"}.get(command, "scenes")


WORDLESS = ("sample",)  # commands that take no prompt
WORDS: tuple[Option, ...] = (
    ("--prompt", str, "TEXT", "what to draw"),
    ("--negative-prompt --neg", str, "TEXT", "what to keep out of the picture"),
    ("--from-file", str, "FILE", "a prompt a line instead of --prompt; - is standard input"),
    ("--repeat", whole(1, 100_000), "N", "draw each prompt N times"),
)
REPRODUCE = ("--reproduce", str, "PNG", "draw a picture made here again, bit for bit, from what is written in it")
HOW: tuple[Option, ...] = (
    ("--steps --ddim-steps", whole(1, 1000), "N", "denoising steps, exactly (30)"),
    ("--sampler", str, "NAME", f'{", ".join(SAMPLERS)}, or as elsewhere: "DPM++ 2M Karras" (the model\'s own)'),
    ("--spacing", str, "NAME", f"noise levels visited: {', '.join(SPACINGS)} (the sampler's own)"),
    ("--sigma-min", number(0, math.inf), "S", "noise level of the last step, for spacings over sigma such as karras"),
    ("--sigma-max", number(0, math.inf), "S", "and of the first"),
    ("--rho", number(0.1, 100), "R", "shape of karras (7) and polyexponential (1)"),
    ("--sigmas", falling, "S,S,…", "noise levels of your own, falling, instead of --steps and --spacing"),
    ("--timesteps", falling, "T,T,…", "the same as training timesteps, 999,850,…"),
    (
        "--eta --ddim-eta",
        number(0, math.inf),
        "E",
        "fresh noise in each step: 0, 1, or more (the model's, or the --sampler's)",
    ),
    ("--s-churn", number(0, math.inf), "S", "noise added on the way, in samplers that can (0)"),
    ("--s-tmin", number(0, math.inf), "S", "at noise levels from this one (0)"),
    ("--s-tmax", number(0, math.inf, ends=True), "S", "to this one (inf)"),
    ("--s-noise", number(0, math.inf), "S", "a factor of that noise (1)"),
    ("--H --height", side, "PX", "height, a multiple of 8 (the model's own)"),
    ("--W --width", side, "PX", "width, a multiple of 8 (the model's own)"),
    ("--original-size", pair("HxW", 1), "HxW", "the size SDXL is told the picture had (--H and --W)"),
    ("--crop", pair("T,L", 0), "T,L", "and where in it, top and left, this one was cut out (0,0)"),
    ("--clip-skip", whole(1, 100), "N", "take the text tower's states N - 1 layers earlier (1: the family's own)"),
    ("--seed", seed, "N", "picture i has seed N + i (0); -1 or random draws one and prints it"),
    ("--variation-seed", seed, "N", "vary the picture of --seed towards this one's; picture i varies by N + i"),
    ("--variation-strength", number(0, 1), "V", "how far: 0 is the picture of --seed, 1 that of N"),
    ("--deep-cache", whole(1, 1000), "N", "approximate: run the UNet's deep levels in one step of N; 2 is usual (1)"),
    ("--fixed-code", True, None, "every batch has the seeds of the first"),
)
ANY = (-math.inf, math.inf)
GUIDANCE: tuple[Option, ...] = (
    ("--scale", several(None, *ANY, "7.5"), "G[,G…]", "guidance scale (the model's; 1 is none); several take turns"),
    ("--guidance-rescale", number(0, 1), "PHI", "bring the contrast back that guidance adds, 0 … 1; 0.7 is usual (0)"),
    ("--dynamic-threshold", number(0, 1), "P", "clip to the percentile P, 0 … 1, and scale back; 0.995 is usual"),
    ("--guidance-interval", several(2, 0, math.inf, "0.3,5"), "LO,HI", "guide at noise levels sigma LO … HI only"),
    ("--cfg-pp", True, None, "CFG++: renoise without guidance; --scale is 0 … 1 then (0.6)"),
    ("--pag --pag-scale", number(*ANY), "S", "perturbed-attention guidance; 3 is usual (0)"),
    ("--pag-layers", names, "NAME,…", "whose self-attention it perturbs (mid_block)"),
    ("--freeu", several(4, *ANY, "1.3,1.4,0.9,0.2"), "B1,B2,S1,S2", "FreeU; 1.3,1.4,0.9,0.2 is usual (1,1,1,1)"),
    ("--autoguide", str, "FILE", "a worse model, to lead away from"),
    ("--autoguide-scale", number(*ANY), "W", "and how far; 1 is not at all (2)"),
)
COUNTS: tuple[Option, ...] = (
    ("--n-samples", whole(1, 10_000), "N", "drawn together: N of the prompt, or N prompts of --from-file (1)"),
    ("--n-iter", whole(1, 100_000), "N", "do it all N times, with new seeds (1)"),
    ("--batch-size", count_or_auto, "N", "drawn together; auto: as many as fit into the memory (--n-samples)"),
)
MEMORY: tuple[Option, ...] = (
    ("--exact-tiles", True, None, "tiles that give the whole's picture, in several times the time"),
    ("--offload", bool, None, "parts of the model take turns on the GPU (where they do not all fit)"),
)
TILED = ("--tile", bare(whole(0, MAX_SIDE), 512), "PX", "autoencoder in tiles, 512 if bare; 0: whole (where it fits)")
MODEL: tuple[Option, ...] = (
    ("--config", str, "NAME|YAML", "the architecture, for a file that does not say"),
    ("--ema", bool, None, "the averaged UNet or the plain one, where a file has both (plain)"),
    ("--variant", str, "NAME", "of a folder's files, such as fp16 (the plain ones)"),
    ("--parameterization", one_of("eps", "v", "x0"), "NAME", "what the UNet predicts: eps, v, x0 (found out)"),
    ("--vae", str, "FILE", "another file or folder to take the autoencoder from"),
    ("--text-encoder", str, "FILE", "another file or folder to take the text encoder from"),
    ("--refiner", str, "FILE", "a second model, which finishes what the first began"),
    ("--refine-at", number(0, 1), "A", f"the share of the noise levels after which it does ({REFINE_AT})"),
    ("--plugin", str, "FILE", "a Python file to run first, which registers classes, or samplers and spacings"),
    ("--C", whole(1, 1024), "N", "latent channels; checked against the model"),
    ("--f", whole(1, 1024), "N", "downsampling factor; checked against the model"),
    ("--device", one_of("auto", "cpu", "cuda", "mps"), "NAME", "auto, cpu, cuda, mps (auto)"),
    ("--backend", one_of(*BACKENDS), "NAME", "what computes the networks: torch, or of an ONNX folder onnx, tensorrt"),
    ("--precision", one_of(*PRECISIONS), "NAME", f"{', '.join(PRECISIONS)} (fp16 on a GPU, else bf16 or full)"),
    ("--attention", one_of(*ATTENTION), "NAME", f"kernel of attention: {', '.join(ATTENTION)} (auto: torch chooses)"),
    ("--compile", True, None, "compile the UNet's blocks first: minutes for a large one, kept in ~/.cache/ldm/kernels"),
)
RUN: tuple[Option, ...] = (
    ("--settings", str, "YAML", "more options, by name; those given here win (scripts/optimize writes such a file)"),
    ("--profile", str, "FOLDER", "say where time and memory went: a trace, a table by module, and a picture"),
)
OUTPUT: tuple[Option, ...] = (
    ("--outdir", str, "FOLDER", "where pictures go; nothing there is overwritten (outputs)"),
    ("--resume", True, None, "finish the job of these very options that was stopped in --outdir"),
    ("--n-rows", whole(1, 1000), "N", "pictures in a row of the grid"),
    ("--skip-grid", True, None, "no grid of all pictures; one picture never gets one"),
    ("--skip-save", True, None, "no single pictures, only the grid"),
    ("--save-intermediates", whole(1, 1000), "N", "also write the estimate every N steps, and a sheet of them"),
    ("--debug", True, None, "a traceback instead of one sentence"),
)


def groups(command: str) -> dict[str, tuple[Option, ...]]:
    """All options of a command, by the titles in its help."""
    words = () if command in WORDLESS else WORDS
    return {
        "what to draw": (*words, *COMMANDS[command][1], REPRODUCE),
        "how": HOW,
        "guidance (docs/guidance.md)": GUIDANCE,
        "how many": COUNTS,
        "memory": MEMORY if command == "upscale" else (TILED, *MEMORY),  # an upscaler has tiles of its own
        "model": (("--model --ckpt", str, "NAME|FILE", f"a model's name or its file ({own_model(command)})"), *MODEL),
        "output": OUTPUT,
        "speed (docs/profiling.md)": RUN,
    }


def _defaulted(option: Option, command: str) -> Option:
    """With the command's default in its help."""
    names, kind, metavar, text = option
    default = OWN_DEFAULTS[command][names.split()[0].strip("-").replace("-", "_")]
    return names, kind, metavar, f"{text} ({default:g})"


STRENGTH = ("--strength", number(0, 1), "S", "0 keeps the picture, 1 leaves nothing of it")
ENLARGED = ("--noise-level", whole(0, 999), "N", "noise on the picture first; more leaves more to be invented")
VARIED = ("--noise-level", whole(0, 999), "N", "noise on its embedding; more lets pictures stray further")
TILE = ("--tile", whole(0, MAX_SIDE), "PX", "draw in tiles of this side (as the model was trained; 0 draws it whole)")
COMMANDS: dict[str, tuple[str, tuple[Option, ...]]] = {  # what each does, and the options that it alone has
    "txt2img": (
        "Draw pictures from a prompt.",
        (("--explain", True, None, "tell tokens, noise levels, calls and memory, and draw nothing"),),
    ),
    "img2img": (
        "Draw pictures from a picture and a prompt.",
        (("--init-img", str, "FILE", "the picture to begin from"), _defaulted(STRENGTH, "img2img")),
    ),
    "inpaint": (
        "Paint part of a picture, or around it; every other pixel stays as it is, bit for bit.",
        (
            ("--init-img", str, "FILE", "the picture to paint in"),
            ("--mask", str, "FILE", "white is painted (else what is transparent in the picture)"),
            _defaulted(STRENGTH, "inpaint"),
            ("--mask-blur", whole(0, 1000), "PX", "blend over twice PX from the mask's edge outward (0)"),
            ("--outpaint", sides, "L,T,R,B", "pixels to add left, top, right and below, and paint"),
            ("--fit-mask", True, None, "scale the mask to the picture's size"),
        ),
    ),
    "depth2img": (
        "Draw what has a given depth, with a model made for it.",
        (
            ("--depth", str, "FILE", "a picture of the depth: brighter is nearer (none: estimated)"),
            ("--init-img", str, "FILE", "the picture to begin from (none: from noise)"),
            _defaulted(STRENGTH, "depth2img"),
        ),
    ),
    "upscale": (
        "Enlarge a picture with an upscaler.",
        (
            ("--init-img", str, "FILE", "the picture to enlarge"),
            _defaulted(ENLARGED, "upscale"),
            TILE,
        ),
    ),
    "variations": (
        "Draw variations of a picture with an unCLIP model.",
        (("--init-img", str, "FILE", "the picture to vary"), _defaulted(VARIED, "variations")),
    ),
    "sample": (
        "Draw pictures from a model that reads no text.",
        (("--classes", numbers, "N,N,…", "class numbers; --n-samples pictures of each (no class)"),),
    ),
}
