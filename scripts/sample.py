"""Pictures from a model that reads no text: python scripts/sample.py --model FILE --classes 207,88. More: --help."""

from __future__ import annotations

import sys

from _cli import main

if __name__ == "__main__":
    sys.exit(main("sample"))
