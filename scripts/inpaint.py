"""Paint part of a picture: python scripts/inpaint.py --init-img in.png --mask mask.png --prompt "a red cube"."""

from __future__ import annotations

import sys

from _cli import main

if __name__ == "__main__":
    sys.exit(main("inpaint"))
