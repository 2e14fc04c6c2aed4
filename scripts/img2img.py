"""Pictures from a picture and a prompt: python scripts/img2img.py --init-img in.png --prompt "at night"."""

from __future__ import annotations

import sys

from _cli import main

if __name__ == "__main__":
    sys.exit(main("img2img"))
