"""What can be trained, each as one config tree: data, model, recipe.

An experiment says what a batch is, what its loss is, what to look at (`preview`) and what to keep (`result`);
`loop.Trainer` does the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from ldm.config import register
from ldm.data.datasets import Dataset, as_pixels
from ldm.images import grid, to_images
from ldm.models.autoencoder import AutoencoderKL
from ldm.training.loop import Recipe, seeded, shuffled
from ldm.training.losses import autoencoder_loss
from ldm.training.parts import fill_part

Batch = Any


class Experiment(Protocol):
    recipe: Recipe
    trained: nn.Module  # what the optimizer moves and whose moving average is kept

    def prepare(self, folder: Path) -> None:
        """What is done once, before the first step and on the training device; `folder` is the run's."""

    def batch(self, step: int) -> Batch:
        """The data of one step; a pure function of the step."""

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor: ...

    def result(self, trained: nn.Module) -> nn.Module:
        """What to keep, given `trained` or its moving average."""

    def preview(self, trained: nn.Module) -> Image.Image | str:
        """A picture or a line that tells how far the training is."""


@register("AutoencoderExperiment")
class AutoencoderExperiment:
    """Crops, encoded and decoded. After the last step the latents' scale is measured, not guessed.

    start: an autoencoder (its file) to go on from; it brings its own config. train_encoder: without it the decoder
    alone learns, so that latents, their scale and every denoiser trained on them stay as they are.
    crop: side in pixels. tries: random crops of a picture of which the one with most detail is taken.
    """

    def __init__(
        self,
        model: AutoencoderKL,
        data: Dataset,
        recipe: Recipe,
        start: str | None = None,
        train_encoder: bool = True,
        crop: int = 64,
        tries: int = 1,
        kl_weight: float = 2e-4,
        l1_weight: float = 0.05,
        edge_weight: float = 0.1,
    ) -> None:
        if crop % model.downsample_factor:
            raise ValueError(f"crop {crop} is not a multiple of {model.downsample_factor}, as this autoencoder needs")
        if start is not None:
            fill_part(model, start)
        for part in (model.encoder, model.quant_conv):
            part.requires_grad_(train_encoder)
        self.trained, self.data, self.recipe, self.crop, self.tries = model, data, recipe, crop, tries
        self.train_encoder = train_encoder
        self.weights = {"kl_weight": kl_weight, "l1_weight": l1_weight, "edge_weight": edge_weight}
        self.indices = shuffled(len(data), recipe.batch_size, recipe.seed)

    def prepare(self, folder: Path) -> None:
        self.device = next(self.trained.parameters()).device

    def batch(self, step: int) -> Tensor:
        generator = seeded("crops", self.recipe.seed, step)
        pictures = [self.data.image(index) for index in self.indices(step)]
        crops = [max((self._crop(p, generator) for _ in range(self.tries)), key=_detail) for p in pictures]
        return as_pixels(torch.stack(crops)).to(self.device, memory_format=torch.channels_last)

    def _crop(self, picture: Tensor, generator: torch.Generator) -> Tensor:
        if min(picture.shape[1:]) < self.crop:
            raise ValueError(f"crop {self.crop} does not fit into a picture of {tuple(picture.shape[1:])}; lower it")
        top, left = (int(torch.randint(side - self.crop + 1, (1,), generator=generator)) for side in picture.shape[1:])
        return picture[:, top : top + self.crop, left : left + self.crop]

    def loss(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        return autoencoder_loss(self.trained, batch, generator, **self.weights)

    @torch.no_grad()
    def result(self, trained: AutoencoderKL) -> AutoencoderKL:
        if not self.train_encoder:
            return trained
        pictures = as_pixels(torch.stack([self.data.image(i) for i in range(min(256, len(self.data)))]))
        latents = torch.cat([trained.posterior(part.to(self.device)).mean for part in pictures.split(32)])
        trained.shift_factor = round(latents.mean().item(), 4)
        trained.scaling_factor = round(1 / latents.std().item(), 4)
        return trained

    @torch.no_grad()
    def preview(self, trained: AutoencoderKL) -> Image.Image:
        """Pictures above, what the autoencoder makes of them below."""
        pictures = as_pixels(torch.stack([self.data.image(i) for i in range(min(8, len(self.data)))])).to(self.device)
        remade = trained.decode(trained.encode(pictures).mode())
        return grid([*to_images(pictures), *to_images(remade)], columns=len(pictures))


def _detail(picture: Tensor) -> float:
    """Mean difference of neighbouring pixels."""
    values = picture.float()
    return (values.diff(dim=1).abs().mean() + values.diff(dim=2).abs().mean()).item()
