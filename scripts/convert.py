"""Any checkpoint that loads -> one .safetensors file with its config inside, or a folder that diffusers loads."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Sequence
from pathlib import Path

import _installed  # noqa: F401
from _ending import ended

THERE = "is there already; give another name"


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
    fault = _fault(Path(options.output), options.layout)
    if fault:
        print(f"error: {options.output} {fault}", file=sys.stderr)
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
    except ValueError as error:
        fault = str(error)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        fault = f"{options.output} {THERE}"  # made since `_fault` looked
    else:
        return 0
    print(f"error: {fault}", file=sys.stderr)
    return 2


def _fault(out: Path, layout: str) -> str:
    """Why nothing can be written there, and what to do; "" if something can."""
    if out.exists():
        return THERE
    if layout == "diffusers" and out.suffix in (".safetensors", ".ckpt"):
        return "is not a folder, which diffusers reads; give another name"
    if layout != "diffusers" and out.suffix != ".safetensors":
        return "is not a .safetensors file; give another name"
    if not out.parent.is_dir():
        return f"cannot be written: there is no folder {out.parent}; make it first"
    from ldm.files import check_writable

    check_writable(out)
    return ""


if __name__ == "__main__":
    raise SystemExit(ended(main))
