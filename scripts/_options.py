"""The options of txt2img and img2img, and what each value may be. Nothing here costs an import of torch."""

from __future__ import annotations

import argparse
import difflib
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NoReturn

from ldm.names import SAMPLERS, SPACINGS, find_sampler, find_spacing

PRECISIONS = ("full", "autocast", "fp16", "bf16")
MAX_SEED = 2**32 - 1
MAX_SIDE = 8192
FLAGS = {  # the original scripts' own words for a sampler, with the noise levels that it visited there
    "--plms": "plms uniform",
    "--dpm-solver": "dpmpp_2m sgm_uniform",
    "--dpm": "dpmpp_2m sgm_uniform",
}
ELSEWHERE = {"--mask": "inpaint", "--depth": "depth2img"}  # options people may give to another command than theirs


PICTURES = ("init_img", "mask", "depth")  # options that name pictures to draw from
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
    return "scenes-x4" if command == "upscale" else "scenes"


class Usage(ValueError):
    """A mistake on the command line; the message is one sentence with the option, the value and the remedy."""


def whole(low: int, high: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number; give {low} … {high}") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value} is out of range; give {low} … {high}")
        return value

    return convert


def number(low: float, high: float) -> Callable[[str], float]:
    span = "a finite number, such as 7.5" if math.isinf(high) else f"{low:g} … {high:g}"

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number; give {span}") from None
        if not math.isfinite(value) or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is out of range; give {span}")
        return value

    return convert


