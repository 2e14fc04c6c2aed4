"""A latent diffusion model as its parts. It neither samples nor trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from ldm.config import register
from ldm.models import bert as _bert  # noqa: F401  (registers what a config may name)
from ldm.models.autoencoder import Autoencoder, Gaussian
from ldm.models.depth import DPTDepthEstimator
from ldm.models.diffusion.denoiser import Conditioning, Denoiser
from ldm.models.diffusion.schedule import NoiseSchedule
from ldm.models.encoders import TextEncoder, TextFeatures
from ldm.models.framing import (
    NEGATIVE_AESTHETIC,
    EmbeddingAugmentation,
    Framing,
    FramingEmbedding,
    NoiseAugmentation,
)
from ldm.models.image_encoder import OpenCLIPImageEncoder
from ldm.models.text_encoder import ChunkedTextEncoder
from ldm.modules import unet as _unet  # noqa: F401  (registers the networks a config may name)
from ldm.prompt import parse
from ldm.prompt_tree import Passage

if TYPE_CHECKING:
    from ldm.offload import Offload


@register("LatentDiffusion", "ldm.models.diffusion.ddpm.LatentDiffusion")
class LatentDiffusion(nn.Module):
    """Rombach et al. 2022 (arXiv:2112.10752). `denoiser` is made of `unet`, `schedule` and what the network predicts.

    `image_size` (pixels), `guidance_scale` and `sampler` (a name) with its `eta` are what the model is best drawn with;
    any size works that is a multiple of the autoencoder's downsample factor.

    zero_unconditional: a prompt that is not given is zeros, which SDXL was trained on, and not the text "".
    framing_embedding: makes `y` of the pooled text and the picture's framing (SDXL).
    clip_x0: as in `Denoiser`, for models in pixel space.
    low_resolution: how the picture is made noisy that an upscaler enlarges; it becomes `concat` and `y`.
    image_encoder, image_augmentation: of the picture that unCLIP varies, and how it becomes `y`; None without them.
    depth_estimator: of pictures, for a model that is shown depth; None where depth must be given.
    """

    offload: Offload | None = None  # by which the parts take turns on a device too small for all

    def __init__(
        self,
        unet: nn.Module,
        autoencoder: Autoencoder,
        text_encoder: TextEncoder,
        schedule: NoiseSchedule,
        parameterization: Literal["eps", "v", "x0"] = "eps",
        image_size: int = 512,
        guidance_scale: float = 7.5,
        sampler: str = "ddim",
        eta: float | None = None,
        zero_unconditional: bool = False,
        framing_embedding: FramingEmbedding | None = None,
        low_resolution: NoiseAugmentation | None = None,
        clip_x0: bool = False,
        image_encoder: OpenCLIPImageEncoder | None = None,
        image_augmentation: EmbeddingAugmentation | None = None,
        depth_estimator: DPTDepthEstimator | None = None,
    ) -> None:
        super().__init__()
        self.unet, self.autoencoder, self.text_encoder = unet, autoencoder, text_encoder
        self.schedule, self.parameterization = schedule, parameterization
        self.image_size, self.guidance_scale = image_size, guidance_scale
        self.sampler, self.eta = sampler, eta
        self.zero_unconditional = zero_unconditional
        self.framing_embedding, self.low_resolution = framing_embedding, low_resolution
        self.image_encoder, self.image_augmentation = image_encoder, image_augmentation
        self.depth_estimator = depth_estimator
        self.denoiser = Denoiser(unet, schedule, parameterization, clip_x0)

    @property
    def device(self) -> torch.device:
        """Where the denoising network is, or is to be when its turn comes."""
        return self.offload.device if self.offload is not None else next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The denoising network's; the autoencoder has its own."""
        return next(self.unet.parameters()).dtype

    def _bring(self, part: nn.Module) -> None:
        if self.offload is not None:
            self.offload.bring(part)

    @property
    def _like_autoencoder(self) -> Tensor:
        """A tensor of the autoencoder's device and dtype; in pixel space, where it has no weights, float32."""
        return next(self.autoencoder.parameters(), torch.zeros((), device=self.device))

    @property
    def concat_channels(self) -> int | None:
        """How many channels the network is shown beside the latent's; None where it has no `in_channels` that tells."""
        channels = getattr(self.unet, "in_channels", None)
        return None if channels is None else channels - self.autoencoder.latent_channels

    def condition(
        self,
        prompts: Sequence[str | Passage | None],
        framing: Framing | None = None,
        *,
        negative: bool = False,
        clip_skip: int = 1,
    ) -> Conditioning:
        """One row per prompt; "" is the unconditional one, and so is None, "not given" (see `zero_unconditional`).

        prompts: with the syntax of `ldm.prompt` where the tower is CLIP's, all of as many chunks of tokens; a passage
        is what one of them says in one step. ValueError for a prompt that says several things, by AND or by steps.
        framing: for models that are told (others do not look); None is a whole picture of `image_size`.
        negative: the prompts are what guidance leads away from, so the aesthetic score is the lower one.
        clip_skip: see `ChunkedTextEncoder.forward`.
        """
        if isinstance(prompts, str):
            raise ValueError(f"condition takes a list of prompts, not the one string {prompts!r}; write [prompt]")
        self._bring(self.text_encoder)
        states, pooled = self._read(prompts, negative, clip_skip)
        if self.zero_unconditional:
            given = torch.tensor([prompt is not None for prompt in prompts], device=self.device)  # (B,)
            states = None if states is None else states.masked_fill(~given[:, None, None], 0)
            pooled = None if pooled is None else pooled.masked_fill(~given[:, None], 0)
        if self.framing_embedding is None:
            return Conditioning(states)
        if pooled is None:
            raise ValueError("framing_embedding needs a pooled text vector: give the text encoder a projection_dim")
        framing = Framing.whole(self.image_size, self.image_size) if framing is None else framing
        if negative:
            framing = replace(framing, aesthetic_score=NEGATIVE_AESTHETIC)
        return Conditioning(states, y=self.framing_embedding(pooled, framing))

    def _read(self, prompts: Sequence[str | Passage | None], negative: bool, clip_skip: int) -> TextFeatures:
        if isinstance(self.text_encoder, ChunkedTextEncoder):
            passages = [
                _passage(prompt or "", negative) if prompt is None or isinstance(prompt, str) else prompt
                for prompt in prompts
            ]
            return self.text_encoder.read(passages, self.device, clip_skip)
        if clip_skip != 1:
            raise ValueError(f"clip_skip is {clip_skip}, but this model's text encoder is not CLIP's; leave it out")
        texts = ["" if prompt is None else str(prompt) for prompt in prompts]
        features: TextFeatures = self.text_encoder(self.text_encoder.tokenize(texts).to(self.device))
        return features

    def add_hint(
        self, cond: Conditioning, hint: Tensor, level: int | Tensor, noise: Tensor, *, negative: bool = False
    ) -> Conditioning:
        """With what the network is shown under noise: hint (1, …), noise (B, …) of its shape, level a timestep.

        negative: this is what guidance leads away from, which for an embedding is zeros and for a picture the same.
        """
        augmentation = self.low_resolution or self.image_augmentation
        if augmentation is None:
            raise ValueError("this model is shown nothing under noise; an upscaler and unCLIP are")
        concat, y = augmentation(hint.expand_as(noise), level, noise)
        away = negative and self.low_resolution is None
        return replace(cond, concat=concat, y=torch.zeros_like(y) if away else y)

    def encode(self, image: Tensor) -> Gaussian | Tensor:
        """image (B, 3, H, W) in [-1, 1] -> scaled latents (B, C, h, w): their distribution, or a VQModel's tensor."""
        self._bring(self.autoencoder)
        with torch.autocast(self.device.type, enabled=False):  # the autoencoder has its own dtype, whatever the UNet's
            return self.autoencoder.encode(image.to(self._like_autoencoder))

    def decode(self, z: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) -> images (B, 3, H, W) in about [-1, 1], in the autoencoder's dtype."""
        self._bring(self.autoencoder)
        with torch.autocast(self.device.type, enabled=False):
            return self.autoencoder.decode(z.to(self._like_autoencoder))

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, h, w) for an image of this size in pixels; ValueError with the nearest size if there is none."""
        factor = self.autoencoder.downsample_factor
        for name, side in (("height", height), ("width", width)):
            if side <= 0 or side % factor:
                nearest = max(factor, round(side / factor) * factor)
                raise ValueError(f"{name} {side} is not a positive multiple of {factor}; the nearest is {nearest}")
        return self.autoencoder.latent_channels, height // factor, width // factor


def _passage(text: str, negative: bool) -> Passage:
    """The one that the prompt is."""
    scenes = parse(text, compose=not negative).schedule(1000)
    if len(scenes) > 1 or len(scenes[0][1]) > 1:
        raise ValueError(
            f"the prompt {text!r} says several things, and a conditioning holds one; draw it with ldm.txt2img, "
            "or give condition what it says in a step: ldm.prompt.parse(text).at(i, steps)"
        )
    return scenes[0][1][0].passage
