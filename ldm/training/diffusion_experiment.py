"""The training of a denoiser of latents, with or without its text tower."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from ldm.checkpoint.load import SHIPPED
from ldm.checkpoint.read import read
from ldm.checkpoint.write import write
from ldm.config import register
from ldm.data.captions import caption
from ldm.data.datasets import Dataset, Scenes, as_pixels
from ldm.data.scenes import Scene
from ldm.images import grid
from ldm.models.autoencoder import Autoencoder
from ldm.models.diffusion.denoiser import Conditioning
from ldm.models.encoders import TextEncoder
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.modules.unet import UNet
from ldm.pipeline import txt2img
from ldm.training.grounding import Grounding
from ldm.training.hinting import Hint, show_examples
from ldm.training.loop import Recipe, shuffled
from ldm.training.losses import denoising_loss
from ldm.training.parts import fill_part, fill_unet


class Captioned(NamedTuple):
    z: Tensor  # (B, C, h, w)
    tokens: Tensor  # (B, L)
    scenes: Sequence[Scene]  # what was drawn, where the data knows it
    pictures: Tensor | None = None  # (B, 3, H, W) in [-1, 1], where a hint is made of them
    mistakes: Tensor | None = None  # (M, C, h, w): of the last M scenes, with something wrong


@register("DiffusionExperiment")
class DiffusionExperiment:
    """A denoiser of latents, and the text tower that conditions it, on a frozen autoencoder.

    start: a model (its name or file) to go on from. autoencoder, text_encoder: files of parts already trained, or of
    models that hold them. Each brings its own config, which replaces that of `model` or its part. unet: the file of a
    model whose UNet to begin with, which may be shown less than this one and attend elsewhere (`fill_unet`).
    caption_dropout: share of empty captions, for classifier-free guidance. train_text: move the tower too. grounding:
    weight of `Grounding`; mending: share of a batch that is to mend a mistake (`denoising_loss`); both for Scenes only.
    hint: what the denoiser is shown besides. borrow: leave parts that a shipped model has out of the result's file.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        data: Dataset,
        recipe: Recipe,
        start: str | None = None,
        autoencoder: str | None = None,
        text_encoder: str | None = None,
        unet: str | None = None,
        caption_dropout: float = 0.1,
        train_text: bool = True,
        grounding: float = 0.0,
        mending: float = 0.0,
        hint: Hint | None = None,
        borrow: bool = False,
    ) -> None:
        for name, value in (("grounding", grounding), ("mending", mending)):
            if value and not isinstance(data, Scenes):
                raise ValueError(f"{name} {value} needs data that knows what it shows: use Scenes, or {name} 0")
        if not 0 <= mending < 1:
            raise ValueError(f"mending is {mending}; give the share of a batch, 0 or more and less than 1")
        self.model, self.data, self.recipe = model, data, recipe
        self.caption_dropout, self.grounding = caption_dropout, grounding
        self.mended = round(mending * recipe.batch_size)  # how many of a batch
        self.hint = hint
        if start is not None:
            fill_part(model, start)
        if unet is not None:
            fill_unet(model.unet, unet)
        for part, file in (("autoencoder", autoencoder), ("text_encoder", text_encoder)):
            if file is not None:
                fill_part(getattr(model, part), file, part)
        frozen = {"autoencoder": autoencoder, "text_encoder": None if train_text else text_encoder}
        self.borrows = {part: file for part, file in frozen.items() if borrow and file in SHIPPED}
        model.autoencoder.requires_grad_(False)
        model.text_encoder.requires_grad_(train_text)
        parts: dict[str, nn.Module] = {"unet": model.unet, "text_encoder": model.text_encoder}
        if grounding:
            assert isinstance(model.unet, UNet)
            parts["grounding"] = Grounding(model.unet)
        self.trained = nn.ModuleDict(parts)
        self.indices = shuffled(len(data), recipe.batch_size, recipe.seed)

    @torch.no_grad()
    def prepare(self, folder: Path) -> None:
        """Encode every picture once, the mode of its distribution in float16, and keep that for the next start."""
        self.latents = self._kept(folder / "latents.safetensors", self.data.image)  # (N, C, h, w)
        if self.mended:
            assert isinstance(self.data, Scenes)
            self.mistakes = self._kept(folder / "mistakes.safetensors", self.data.mistaken)  # (N, C, h, w)

    def _kept(self, path: Path, picture: Callable[[int], Tensor]) -> Tensor:
        made_of = self._fingerprint(picture)
        if not path.exists() or read(path).metadata.get("made_of") != made_of:
            z = torch.cat([self._encoded(i, picture) for i in range(0, len(self.data), 32)])
            write(path, {"z": z}, {"made_of": made_of})
        return read(path).tensors["z"]

    def _fingerprint(self, picture: Callable[[int], Tensor]) -> str:
        """Of what latents are made of: the autoencoder, and the pictures, of which the first and last must do."""
        autoencoder, number = self.model.autoencoder, len(self.data)
        digest = hashlib.blake2b(f"{autoencoder.scaling_factor} {autoencoder.shift_factor} {number}".encode())
        for tensor in (*autoencoder.state_dict().values(), picture(0), picture(number - 1)):
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _encoded(self, start: int, picture: Callable[[int], Tensor]) -> Tensor:
        numbers = range(start, min(start + 32, len(self.data)))
        pictures = as_pixels(torch.stack([picture(i) for i in numbers]))
        encoded = self.model.encode(pictures.to(self.model.device, memory_format=torch.channels_last))
        return (encoded if isinstance(encoded, Tensor) else encoded.mode()).half().cpu().contiguous()

    def batch(self, step: int) -> Captioned:
        chosen, rng = self.indices(step), random.Random(f"captions {self.recipe.seed} {step}")
        plain, mended = chosen[: len(chosen) - self.mended], chosen[len(chosen) - self.mended :]
        captions = ["" if rng.random() < self.caption_dropout else self.data.caption(i, rng) for i in plain]
        scenes, mistakes = [], None
        if isinstance(self.data, Scenes):
            scenes = [self.data.scenes[i] for i in chosen]
            captions += [caption(scene, rng) for scene in scenes[len(plain) :]]  # complete: no mistake goes unsaid
            mistakes = self.mistakes[mended].float() if mended else None
        pictures = as_pixels(torch.stack([self.data.image(i) for i in chosen])) if self.hint is not None else None
        tokens = self.model.text_encoder.tokenize(captions)
        return Captioned(self.latents[chosen].float(), tokens, scenes, pictures, mistakes)

    def loss(self, batch: Captioned, generator: torch.Generator) -> Tensor:
        model, device = self.model, self.model.device
        cond = Conditioning(model.text_encoder(batch.tokens.to(device)).states)
        if self.hint is not None and batch.pictures is not None:
            cond = self.hint(model, cond, batch.pictures.to(device), generator)
        mistakes = None if batch.mistakes is None else batch.mistakes.to(device)
        loss = denoising_loss(model.denoiser, batch.z.to(device), cond, generator, mistakes)
        grounding = self.trained["grounding"] if self.grounding else None
        return loss + self.grounding * grounding.loss(batch.scenes) if isinstance(grounding, Grounding) else loss

    def result(self, trained: nn.ModuleDict) -> LatentDiffusion:
        old, unet, text_encoder = self.model, trained["unet"], trained["text_encoder"]
        assert isinstance(text_encoder, TextEncoder) and isinstance(old.autoencoder, Autoencoder)
        return LatentDiffusion(
            unet,
            old.autoencoder,
            text_encoder,
            old.schedule,
            parameterization=old.parameterization,
            image_size=old.image_size,
            guidance_scale=old.guidance_scale,
            sampler=old.sampler,
            eta=old.eta,
            zero_unconditional=old.zero_unconditional,
            framing_embedding=old.framing_embedding,
            low_resolution=old.low_resolution,
            clip_x0=old.denoiser.clip_x0,
            image_encoder=old.image_encoder,
            image_augmentation=old.image_augmentation,
            depth_estimator=old.depth_estimator,
        )

    def preview(self, trained: nn.ModuleDict) -> Image.Image:
        """Eight pictures for captions of the data; with a hint four, below what the model is shown."""
        captions = [self.data.caption(i, random.Random(i)) for i in range(min(8, len(self.data)))]
        model = self.result(trained).eval()
        if self.hint is not None:
            first = as_pixels(torch.stack([self.data.image(i) for i in range(min(4, len(self.data)))]))
            return show_examples(model, self.hint, first.to(model.device), captions[:4])
        return grid([result.image for result in txt2img(model, captions, steps=20, batch_size=8)], columns=4)
