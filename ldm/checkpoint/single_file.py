"""A whole original file (CompVis, Stability): its parts' prefixes, and what in it is no weight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from ldm.checkpoint import keys, text_keys
from ldm.models.latent_diffusion import LatentDiffusion

PREFIXES = {**keys.PREFIXES, "text_encoder": "cond_stage_model."}
NOT_LOADED = (
    "model_ema.",
    "first_stage_model.loss.",
)  # a second copy of the UNet, and what only trained the autoencoder


def is_original(names: Iterable[str]) -> bool:
    return any(name.startswith(tuple(PREFIXES.values())) for name in names)


def to_internal(tensors: Mapping[str, Tensor], model: LatentDiffusion) -> dict[str, Tensor]:
    """An original file's tensors -> the names of `model`. Unknown names are kept, for a strict load to report.

    Names without a dot are constants of the noise schedule, which the config tells; they are dropped.
    """
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in PREFIXES}
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        part = next((part for part, prefix in PREFIXES.items() if name.startswith(prefix)), None)
        if name.startswith(NOT_LOADED) or "." not in name:
            continue
        if part is None:
            out[name] = tensor
        else:
            parts[part][name[len(PREFIXES[part]) :]] = tensor
    pooled = "tower.text_projection" in model.text_encoder.state_dict()
    renamed = {
        "unet": keys.to_internal(parts["unet"], model.unet),
        "autoencoder": keys.to_internal(parts["autoencoder"], model.autoencoder),
        "text_encoder": text_keys.to_memory(parts["text_encoder"], keep_projection=pooled),
    }
    return out | {f"{part}.{name}": tensor for part, names in renamed.items() for name, tensor in names.items()}


def to_original(model: LatentDiffusion, *, text_prefix: str) -> dict[str, Tensor]:
    """The inverse, for models with a CLIP tower.

    text_prefix: "transformer." for SD 1's names of it (Hugging Face's), "model." for SD 2's (open_clip's).
    """
    tower = {name.removeprefix("tower."): tensor for name, tensor in model.text_encoder.state_dict().items()}
    renamed = {
        "unet": keys.to_original(model.unet.state_dict(), model.unet),
        "autoencoder": keys.to_original(model.autoencoder.state_dict(), model.autoencoder),
        "text_encoder": {
            f"{text_prefix}{k}": v
            for k, v in (text_keys.to_hugging_face(tower) if text_prefix == "transformer." else tower).items()
        },
    }
    return {f"{PREFIXES[part]}{name}": tensor for part, names in renamed.items() for name, tensor in names.items()}
