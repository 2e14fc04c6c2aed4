"""Imported first by all that is run: where `ldm` cannot be imported, a sentence says so before anything else fails."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("ldm") is None:
    print(f"error: ldm is not installed; run pip install -e '{Path(__file__).resolve().parents[1]}'", file=sys.stderr)
    raise SystemExit(2)
