"""A model -> a folder of ONNX files: python scripts/export_onnx.py MODEL --out FOLDER. Then draw with --backend onnx.

Each graph is compared with torch for another batch and size than those it was traced with. See docs/export.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import _installed  # noqa: F401
from _ending import ended
from _kinds import check_new_folder

MOST = 1e-4  # |onnxruntime - torch| / |torch| that a graph may have
NEEDED = ("onnx", "onnxscript", "onnxruntime")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model's name, its file, or a diffusers folder")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="to be made; what is there is not overwritten")
    parser.add_argument("--config", help="a YAML file or the name of one (default: the file's own, or its family's)")
    parser.add_argument("--ema", action=argparse.BooleanOptionalAction, help="which UNet, if there are two")
    parser.add_argument("--variant", help="which files of a folder, such as fp16 (default: the plain ones)")
    parser.add_argument("--parameterization", choices=("eps", "v", "x0"), help="if not what the config says")
    parser.add_argument("--vae", metavar="FILE", help="another file or folder to take the autoencoder from")
    parser.add_argument("--text-encoder", metavar="FILE", help="another to take the text encoder from")
    parser.add_argument("--debug", action="store_true", help="a traceback instead of one sentence")
    options = parser.parse_args(argv)
    try:
        _check(options)
        return write_graphs(options)
    except BrokenPipeError:
        raise
    except Exception as error:
        if options.debug:
            raise
        mistake = isinstance(error, ValueError)
        print(f"{'error' if mistake else 'failed'}: {error or type(error).__name__}", file=sys.stderr)
        return 2 if mistake else 1


def _check(options: argparse.Namespace) -> None:
    check_new_folder("--out", options.out)
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise ValueError(f"exporting needs {', '.join(missing)}; pip install {' '.join(missing)}")


def write_graphs(options: argparse.Namespace) -> int:
    from ldm.checkpoint import onnx_export
    from ldm.checkpoint.load import load, skeleton, weights_path
    from ldm.files import atomic_folder

    start = time.perf_counter()
    chosen = {"config": options.config, "use_ema": options.ema, "variant": options.variant}
    chosen |= {"parameterization": options.parameterization}
    parts = {"autoencoder": options.vae, "text_encoder": options.text_encoder}
    tree = skeleton(weights_path(options.model), **chosen, others=parts).tree
    model = load(options.model, **chosen, **parts, note=print)
    print(f"| {'graph':17} | {'nodes':>5} | {'MB':>7} | {'max error':>9} | {'relative':>8} |")
    print(f"| {'-' * 17} | ----: | ------: | --------: | -------: |", flush=True)
    with atomic_folder(Path(options.out)) as folder:
        for row in onnx_export.export(model, tree, folder):
            numbers = f"{row.nodes:5} | {row.bytes / 1e6:7.1f} | {row.maximum:9.1e} | {row.relative:8.1e}"
            print(f"| {row.file:17} | {numbers} |", flush=True)
            if not row.relative <= MOST:  # NaN is no agreement either
                raise RuntimeError(
                    f"{row.file} differs from torch by {row.relative:.1e}, more than {MOST}; not written"
                )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"{options.out}: {time.perf_counter() - start:.0f} s, peak memory {peak / 1e9:.1f} GB")
    return 0


if __name__ == "__main__":
    raise SystemExit(ended(main))
