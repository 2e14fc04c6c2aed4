"""Teach a text tower to read captions of scenes."""

from _train import main

if __name__ == "__main__":
    raise SystemExit(main(__doc__, "configs/train/text-encoder.yaml", "runs/text-encoder"))
