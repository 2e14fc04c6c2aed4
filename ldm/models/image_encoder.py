"""Pictures -> embeddings: open_clip's image towers, alone, for models that vary a picture (SD 2 unCLIP)."""

from __future__ import annotations

from typing import Literal

import torch
from PIL import Image
from torch import Tensor, nn

from ldm import images
from ldm.config import register
from ldm.models.clip import open_clip_file, published_config

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's training pictures


@register("OpenCLIPImageEncoder")
class OpenCLIPImageEncoder(nn.Module):
    """open_clip's `VisionTransformer`, without the text tower.

    name: one of open_clip's towers, e.g. "ViT-H-14"; otherwise give width, heads, layers and projection_dim.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        image_size: int = 224,
        patch_size: int = 14,
        width: int | None = None,
        heads: int | None = None,
        layers: int | None = None,
        projection_dim: int | None = None,
        activation: Literal["gelu", "quick_gelu"] = "gelu",
    ) -> None:
        super().__init__()
        if name is not None:
            if (width, heads, layers, projection_dim) != (None, None, None, None):
                raise ValueError(f"give either name ({name!r}) or width, heads, layers and projection_dim, not both")
            config = published_config(name)
            vision = {"image_size": image_size, "patch_size": patch_size, "head_width": 64} | config["vision_cfg"]
            if set(vision) != {"image_size", "patch_size", "head_width", "width", "layers"}:
                raise ValueError(
                    f"the image tower of {name!r} is not a plain CLIP transformer, which is all built here"
                )
            image_size, patch_size, width, layers = (vision[k] for k in ("image_size", "patch_size", "width", "layers"))
            heads, projection_dim = vision["width"] // vision["head_width"], config["embed_dim"]
            activation = "quick_gelu" if config.get("quick_gelu") else "gelu"
        if width is None or heads is None or layers is None or projection_dim is None:
            raise ValueError("an image tower needs width, heads, layers and projection_dim, or the name of one")
        open_clip = open_clip_file("transformer")
        self.tower = open_clip.VisionTransformer(
            image_size=image_size,
            patch_size=patch_size,
            width=width,
            layers=layers,
            heads=heads,
            mlp_ratio=4.0,
            output_dim=projection_dim,
            act_layer=open_clip.QuickGELU if activation == "quick_gelu" else nn.GELU,
        )
        self.image_size, self.projection_dim = image_size, projection_dim

    def preprocess(self, image: Image.Image) -> Tensor:
        """(1, 3, S, S) as CLIP was trained: the shorter side scaled to S, the middle cut out, channels standardised."""
        size, shorter = self.image_size, min(image.size)
        width, height = (int(size * side / shorter) for side in image.size)
        scaled = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        left, top = round((width - size) / 2), round((height - size) / 2)
        unit = (images.to_tensor(scaled.crop((left, top, left + size, top + size))) + 1) / 2
        return (unit - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]

    def forward(self, pixels: Tensor) -> Tensor:
        """Preprocessed (B, 3, S, S) -> embeddings (B, projection_dim), of no fixed length."""
        embedding: Tensor = self.tower(pixels)
        return embedding
