"""Imported first by all that is run: where `ldm`, or a package of its extras, cannot be imported, a sentence says so
and what to install."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = {"diffusers", "hypothesis", "matplotlib", "onnx", "onnxruntime", "onnxscript", "pytest", "transformers"}

if importlib.util.find_spec("ldm") is None:
    print(f"error: ldm is not installed; run pip install -e '{ROOT}'", file=sys.stderr)
    raise SystemExit(2)


def _told(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    name = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if name in EXTRAS:
        print(f"failed: {name} is not installed; run pip install -e '{ROOT}[test]'", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _told
