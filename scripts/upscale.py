"""A picture enlarged: python scripts/upscale.py --model x4-upscaler-ema.safetensors --init-img in.png."""

from __future__ import annotations

import sys

from _cli import main

if __name__ == "__main__":
    sys.exit(main("upscale"))
