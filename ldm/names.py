"""Names of samplers and spacings, ours and other programs'; imports nothing, so that a command line can know them.

Upper and lower case, spaces, dashes and underscores do not count, nor do k-diffusion's `sample_` and `get_sigmas_`,
the `k_` of early scripts, diffusers' `Scheduler` and ComfyUI's `_gpu`. A sampler's name may end in a spacing's.

One name means two things: `uniform` is what it is in the DDIM paper's code, and "Uniform", spelled just so, A1111's
schedule type, which is `linspace`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

SAMPLERS: dict[str, tuple[str, ...]] = {
    "ddpm": ("DDPM", "DDPMParallel"),
    "ddim": ("DDIM", "DDIMParallel"),
    "plms": ("PLMS", "PNDM"),
    "ipndm": ("iPNDM",),
    "euler": ("Euler", "EulerDiscrete"),
    "euler_ancestral": ("Euler a", "EulerAncestralDiscrete"),
    "heun": ("Heun", "HeunDiscrete"),
    "dpm_2": ("DPM2", "KDPM2Discrete"),
    "dpm_2_ancestral": ("DPM2 a", "KDPM2AncestralDiscrete"),
    "lms": ("LMS", "LMSDiscrete"),
    "dpm_fast": ("DPM fast",),
    "dpm_adaptive": ("DPM adaptive",),
    "dpmpp_2s_ancestral": ("DPM++ 2S a",),
    "dpmpp_sde": ("DPM++ SDE", "DPMSolverSDE"),
    "dpmpp_2m": ("DPM++ 2M", "DPMSolverMultistep"),
    "dpmpp_2m_sde": ("DPM++ 2M SDE",),
    "dpmpp_2m_sde_heun": ("DPM++ 2M SDE Heun",),
    "dpmpp_3m_sde": ("DPM++ 3M SDE",),
    "unipc": ("UniPC",),
    "unipc_bh2": ("UniPC bh2", "UniPCMultistep"),  # diffusers' default is bh2, that of the others bh1
    "deis": ("DEIS", "DEISMultistep"),
    "lcm": ("LCM",),
    "tcd": ("TCD",),
    "restart": ("Restart", "restart_sampler"),
    "res_multistep": ("RES Multistep",),
}
"""Name → the name that pictures carry (A1111's, where it has the sampler), and others."""

SPACINGS: dict[str, tuple[str, ...]] = {
    "uniform": ("DDIM", "leading", "ddim_uniform"),  # A1111's own "Uniform" is our linspace, so none is written
    "legacy": ("DDIM legacy",),
    "trailing": ("Trailing",),
    "linspace": ("Normal",),
    "sgm_uniform": ("SGM Uniform",),
    "simple": ("Simple",),
    "quad": ("DDIM quad",),
    "beta": ("Beta", "use_beta_sigmas"),
    "align_your_steps": ("Align Your Steps", "ays", "ays_sd15"),
    "align_your_steps_xl": ("Align Your Steps XL", "ays_xl", "ays_sdxl"),
    "karras": ("Karras", "use_karras_sigmas"),
    "exponential": ("Exponential", "use_exponential_sigmas"),
    "polyexponential": ("Polyexponential",),
    "kl_optimal": ("KL Optimal",),
}

AUTOMATIC = "automatic"  # A1111's word for the sampler's own spacing


def find_sampler(text: str) -> tuple[str, str | None]:
    """(sampler, spacing): "DPM++ 2M Karras" is ("dpmpp_2m", "karras"); None where the name does not say a spacing.

    ValueError for an unknown name lists the nearest.
    """
    word, samplers, spacings = _key(_unambiguous(text)), _table(SAMPLERS), _table(SPACINGS)
    if word in samplers:
        return samplers[word], None
    cuts = [cut for cut in range(1, len(word)) if word[cut:] in spacings or word[cut:] == AUTOMATIC]
    for cut in cuts:
        if (sampler := samplers.get(word[:cut])) is not None:
            return sampler, spacings.get(word[cut:])
    stem = next((word[:cut] for cut in cuts if word[cut:] not in samplers), word)
    if word in spacings:
        raise ValueError(f"there is no sampler {text!r}; that is a spacing, and goes with any sampler, as euler does")
    if (plain := samplers.get(stem.removesuffix("cfgpp"))) is not None:
        raise ValueError(f"there is no sampler {text!r}; take {plain}, and cfg_pp beside it")
    raise ValueError(_unknown("sampler", text, stem, samplers, SAMPLERS))


def find_spacing(text: str) -> str | None:
    """Its name here; None for "Automatic". ValueError for an unknown name lists the nearest."""
    word, spacings = _key(_unambiguous(text)), _table(SPACINGS)
    if word in _table(SAMPLERS).keys() - spacings:
        raise ValueError(f"there is no spacing {text!r}; that is a sampler, and goes with any spacing, as karras does")
    if word != AUTOMATIC and word not in spacings:
        raise ValueError(_unknown("spacing", text, word, spacings, SPACINGS))
    return spacings.get(word)


def _unambiguous(text: str) -> str:
    """With A1111's word for `linspace` as ours: "Uniform", alone or behind a sampler's name."""
    first, _, last = text.strip().rpartition(" ")
    is_theirs = last == "Uniform" and not first.casefold().endswith(("sgm", "ddim"))
    return f"{first} linspace" if is_theirs else text


def _key(text: str) -> str:
    """What counts in a name."""
    word = re.sub(r"[\s_-]+", "_", text.strip().casefold().replace("++", "pp"))
    word = re.sub(r"^(sample_|get_sigmas_|k_)|(_gpu|_?scheduler)(?=_|$)", "", word)
    return word.replace("_", "")


def _table(names: dict[str, tuple[str, ...]]) -> dict[str, str]:
    return {_key(alias): name for name, aliases in names.items() for alias in (name, *aliases)}


def _unknown(kind: str, text: str, word: str, table: dict[str, str], names: Iterable[str]) -> str:
    close = dict.fromkeys(table[key] for key in difflib.get_close_matches(word, table, 5, 0.5))
    known = f"the nearest: {', '.join(close)}" if close else f"there are {', '.join(names)}"
    return f"there is no {kind} {text!r}; {known}"
