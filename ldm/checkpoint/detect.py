"""Which family a file is of, from a few names and shapes, whatever layout it has; and which config describes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Signature:
    """The UNet's numbers that tell the families apart. 0 is none; y counts classes, or is the width of a vector."""

    width: int  # channels of the first convolution's output
    channels: int  # and of its input
    context: int = 0
    y: int = 0

    def __str__(self) -> str:
        family = FAMILIES.get(self)
        numbers = [f"context {self.context}"] if self.context else []
        numbers += [f"{self.channels} input channels"] + ([f"y {self.y}"] if self.y else [])
        numbers += [] if family else [f"width {self.width}"]
        return f"{family.title if family else 'a UNet of no published family'} ({', '.join(numbers)})"


@dataclass(frozen=True)
class Family:
    """What people call it, and its configs' names: several where weights leave a choice, the default first."""

    title: str
    configs: tuple[str, ...]


FAMILIES = {
    Signature(320, 4, 768): Family("SD 1.x", ("sd-v1",)),
    Signature(320, 9, 768): Family("SD 1.x inpainting", ("sd-v1-inpainting",)),
    Signature(320, 4, 1024): Family("SD 2.x", ("sd-v2", "sd-v2-v")),
    Signature(320, 9, 1024): Family("SD 2.x inpainting", ("sd-v2-inpainting",)),
    Signature(320, 5, 1024): Family("SD 2.x depth", ("sd-v2-depth",)),
    Signature(320, 4, 1024, 1536): Family("SD 2.x unCLIP-L", ("sd-v2-unclip-l",)),
    Signature(320, 4, 1024, 2048): Family("SD 2.x unCLIP-H", ("sd-v2-unclip",)),
    Signature(256, 7, 1024, 1000): Family("SD x4 upscaler", ("sd-x4-upscaler",)),
    Signature(320, 4, 2048, 2816): Family("SDXL base", ("sdxl-base",)),
    Signature(384, 4, 1280, 2560): Family("SDXL refiner", ("sdxl-refiner",)),
    Signature(320, 4, 1280): Family("LDM text-to-image 1.4B", ("ldm-text2img",)),
    Signature(192, 3, 512): Family("LDM class-conditional ImageNet", ("ldm-cin256",)),
    Signature(224, 3): Family("LDM unconditional VQ-f4", ("ldm-ffhq",)),
    Signature(192, 4): Family("LDM unconditional KL-f8", ("ldm-lsun-churches",)),
    Signature(128, 3): Family("DDPM in pixel space", ("ddpm-cat-256",)),
}


def signature(tensors: Mapping[str, Tensor]) -> Signature | None:
    """Of a whole file's tensors in any layout, an EMA-only one too; None without a UNet.

    Names are compared without their dots, since the EMA copies in original files have none.
    """
    width, channels, y = 0, 0, 0
    contexts = set()
    prefixes: tuple[str, ...] = ("unet.", "model.diffusion_model.")
    if not any(name.startswith(prefixes) for name in tensors):
        prefixes = ("model_ema.diffusion_model",)
    for name, tensor in tensors.items():
        if not name.startswith(prefixes) or not name.endswith("weight") or tensor.ndim < 2:
            continue
        word = name.replace(".", "")
        if word.endswith(("unetconv_inweight", "diffusion_modelinput_blocks00weight")):
            width, channels = tensor.shape[:2]
        elif word.endswith("attn2to_kweight"):
            contexts.add(tensor.shape[1])
        elif word.endswith(("unetclass_embeddingweight", "diffusion_modellabel_embweight")):
            y = tensor.shape[0]
        elif word.endswith(("_embeddinglinear_1weight", "diffusion_modellabel_emb00weight")) and "time" not in word:
            y = tensor.shape[1]
    return Signature(width, channels, min(contexts, default=0), y) if width else None


def parts(names: Iterable[str]) -> dict[str, bool]:
    """Which parts of a model a file holds, in any layout."""
    beginnings = {
        "unet": ("unet.", "model.diffusion_model."),
        "unet (EMA)": ("model_ema.diffusion_model",),
        "autoencoder": ("autoencoder.", "first_stage_model."),
        "text encoder": ("text_encoder", "cond_stage_model.", "conditioner."),
    }
    names = list(names)
    return {part: any(name.startswith(start) for name in names) for part, start in beginnings.items()}
