"""The pictures to draw, each with its prompt and seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ldm.guidance import Guidance
from ldm.noise import Seed, Variation

MAX_SEED = 2**32 - 1


@dataclass(frozen=True)
class Item:
    """One picture to draw: what differs between the pictures of a batch."""

    prompt: str
    negative_prompt: str | None = None  # None: not given, which some models tell from ""
    seed: int = 0
    variation_seed: int | None = None
    variation_strength: float = 0.0  # how far its noise is turned from that of seed to that of variation_seed, 0 … 1
    guidance_scale: float | None = None  # None: that of the settings

    @property
    def noise_seed(self) -> Seed:
        """What all noise of the picture is drawn from."""
        if self.variation_seed is None or self.variation_strength == 0:
            return self.seed
        return Variation(self.seed, self.variation_seed, self.variation_strength)


def make_items(
    prompt: str | Sequence[str],
    negative_prompt: str | None,
    seed: int,
    num_images: int = 1,
    variation_seed: int | None = None,
    variation_strength: float | None = None,
    cycle: int | None = None,
) -> list[Item]:
    """`num_images` items for each prompt, item i of all with seed + i; with a `cycle`, i begins again after so many.

    With a variation_strength above 0 all have `seed`, and item i has variation_seed + i: variations of one picture.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise ValueError("the list of prompts is empty; give at least one")
    if num_images < 1:
        raise ValueError(f"num_images is {num_images}; ask for at least 1")
    repeated = [text for text in prompts for _ in range(num_images)]
    negative = None if negative_prompt is None else clean(negative_prompt)
    cycle = len(repeated) if cycle is None else min(cycle, len(repeated))
    seeds = make_seeds(cycle, seed, variation_seed, variation_strength)
    return [Item(clean(text), negative, *seeds[i % cycle]) for i, text in enumerate(repeated)]


def make_seeds(
    count: int, seed: int, variation_seed: int | None = None, variation_strength: float | None = None
) -> list[tuple[int, int | None, float]]:
    """(seed, variation_seed, variation_strength) of each of `count` items, checked."""
    strength = 0.0 if variation_strength is None else variation_strength
    if not 0 <= strength <= 1:
        raise ValueError(f"variation_strength is {strength}; it can be 0 (the picture of seed) … 1 (of variation_seed)")
    if variation_seed is not None and variation_strength is None:
        raise ValueError(f"variation_seed is {variation_seed}, and nothing says how far; give variation_strength too")
    if variation_seed is None and strength > 0:
        raise ValueError(f"variation_strength is {strength}, and nothing says where to; give variation_seed too")
    if variation_seed is None or strength == 0:
        return [(number, None, 0.0) for number in _numbers("seed", seed, count)]
    _numbers("seed", seed, 1)
    return [(seed, number, strength) for number in _numbers("variation_seed", variation_seed, count)]


def _numbers(name: str, first: int, count: int) -> range:
    if not 0 <= first <= first + count - 1 <= MAX_SEED:
        raise ValueError(f"{name} {first} with {count} images leaves 0 … {MAX_SEED}; choose one inside")
    return range(first, first + count)


def with_scales(items: Sequence[Item], scales: Sequence[float], guidance: Guidance | None = None) -> list[Item]:
    """Item i with guidance scale i of `scales`, which begin again where they end. ValueError for one left over."""
    if not 0 < len(scales) <= len(items):
        raise ValueError(f"{len(scales)} guidance scales for {len(items)} pictures; draw as many pictures, or more")
    guidance = Guidance() if guidance is None else guidance
    checked = [guidance.check_scale(scale) for scale in scales]
    return [replace(item, guidance_scale=checked[i % len(checked)]) for i, item in enumerate(items)]


def clean(text: str) -> str:
    """A prompt that can be encoded and stored: no NUL, lone surrogates replaced, ends stripped."""
    return text.replace("\0", " ").encode("utf-8", "replace").decode().strip()
