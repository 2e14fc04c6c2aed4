"""Train a latent diffusion model on pictures with captions."""

from _train import main

if __name__ == "__main__":
    raise SystemExit(main(__doc__, "configs/train/scenes.yaml", "runs/scenes"))
