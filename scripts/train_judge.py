"""Train the judge of generated scenes on rendered ones."""

from _train import main

if __name__ == "__main__":
    raise SystemExit(main(__doc__, "configs/train/judge.yaml", "runs/judge"))
