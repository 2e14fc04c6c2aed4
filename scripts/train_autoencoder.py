"""Train an autoencoder on crops of pictures."""

from _train import main

if __name__ == "__main__":
    raise SystemExit(main(__doc__, "configs/train/autoencoder.yaml", "runs/autoencoder"))
