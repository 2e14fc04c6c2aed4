"""The classes that a config may name. A target is a key here and is never imported, so that a config runs no code."""

from __future__ import annotations

import difflib
import importlib.util
import sys
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from ldm.config_file import ConfigError

C = TypeVar("C", bound=type)

_REGISTRY: dict[str, type] = {}
_ALIASES: set[str] = set()


def register(name: str, *aliases: str) -> Callable[[C], C]:
    """Class decorator: the class may be a `target` under its short name and its aliases (original dotted names)."""

    def add(cls: C) -> C:
        for key in (name, *aliases):
            known = _REGISTRY.get(key, cls)
            if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
                raise ValueError(f"target {key!r} is already registered by {known.__module__}.{known.__qualname__}")
            _REGISTRY[key] = cls
        _ALIASES.update(aliases)
        return cls

    return add


def registered(name: str) -> type:
    """The class behind a target name; ConfigError with the nearest known name if there is none."""
    if not isinstance(name, str) or name not in _REGISTRY:
        raise ConfigError(f"unknown target {name!r}{nearest(str(name), _REGISTRY)}")
    return _REGISTRY[name]


def short_names() -> dict[str, type]:
    """Every registered class, by its name here."""
    return {name: cls for name, cls in _REGISTRY.items() if name not in _ALIASES}


def load_plugin(path: str | Path) -> types.ModuleType:
    """Run a Python file that the user named, so that the classes it registers become targets."""
    path = Path(path)
    if path.suffix != ".py" or not path.is_file():
        raise ConfigError(f"{path}: a plugin must be an existing .py file; give the path of one")
    name = f"ldm_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look a class's module up here
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(f"{path}: the plugin failed with {type(error).__name__}: {error}; mend it there") from error
    return module


def nearest(name: str, known: Iterable[str]) -> str:
    """', did you mean …?' for a close name, else the list of short names (aliases stay unlisted)."""
    known = list(known)
    folded = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.5)
    if close:
        return f", did you mean {folded[close[0]]!r}?"
    names = sorted(k for k in known if k not in _ALIASES)
    return f" (known: {', '.join(names)})" if names else " (nothing is known here)"
