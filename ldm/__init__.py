"""Latent diffusion: `load` a model, then draw: `txt2img`, `img2img`, … Importing this package imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldm.checkpoint.load import load, save
    from ldm.guidance import Guidance
    from ldm.pipeline import depth2img, img2img, inpaint, txt2img, upscale, variations
    from ldm.refiner import Refiner

__all__ = ["Guidance", "Refiner", "depth2img", "img2img", "inpaint", "load", "save", "txt2img", "upscale", "variations"]

_HOME = {
    "load": "ldm.checkpoint.load",
    "save": "ldm.checkpoint.load",
    "txt2img": "ldm.pipeline",
    "img2img": "ldm.pipeline",
    "inpaint": "ldm.pipeline",
    "depth2img": "ldm.pipeline",
    "upscale": "ldm.pipeline",
    "variations": "ldm.pipeline",
    "Guidance": "ldm.guidance",
    "Refiner": "ldm.refiner",
}


def __getattr__(name: str) -> Any:
    """PEP 562: a public function is imported when it is first used."""
    if name not in _HOME:
        raise AttributeError(f"module 'ldm' has no attribute {name!r}; it has {', '.join(__all__)}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
