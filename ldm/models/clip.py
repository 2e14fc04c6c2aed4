"""CLIP's tokens, and what is taken from open_clip, file by file: this is the only one that imports it."""

from __future__ import annotations

import importlib.util
import json
import sys
from copy import copy
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from ldm.prompt import MAX_CHARACTERS

START, END = 49406, 49407  # CLIP's two special tokens: the last entries of the BPE vocabulary of 49408

# --- tokens ------------------------------------------------------------------------------------------------------


def encode(text: str) -> list[int]:
    """BPE token ids of any string, without start and end, after open_clip's cleaning (ftfy, HTML entities, lower case).

    Nothing in the text becomes a special token: a typed "<end_of_text>" is seven ordinary tokens.
    """
    printable = text[:MAX_CHARACTERS].encode("utf-8", "replace").decode("utf-8")  # lone surrogates become "?"
    ids: list[int] = _tokenizer().encode(printable)
    return ids


def spelled(token: int) -> str:
    """A token as text; one that ends a word is followed by a space."""
    text: str = _tokenizer().decode([token])
    return text


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's tokens by name, the last two being START and END, and its merges, in the order in which they apply."""
    tokenizer = _tokenizer()
    return dict(tokenizer.encoder), sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.__getitem__)


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    open_clip = open_clip_file("tokenizer")
    built = getattr(open_clip, "_tokenizer", None)  # when the file is imported: no second one is needed
    tokenizer = copy(built) if isinstance(built, open_clip.SimpleTokenizer) else open_clip.SimpleTokenizer()
    tokenizer.cache = dict(tokenizer.cache)
    start, _, words = tokenizer.pat.pattern.partition("<end_of_text>|")
    assert start == "<start_of_text>|", "open_clip's tokenizer has changed: its special tokens could be typed by a user"
    tokenizer.pat = open_clip.re.compile(words, open_clip.re.IGNORECASE)
    return tokenizer


# --- open_clip ---------------------------------------------------------------------------------------------------


def published_tower(name: str) -> tuple[int, int, int, Literal["gelu", "quick_gelu"]]:
    """(width, heads, layers, activation) from open_clip's own table; ValueError for an unknown or unusual tower."""
    config = published_config(name)
    text = {"context_length": 77, "vocab_size": END + 1} | config["text_cfg"]
    if set(text) != {"context_length", "vocab_size", "width", "heads", "layers"} or text["vocab_size"] != END + 1:
        raise ValueError(
            f"the text tower of {name!r} is not a plain CLIP transformer ({text}), which is all that is built here"
        )
    return text["width"], text["heads"], text["layers"], "quick_gelu" if config.get("quick_gelu") else "gelu"


def published_config(name: str) -> dict[str, Any]:
    """What open_clip's own table says of a pair of towers; ValueError for an unknown one."""
    folder = _package_folder() / "model_configs"
    path = folder / f"{name}.json"
    if path.parent != folder or not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("ViT-*.json") if "-14" in p.stem and len(p.stem) < 20))
        raise ValueError(f"open_clip has no text tower {name!r}; among those it has: {known}")
    config: dict[str, Any] = json.loads(path.read_text())
    return config


def _package_folder() -> Path:
    spec = importlib.util.find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("text towers and the tokenizer need open_clip: pip install open_clip_torch")
    return Path(spec.submodule_search_locations[0])


@lru_cache
def open_clip_file(name: Literal["transformer", "tokenizer"]) -> Any:
    """One file of open_clip, without the package around it.

    `import open_clip` takes two to four seconds, for torchvision, timm, transformers and a hub client that a tower
    never touches; the two files alone take 0.3 s. They are loaded under a name of our own, so that a later
    `import open_clip` finds nothing unusual. Should they one day need more, the whole package is imported.
    """
    alias = "_open_clip_text"
    if alias not in sys.modules:
        package, vision_helpers = ModuleType(alias), ModuleType(f"{alias}.utils")
        package.__path__ = [str(_package_folder())]
        vision_helpers.__dict__.update(to_2tuple=lambda side: (side, side), feature_take_indices=None)
        sys.modules[alias], sys.modules[f"{alias}.utils"] = package, vision_helpers
    try:
        return importlib.import_module(f"{alias}.{name}")
    except ImportError:
        return importlib.import_module(f"open_clip.{name}")