def side(text: str) -> int:
    value = whole(-(10**9), 10**9)(text)
    nearest = min(max(8, (value + 4) // 8 * 8), MAX_SIDE)
    if value != nearest:
        raise argparse.ArgumentTypeError(f"{value} is not a multiple of 8 in 8 … {MAX_SIDE}; the nearest is {nearest}")
    return value


def pair(shown: str, least: int) -> Callable[[str], tuple[int, int]]:
    """Two whole numbers, apart by "x" or a comma."""

    def convert(text: str) -> tuple[int, int]:
        first, apart, second = text.lower().replace("x", ",").partition(",")
        if not apart or not (first.isdecimal() and second.isdecimal()) or min(int(first), int(second)) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not {shown}: two whole numbers of pixels, {least} or more")
        return int(first), int(second)

    return convert


def several(count: int | None, low: float, high: float, example: str) -> Callable[[str], tuple[float, ...]]:
    """Numbers apart by commas: `count` of them, or, where that is None, one or more."""
    each = number(low, high)

    def convert(text: str) -> tuple[float, ...]:
        words = text.split(",")
        if count is not None and len(words) != count:
            raise argparse.ArgumentTypeError(f"{text!r} is not {count} numbers apart by commas, such as {example}")
        return tuple(each(word) for word in words)

    return convert


def names(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(","))


def numbers(text: str) -> list[str]:
    """Class numbers apart by commas, as the prompts that they are."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of class numbers; write it as 207,88")
    return words


def falling(text: str) -> list[float]:
    """Numbers apart by commas, each below the one before it."""
    values = [number(0, math.inf)(word) for word in text.split(",")]
    if any(after >= value for value, after in pairwise(values)):
        raise argparse.ArgumentTypeError(f"{text} does not fall; each number must be below the one before it")
    return values


def named(find: Callable[[str], object]) -> Callable[[str], str]:
    """A name that `find` does not refuse."""

    def convert(text: str) -> str:
        try:
            find(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return text

    return convert


def seed(text: str) -> int:
    return -1 if text == "random" else whole(-1, MAX_SEED)(text)


def sides(text: str) -> tuple[int, ...]:
    words = text.split(",")
    if len(words) != 4:
        raise argparse.ArgumentTypeError(f"{text!r} is not four numbers of pixels, such as 0,0,64,0")
    return tuple(whole(0, MAX_SIDE)(word) for word in words)


def one_of(*names: str) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if text.lower() not in names:
            close = difflib.get_close_matches(text.lower(), names, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise argparse.ArgumentTypeError(f"there is no {text!r} here; there are {', '.join(names)}{hint}")
        return text.lower()

    return convert


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One sentence instead of argparse's usage block."""
        message = message.removeprefix("argument ")
        if message.startswith("unrecognized arguments: "):
            word = message.removeprefix("unrecognized arguments: ")
            close = difflib.get_close_matches(word.split()[0].split("=")[0], self._option_string_actions, 1)
            remedy = f"did you mean {close[0]}?" if close else "--help lists all options"
            if word[0] != "-":
                remedy = "a prompt goes in quotes after --prompt"
            message = f"{word}: no such option; {remedy}"
        elif message.endswith("expected one argument"):
            message += "; one that begins with a dash is written --option=-value"
        raise Usage(message)


Option = tuple[str, Any, str | None, str]  # names, type or True for a switch, metavar, help


WORDLESS = ("sample",)  # commands that take no prompt
WORDS: tuple[Option, ...] = (
    ("--prompt", str, "TEXT", "what to draw"),
    ("--negative-prompt --neg", str, "TEXT", "what to keep out of the picture"),
    ("--from-file", str, "FILE", "a prompt a line instead of --prompt; - is standard input"),
    ("--repeat", whole(1, 100_000), "N", "draw each prompt N times"),
)
SIZES: tuple[Option, ...] = (
    ("--original-size", pair("HxW", 1), "HxW", "the size SDXL is told the picture had (--H and --W)"),
    ("--crop", pair("T,L", 0), "T,L", "and where in it, top and left, this one was cut out (0,0)"),
)
CHURN: tuple[Option, ...] = (
    ("--s-churn", number(0, math.inf), "S", "noise added on the way, in samplers that can (0)"),
    ("--s-tmin", number(0, math.inf), "S", "at noise levels from this one (0)"),
    ("--s-tmax", number(0, math.inf), "S", "to this one (all)"),
    ("--s-noise", number(0, math.inf), "S", "a factor of that noise (1)"),
)
LEVELS: tuple[Option, ...] = (
    ("--sampler", named(find_sampler), "NAME", f'{", ".join(SAMPLERS)}, or as elsewhere: "DPM++ 2M Karras" (ddim)'),
    ("--spacing", named(find_spacing), "NAME", f"noise levels visited: {', '.join(SPACINGS)} (the sampler's own)"),
    ("--sigma-min", number(0, math.inf), "S", "noise level of the last step, for spacings over sigma such as karras"),
    ("--sigma-max", number(0, math.inf), "S", "and of the first"),
    ("--rho", number(0.1, 100), "R", "shape of karras (7) and polyexponential (1)"),
    ("--sigmas", falling, "S,S,…", "noise levels of your own, falling, instead of --steps and --spacing"),
    ("--timesteps", falling, "T,T,…", "the same as training timesteps, 999,850,…"),
)
ANY = (-math.inf, math.inf)
GUIDANCE: tuple[Option, ...] = (
    (
        "--scale",
        several(None, *ANY, "7.5"),
        "G[,G…]",
        "guidance scale (the model's; 1 is none); several take turns",
    ),
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
WEIGHTS: tuple[Option, ...] = (
    ("--ema", bool, None, "the averaged UNet or the plain one, where a file has both (plain)"),
    ("--variant", str, "NAME", "of a folder's files, such as fp16 (the plain ones)"),
    ("--parameterization", one_of("eps", "v", "x0"), "NAME", "what the UNet predicts: eps, v, x0 (found out)"),
    ("--vae", str, "FILE", "another file or folder to take the autoencoder from"),
    ("--text-encoder", str, "FILE", "another file or folder to take the text encoder from"),
    ("--refiner", str, "FILE", "a second model, which finishes what the first began"),
    ("--refine-at", number(0, 1), "A", f"the share of the noise levels after which it does ({REFINE_AT})"),
)


def _commands() -> dict[str, tuple[str, tuple[Option, ...]]]:
    """Command → what it does, and the options that it alone has."""
    init = ("--init-img", str, "FILE", "the picture to begin from")
    strength = ("--strength", number(0, 1), "S", "0 keeps the picture, 1 leaves nothing of it")
    explain = ("--explain", True, None, "tell tokens, noise levels, calls and memory, and draw nothing")
    classes = ("--classes", numbers, "N,N,…", "class numbers; --n-samples pictures of each (no class)")
    return {
        "txt2img": ("Draw pictures from a prompt.", (explain,)),
        "img2img": ("Draw pictures from a picture and a prompt.", (init, _defaulted(strength, "img2img"))),
        "inpaint": (
            "Paint part of a picture, or around it; every other pixel stays as it is, bit for bit.",
            (
                ("--init-img", str, "FILE", "the picture to paint in"),
                ("--mask", str, "FILE", "white is painted (else what is transparent in the picture)"),
                _defaulted(strength, "inpaint"),
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
                _defaulted(strength, "depth2img"),
            ),
        ),
        "upscale": ("Enlarge a picture with an upscaler.", _enlarging()),
        "variations": ("Draw variations of a picture with an unCLIP model.", _varying()),
        "sample": ("Draw pictures from a model that reads no text.", (classes,)),
    }


def _enlarging() -> tuple[Option, ...]:
    noise = ("--noise-level", whole(0, 999), "N", "noise on the picture first; more leaves more to be invented")
    tile = "--tile", whole(0, MAX_SIDE), "PX", "draw in tiles of this side (as the model was trained; 0 draws it whole)"
    return ("--init-img", str, "FILE", "the picture to enlarge"), _defaulted(noise, "upscale"), tile


def _varying() -> tuple[Option, ...]:
    noise = ("--noise-level", whole(0, 999), "N", "noise on its embedding; more lets pictures stray further")
    return ("--init-img", str, "FILE", "the picture to vary"), _defaulted(noise, "variations")


def _defaulted(option: Option, command: str) -> Option:
    """With the command's default in its help."""
    names, kind, metavar, text = option
    default = OWN_DEFAULTS[command][names.split()[0].strip("-").replace("-", "_")]
    return names, kind, metavar, f"{text} ({default:g})"


def make_parser(command: str) -> Parser:
    about, own = _commands()[command]
    parser = Parser(
        prog=f"{command}.py",
        description=f"{about} Options may be written with dashes or underscores.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=28),
        allow_abbrev=False,
    )

    def group(title: str, *options: Option) -> None:
        add = parser.add_argument_group(title).add_argument
        for names, kind, metavar, text in options:
            if kind is True:
                add(*names.split(), action="store_true", help=text)
            elif kind is bool:
                add(*names.split(), action=argparse.BooleanOptionalAction, help=text)
            else:
                add(*names.split(), type=kind, metavar=metavar, help=text)

    group(
        "what to draw",
        *(() if command in WORDLESS else WORDS),
        *own,
        ("--reproduce", str, "PNG", "draw a picture made here again, bit for bit, from what is written in it"),
    )
    group(
        "how",
        ("--steps --ddim-steps", whole(1, 1000), "N", "denoising steps, exactly (30)"),
        *LEVELS,
        ("--eta --ddim-eta", number(0, 1), "E", "fresh noise in each step, 0 … 1 (the sampler's own)"),
        *CHURN,
        ("--H --height", side, "PX", "height, a multiple of 8 (the model's own)"),
        ("--W --width", side, "PX", "width, a multiple of 8 (the model's own)"),
        *SIZES,
        ("--clip-skip", whole(1, 100), "N", "take the text tower's states N - 1 layers earlier (1: the family's own)"),
        ("--seed", seed, "N", "picture i has seed N + i (0); -1 or random draws one and prints it"),
        ("--variation-seed", seed, "N", "vary the picture of --seed towards this one's; picture i varies by N + i"),
        ("--variation-strength", number(0, 1), "V", "how far: 0 is the picture of --seed, 1 that of N"),
        ("--fixed-code", True, None, "every batch has the seeds of the first"),
    )
    group("guidance (docs/guidance.md)", *GUIDANCE)
    group(
        "how many",
        ("--n-samples", whole(1, 10_000), "N", "drawn together: N of the prompt, or N prompts of --from-file (1)"),
        ("--n-iter", whole(1, 100_000), "N", "do it all N times, with new seeds (1)"),
    )
    group(
        "model",
        ("--model --ckpt", str, "NAME|FILE", f"a model's name or its file ({own_model(command)})"),
        ("--config", str, "NAME|YAML", "the architecture, for a file that does not say"),
        *WEIGHTS,
        ("--plugin", str, "FILE", "a Python file to run first, which registers classes that the config names"),
        ("--C", whole(1, 1024), "N", "latent channels; checked against the model"),
        ("--f", whole(1, 1024), "N", "downsampling factor; checked against the model"),
        ("--device", one_of("auto", "cpu", "cuda", "mps"), "NAME", "auto, cpu, cuda, mps (auto)"),
        ("--precision", one_of(*PRECISIONS), "NAME", f"{', '.join(PRECISIONS)} (fp16 on a GPU, else full)"),
    )
    group(
        "output",
        ("--outdir", str, "FOLDER", "where pictures go; nothing there is overwritten (outputs)"),
        ("--n-rows", whole(1, 1000), "N", "pictures in a row of the grid"),
        ("--skip-grid", True, None, "no grid of all pictures; one picture never gets one"),
        ("--skip-save", True, None, "no single pictures, only the grid"),
        ("--save-intermediates", whole(1, 1000), "N", "also write the estimate every N steps, and a sheet of them"),
        ("--debug", True, None, "a traceback instead of one sentence"),
    )
    known = {name for option in own for name in option[0].split()}
    for name, words in FLAGS.items():
        parser.add_argument(name, action="store_const", const=words, dest="sampler", help=argparse.SUPPRESS)
    for name in (name for name in ELSEWHERE if name not in known):
        parser.add_argument(name, nargs="?", const=True, help=argparse.SUPPRESS)
    return parser
