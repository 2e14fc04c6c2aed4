"""Variations of a picture: python scripts/variations.py --model sd21-unclip-h.ckpt --init-img in.png."""

from __future__ import annotations

import sys

from _cli import main

if __name__ == "__main__":
    sys.exit(main("variations"))
