"""How true a model's pictures of `scenes` are: numbers for `scripts/evaluate_scenes.py`."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import islice

import torch
from PIL import Image
from torch import Tensor

from ldm.data.captions import caption
from ldm.data.datasets import as_bytes, as_pixels
from ldm.data.raycast import render
from ldm.data.scenes import Scene, evaluation_scenes
from ldm.images import to_tensor
from ldm.metrics.judge import Judge, accuracy
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.pipeline import txt2img


def fresh_prompts(number: int, seed: int) -> tuple[list[Scene], list[str]]:
    """Scenes with combinations of attributes that training never saw, and a complete caption of each."""
    scenes = list(islice(evaluation_scenes(seed), number))
    return scenes, [caption(scene, random.Random(f"prompt {seed} {i}")) for i, scene in enumerate(scenes)]


def draw(
    model: LatentDiffusion, prompts: Sequence[str], seed: int, done: Callable[[], object], **options: object
) -> list[Image.Image]:
    """A picture of each prompt, picture i with seed + i; `done` is called after each."""
    pictures = []
    for result in txt2img(model, prompts, seed=seed, **options):  # type: ignore[arg-type]
        pictures.append(result.image)
        done()
    return pictures


@torch.no_grad()
def psnr(model: LatentDiffusion, pictures: Tensor) -> float:
    """Peak signal-to-noise ratio, in dB, of pictures (N, 3, H, W) in [-1, 1] after the autoencoder's round trip,
    rounded to 8 bits as a user would see them; the mean over the pictures."""
    values = []
    for part in pictures.split(16):
        encoded = model.encode(part.to(model.device))
        remade = model.decode(encoded if isinstance(encoded, Tensor) else encoded.mode()).float().cpu()
        remade = as_pixels(as_bytes((remade.clamp(-1, 1) + 1) / 2))
        values.append(10 * torch.log10(4 / (remade - part).square().mean(dim=(1, 2, 3))))
    return torch.cat(values).mean().item()


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Between Gaussians fitted to two sets of features, (N, D) each: |μa − μb|² + tr(A + B − 2 (A B)^½)
    (Heusel et al. 2017, arXiv:1706.08500, eq. 6)."""
    a, b = a.double(), b.double()
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    root = torch.linalg.eigvals(cov_a @ cov_b).real.clamp(min=0).sqrt().sum()
    return ((a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * root).item()


def evaluate(
    model: LatentDiffusion, judge: Judge, number: int, seed: int, done: Callable[[], object], **options: object
) -> tuple[dict[str, dict[str, float]], list[Image.Image], list[str]]:
    """({"generated": shares, "renders": shares, "quality": figures}, the pictures, their prompts)."""
    scenes, prompts = fresh_prompts(number, seed)
    pictures = draw(model, prompts, seed, done, **options)
    return judged(model, judge, scenes, pictures), pictures, prompts


def judged(
    model: LatentDiffusion, judge: Judge, scenes: Sequence[Scene], pictures: Sequence[Image.Image]
) -> dict[str, dict[str, float]]:
    """What the judge sees in pictures that shall show the scenes, and in renders of those: `evaluate`'s report."""
    renders = as_pixels(torch.stack([as_bytes(render(scene)) for scene in scenes]))
    drawn = torch.cat([to_tensor(picture) for picture in pictures])  # (N, 3, 128, 128)
    return {
        "generated": accuracy(scenes, judge.look(drawn)),
        "renders": accuracy(scenes, judge.look(renders)),
        "quality": {
            "autoencoder PSNR, dB": psnr(model, renders),
            "Fréchet distance": frechet_distance(judge.embed(drawn), judge.embed(renders)),
        },
    }
