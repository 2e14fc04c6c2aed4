"""One bad input: the files it needs, the command line that names them, and what is to come of it."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

Contents = bytes | Callable[[], bytes]  # made only when the case is run


@dataclass(frozen=True)
class Case:
    """`says`: what the one sentence must name; empty where the input is odd but good, and pictures are to be drawn."""

    name: str
    argv: Sequence[str]
    says: str
    files: Mapping[str, Contents] = field(default_factory=dict)
    command: str = "txt2img"
    prepare: Callable[[], object] | None = None  # in the folder of the case, after its files
    pictures: int = 1  # to be drawn
    prompt: str | None = None  # that is to stand in the picture
    within: Callable[[], object] | None = None  # in the process of the case, before its command


def drawn(name: str, argv: Sequence[str], **others: Any) -> Case:
    return Case(name, argv, "", **others)


@cache
def miniature() -> dict[str, Any]:
    """The config of a whole model that draws in milliseconds."""
    unet = {
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [32, 32],
        "layers_per_block": 1,
        "attention_levels": [True, False],
        "head_channels": 16,
        "context_dim": 16,
    }
    decoder = {"latent_channels": 4, "block_out_channels": [8, 8, 8, 8], "layers_per_block": 1, "norm_num_groups": 4}
    tower = {"width": 16, "heads": 2, "layers": 1, "context_length": 16}
    params = {
        "parameterization": "v",
        "image_size": 32,
        "guidance_scale": 3.0,
        "schedule": {"target": "NoiseSchedule", "params": {}},
        "unet": {"target": "UNet", "params": unet},
        "autoencoder": {"target": "AutoencoderKL", "params": {**decoder, "scaling_factor": 1.0}},
        "text_encoder": {"target": "OpenCLIPTextEncoder", "params": tower},
    }
    return {"target": "LatentDiffusion", "params": params}


@cache
def weights() -> dict[str, Any]:
    """The miniature's tensors, random."""
    import torch

    from ldm.config import build

    torch.manual_seed(0)
    model = build(miniature(), "miniature")
    for parameter in model.unet.parameters():  # some are zero at first, and a network that answers 0 draws noise
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return dict(model.state_dict())


def ckpt(contents: object, *, old: bool = False) -> bytes:
    """As torch.save writes it, by default in the archive it writes since 1.6."""
    import torch

    with io.BytesIO() as file:
        torch.save(contents, file, _use_new_zipfile_serialization=not old)
        return file.getvalue()


def picture(kind: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (40, 32), **options: Any) -> bytes:
    """A gradient in a format and a mode of Pillow's."""
    from PIL import Image

    image = Image.linear_gradient("L").resize(size)
    made = Image.merge("LA", (image, image)) if mode == "LA" else image.convert(mode)
    if mode == "RGBA":
        made.putalpha(image)
    with io.BytesIO() as file:
        made.save(file, format=kind, **options)
        return file.getvalue()
