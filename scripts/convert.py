"""Any checkpoint that loads -> one .safetensors file in another layout or dtype, with its config inside."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("input", help="a .safetensors or .ckpt file, or a diffusers folder")
    parser.add_argument("output", help="the .safetensors file to write; one that is there is not overwritten")
    parser.add_argument("--layout", choices=("ldm", "original"), default="ldm", help="names (default: %(default)s)")
    parser.add_argument("--dtype", choices=("fp16", "fp32"), help="of the numbers (default: as they are)")
    parser.add_argument("--config", help="a YAML file or the name of one (default: the file's own, or its family's)")
    parser.add_argument(
        "--ema", action=argparse.BooleanOptionalAction, help="which UNet, if there are two (default: the plain one)"
    )
    options = parser.parse_args(argv)
    if Path(options.output).suffix != ".safetensors" or Path(options.output).exists():
        what = "is there already" if Path(options.output).exists() else "is not a .safetensors file"
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
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
