"""--settings FILE: options in YAML, by their names on the command line, where the command line wins.

    precision: bf16
    n-samples: 4

Written by scripts/optimize/*.py, or by hand.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _parser import Usage

NOT_HERE = ("settings", "reproduce", "help", "debug", "prompt", "from_file", "explain")  # what belongs to one job


def with_settings(parser: argparse.ArgumentParser, argv: Sequence[str]) -> list[str]:
    """The command line with the file's options before its own, so that a later one wins; as it is without a file."""
    chosen = [word.partition("=")[2] for word in argv if word.startswith("--settings=")]
    chosen += [after for word, after in zip(argv, argv[1:], strict=False) if word == "--settings"]
    return [*(option for file in chosen for option in read_settings(file, parser)), *argv]


def read_settings(file: str, parser: argparse.ArgumentParser) -> list[str]:
    """Each as a word of a command line; Usage for a file that is none, or a key that is no option."""
    from ldm.config import ConfigError, load_config

    try:
        tree = load_config(file)
    except ConfigError as error:
        raise Usage(f"--settings {' '.join(str(error).split())}") from error
    known: dict[str, argparse.Action] = {}
    for action in parser._actions:
        if action.dest not in NOT_HERE and action.help is not argparse.SUPPRESS:
            known |= {name.strip("-").replace("-", "_"): action for name in action.option_strings}
    return [word for key, value in tree.items() for word in _words(file, str(key), value, known)]


def _words(file: str, key: str, value: Any, known: Mapping[str, argparse.Action]) -> list[str]:
    name = key.replace("-", "_")
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        remedy = f"did you mean {close[0].replace('_', '-')}?" if close else "--help lists the options"
        raise Usage(f"--settings {file}: {key} is no option that a settings file can have; {remedy}")
    action, option = known[name], f"--{name.replace('_', '-')}"
    if isinstance(action, argparse.BooleanOptionalAction) and isinstance(value, bool):
        return [option if value else option.replace("--", "--no-", 1)]
    if action.nargs == 0:  # a switch
        if not isinstance(value, bool):
            raise Usage(f"--settings {file}: {key} is {value!r}; it can be true or false")
        return [option] if value else []
    if value is None:
        return []
    if isinstance(value, bool | Mapping):
        raise Usage(f"--settings {file}: {key} is {value!r}; write it as after {option}")
    return [f"{option}={','.join(map(str, value)) if isinstance(value, list) else value}"]


def write_settings(path: Path, settings: Mapping[str, Any], about: Sequence[str]) -> None:
    """A file that `read_settings` reads; what it is `about` stands above as comments."""
    from ldm.config_file import yaml_text
    from ldm.files import atomic

    text = "".join(f"# {line}\n" for line in about) + (yaml_text(dict(settings)) if settings else "{}\n")
    with atomic(path) as file:
        file.write(text.encode())
