"""Pictures of a given depth: python scripts/depth2img.py --depth map.png --prompt "a street" --model FILE."""

from __future__ import annotations

import sys

from _cli import main

if __name__ == "__main__":
    sys.exit(main("depth2img"))
