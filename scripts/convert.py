"""Any checkpoint that loads -> one .safetensors file with its config inside, or a folder that diffusers loads."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import _installed  # noqa: F401
from _ending import ended


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("input", help="a .safetensors or .ckpt file, or a diffusers folder")
    parser.add_argument("output", help="the .safetensors file or the folder to write; what is there is not overwritten")
    parser.add_argument(
        "--layout", choices=("ldm", "original", "diffusers"), default="ldm", help="names (default: %(default)s)"
    )
    parser.add_argument("--dtype", choices=("fp16", "fp32"), help="of the numbers (default: as they are)")
    parser.add_argument("--config", help="a YAML file or the name of one (default: the file's own, or its family's)")
    parser.add_argument(
        "--ema",
        action=argparse.BooleanOptionalAction,
        help="which UNet, if there are two (default: the plain one, and --layout original keeps both)",
    )
    parser.add_argument("--variant", help="which files of a folder, e.g. fp16 (default: the plain ones)")
    parser.add_argument("--parameterization", choices=("eps", "v", "x0"), help="if not what the config says")
    parser.add_argument(
        "--no-probe",
        dest="probe",
        action="store_false",
        help="take an SD 2 network that nothing is said of for one of eps; don't ask it (seconds, and memory for the "
        "model)",
    )
    options = parser.parse_args(argv)
    suffix, wanted = Path(options.output).suffix, "" if options.layout == "diffusers" else ".safetensors"
    if Path(options.output).exists() or (suffix != wanted if wanted else suffix in (".safetensors", ".ckpt")):
        kind = "a .safetensors file" if wanted else "a folder, which diffusers reads"
        what = "is there already" if Path(options.output).exists() else f"is not {kind}"
        print(f"error: {options.output} {what}; give another name", file=sys.stderr)
        return 2
    import torch

    from ldm.checkpoint.convert import convert

    dtype = {None: None, "fp16": torch.float16, "fp32": torch.float32}[options.dtype]
    try:
        convert(
            options.input,
            options.output,
            layout=options.layout,
            dtype=dtype,
            config=options.config,
            use_ema=options.ema,
            variant=options.variant,
            parameterization=options.parameterization,
            ask=options.probe,
            note=print,
        )
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    return 0


if __name__ == "__main__":
    raise SystemExit(ended(main))
