"""Pictures from a prompt: python scripts/txt2img.py --prompt "a large red sphere". All options: --help."""

from __future__ import annotations

import sys

from _cli import main

if __name__ == "__main__":
    sys.exit(main("txt2img"))
