"""Guidance on the command line, in Python and in a picture's metadata: three spellings of the same `Guidance`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from _options import OPTION_NAMES

from ldm.guidance import Guidance

OPTIONS = {field.name: OPTION_NAMES.get(field.name, field.name) for field in fields(Guidance)}
READERS: dict[str, Callable[[Any], Any]] = {  # from JSON; others are numbers
    "cfg_pp": bool,
    "pag_layers": lambda names: tuple(str(name) for name in names),
    "interval": lambda ends: tuple(float(end) for end in ends),
    "freeu": lambda factors: tuple(float(factor) for factor in factors),
}


def make_guidance(options: argparse.Namespace) -> Guidance:
    given = {name: getattr(options, option) for name, option in OPTIONS.items()}
    return Guidance(**{name: value for name, value in given.items() if value is not None})


def parameters(guidance: Guidance, autoguide: str | None) -> dict[str, object]:
    """What is asked for, under the names that other programs have for it where they have one."""
    return {
        "CFG Rescale phi": guidance.rescale or None,
        "Dynamic thresholding percentile": guidance.threshold,
        "Guidance interval": guidance.interval and " … ".join(f"{end:g}" for end in guidance.interval),
        "CFG++": guidance.cfg_pp or None,
        "PAG Scale": guidance.pag or None,
        "FreeU": guidance.freeu and " ".join(f"{factor:g}" for factor in guidance.freeu),
        "Autoguidance model": autoguide,
        "Autoguidance scale": guidance.autoguide if autoguide else None,
    }


def take_over_guidance(options: argparse.Namespace, settings: dict[str, Any]) -> None:
    """From a picture's settings; ValueError or TypeError for what is no number. `Guidance` checks the numbers."""
    options.scale = (float(settings["guidance_scale"]),)
    given = settings.get("guidance", {})  # pictures made before there was any have none
    for name, option in OPTIONS.items():
        value = given.get(name)
        setattr(options, option, None if value is None else READERS.get(name, float)(value))
