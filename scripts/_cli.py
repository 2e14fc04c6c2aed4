"""The command line of all that draws: every check that needs neither torch nor a model, and the exit status.

`main` returns the exit status: 0, 1 for a failure, 2 for a mistake of the user, 130 when stopped.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import _installed  # noqa: F401
from _ending import ended, full_disk
from _kinds import MAX_SEED, check_new_folder
from _options import COMMANDS, OWN_DEFAULTS, PARTS, PICTURES, WITH_TORCH, WORDLESS, own_model
from _other_words import ELSEWHERE
from _parser import Usage, as_typed, make_parser
from _ranks import launched
from _settings_file import with_settings

from ldm.names import find_sampler, find_spacing

DEFAULTS: dict[str, Any] = {
    "repeat": 1,
    "seed": 0,
    "n_samples": 1,
    "n_iter": 1,
    "device": "auto",
    "backend": "torch",
    "outdir": "outputs",
}
MAX_PROMPTS = 16 << 20  # bytes of a file of prompts
WITH_REPRODUCE = {"model", "config", "plugin", "device", "offload", *PICTURES, *PARTS, "outdir", "debug", "reproduce"}
REQUIRED = {
    "img2img": ("init_img",),
    "inpaint": ("init_img",),
    "upscale": ("init_img",),
    "variations": ("init_img",),
}
PROMPTLESS = ("upscale", "variations")  # which may go without a prompt
NEEDED = {
    "init_img": "name the picture to begin from",
    "depth": "name a picture of the depth, brighter is nearer, or one with --init-img whose depth is to be estimated",
}


def main(command: str, argv: Sequence[str] | None = None) -> int:
    """Run `txt2img`, `img2img`, … with argv (by default the process's own) and say how it went."""
    words = sys.argv[1:] if argv is None else list(argv)
    return ended(lambda: _heard(command, words), words)


def _heard(command: str, argv: Sequence[str]) -> int:
    """Of several processes the first speaks for all."""
    if launched()[0] == 0:
        return _run(command, argv)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        return _run(command, argv)


def _run(command: str, argv: Sequence[str]) -> int:
    try:
        options = parse(command, argv)
        if getattr(options, "explain", False):
            from _explain import explain

            return explain(options)
        if options.profile is not None:
            os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # torch's profiler would tell of its own ways, on stderr
        from _draw import draw  # torch from here on

        return draw(options)
    except BrokenPipeError:
        raise
    except Exception as error:
        if "--debug" in argv:
            raise
        mistake = isinstance(error, ValueError)
        full = full_disk(error, "then --resume draws the rest")
        failure = f"failed: {full or error or type(error).__name__} (--debug shows where)"
        said = f"error: {as_typed(str(error), command)}" if mistake else failure
        print(*map(_short, said.splitlines()), sep="\n", file=sys.stderr)
        return 2 if mistake else 1


def _short(line: str) -> str:
    """Without the middle of a value that fills pages."""
    return line if len(line) <= 900 else f"{line[:500]} … {line[-300:]}"


def parse(command: str, argv: Sequence[str]) -> argparse.Namespace:
    """Options by their main names, defaults filled in, values checked. Usage for anything wrong."""
    parser = make_parser(command)
    options = parser.parse_args(with_settings(parser, [_dashed(word) for word in argv]))
    typed = {name for name, value in vars(options).items() if value is not parser.get_default(name)}
    options.command = command
    own = {name for option in COMMANDS[command][1] for name in option[0].split()}
    for name, other in ELSEWHERE.items():
        if name not in own and name.strip("-").replace("-", "_") in typed:
            raise Usage(f"{name}: scripts/{other}.py takes it; this is scripts/{command}.py")
    if command == "depth2img" and "strength" in typed and "init_img" not in typed:
        raise Usage("--strength is for a picture to begin from; name one with --init-img, or leave it out")
    if options.reproduce is not None:
        if extra := sorted(typed - WITH_REPRODUCE):
            raise Usage(f"--reproduce takes everything from the picture; leave out --{extra[0].replace('_', '-')}")
    else:
        for name, value in (DEFAULTS | OWN_DEFAULTS[command] | {"model": own_model(command)}).items():
            if getattr(options, name, 0) is None:
                setattr(options, name, value)
        _check(options)
    if options.plugin is None:  # which may have more
        _check_names(options)
    for option in ("config", "model", *PARTS):
        _check_model_path(option, getattr(options, option))
    return options


def _dashed(word: str) -> str:
    """--ddim_steps=5 as --ddim-steps=5: underscores are dashes in an option's name, and left alone elsewhere."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if re.fullmatch(r"--\w[\w-]*", name) else word


def _check(options: argparse.Namespace) -> None:
    """What two options, or an option and a file, must fulfil together; draws the seed; reads the prompts."""
    if options.command in PROMPTLESS and options.prompt is None and options.from_file is None:
        options.prompt = ""
    if options.command in WORDLESS:
        options.prompts = [number for number in options.classes or [""] for _ in range(options.n_samples)]
        options.negative_prompt, options.repeat = None, 1
    elif (options.prompt is None) == (options.from_file is None):
        both = ", not both" if options.prompt is not None else ""
        raise Usage(f'give --prompt "what to draw", or --from-file with a prompt a line{both}')
    required = ("depth",) if options.command == "depth2img" and options.init_img is None else ()
    for name in REQUIRED.get(options.command, required):
        if getattr(options, name) is None:
            raise Usage(f"--{name.replace('_', '-')}: {NEEDED[name]}")
    if options.command == "upscale" and (options.H is not None or options.W is not None):
        raise Usage("--H and --W: an upscaler draws the picture's size times its factor; leave them out")
    if options.exact_tiles and options.command == "upscale":
        raise Usage("--exact-tiles: the picture itself is drawn in tiles here; leave it out")
    if options.exact_tiles and options.tile is None:
        raise Usage("--exact-tiles: nothing is cut into tiles; give --tile a size, or let it stand alone, too")
    if getattr(options, "from_file", None) == "-" and launched()[1] > 1:
        raise Usage("--from-file -: standard input has one reader, and here are several processes; name a file")
    if options.save_intermediates and options.skip_save:
        raise Usage("--save-intermediates has nowhere to write with --skip-save; leave one out")
    if options.command not in WORDLESS:
        one = options.from_file is None
        options.prompts = [options.prompt] * options.n_samples if one else _read_prompts(options.from_file)
    count = len(options.prompts) * options.repeat * options.n_iter
    if options.resume and -1 in (options.seed, options.variation_seed):
        raise Usage("--resume: a random seed is another one than that of the job; give the one that was printed then")
    if options.seed == -1:
        options.seed = secrets.randbelow(MAX_SEED + 2 - min(count, MAX_SEED))
        print(f"seed: {options.seed}")
    if (options.variation_seed is None) != (options.variation_strength is None):
        raise Usage("--variation-seed and --variation-strength need each other; give both, or none")
    if options.variation_seed == -1:
        options.variation_seed = secrets.randbelow(MAX_SEED + 2 - min(count, MAX_SEED))
        print(f"variation seed: {options.variation_seed}")
    counted = "variation_seed" if options.variation_strength else "seed"
    if getattr(options, counted) + count - 1 > MAX_SEED:
        first, name = getattr(options, counted), counted.replace("_", "-")
        raise Usage(f"--{name}: {first} and the {count - 1} after it leave 0 … {MAX_SEED}; begin lower")
    if options.scale is not None and len(options.scale) > count:
        pictures = f"{count} picture{'s' * (count > 1)}"
        raise Usage(f"--scale: {len(options.scale)} scales for {pictures}; --n-iter or --n-samples draws more")
    if options.autoguide_scale is not None and options.autoguide is None:
        raise Usage("--autoguide-scale: there is no model to lead away from; name one with --autoguide")
    if options.pag_layers is not None and not options.pag:
        raise Usage("--pag-layers: nothing is perturbed; give --pag a scale, such as 3")
    if options.refine_at is not None and options.refiner is None:
        raise Usage("--refine-at: there is no refiner that could begin; name one with --refiner")
    if options.profile is not None:
        check_new_folder("--profile", options.profile)
    if options.backend != "torch":
        _check_backend(options)
    for name in PICTURES:
        if getattr(options, name, None) is not None:
            _check_picture(name, getattr(options, name))


def _check_names(options: argparse.Namespace) -> None:
    for name, find in (("sampler", find_sampler), ("spacing", find_spacing)):
        try:
            if (text := getattr(options, name)) is not None:
                find(text)
        except ValueError as error:
            raise Usage(f"--{name}: {error}") from None


def _check_backend(options: argparse.Namespace) -> None:
    """What graphs cannot: the rest is none of their business."""
    for name, remedy in WITH_TORCH.items():
        if name == "tile" and options.command == "upscale":  # its own, of the latent
            continue
        if getattr(options, name, None) not in (None, False, 0, "auto", *((1,) if name == "clip_skip" else ())):
            raise Usage(f"--{name.replace('_', '-')} needs --backend torch: {remedy}")
    if options.precision not in (None, "full"):
        raise Usage(f"--precision {options.precision} needs --backend torch: ONNX files are in float32; leave it out")


def _check_picture(name: str, file: str) -> None:
    from ldm.images import image_size

    try:
        image_size(file)
    except ValueError as error:
        raise Usage(f"--{name.replace('_', '-')} {error}") from error


def _read_prompts(path: str) -> list[str]:
    from ldm.files import regular_size

    try:
        size = 0 if path == "-" else regular_size(path)
        text = sys.stdin.read(MAX_PROMPTS + 1) if path == "-" else ""
        if max(size, len(text)) > MAX_PROMPTS:
            raise Usage(f"--from-file {path}: more than {MAX_PROMPTS:,} bytes of prompts; split it into several files")
        text = text if path == "-" else Path(path).read_bytes().decode("utf-8-sig")
    except Usage:
        raise
    except UnicodeDecodeError as error:
        raise Usage(f"--from-file {path}: byte {error.start} is not UTF-8 text; save it as UTF-8") from error
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise Usage(f"--from-file {path}: cannot be read ({why}); name a text file") from error
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")  # no others: a prompt may have U+2028 in it
    prompts = [line.strip() for line in lines if line.replace("\0", " ").strip()]
    if not prompts:
        raise Usage(f"--from-file {path}: there is no prompt in it; write one a line")
    return prompts


def _check_model_path(option: str, value: str | None) -> None:
    """Names (scenes, sd-v1) are left to ldm.load; what looks like a path must be there."""
    if value == "":
        raise Usage(f"--{option.replace('_', '-')} is empty; give the path of a file, or a name")
    is_path = value is not None and (Path(value).suffix != "" or "/" in value or "\\" in value)
    if is_path and not Path(str(value)).exists():
        raise Usage(f"--{option.replace('_', '-')} {value}: there is no such file; give the path of one, or a name")
