"""A YAML file -> plain dicts, lists and scalars, without running, fetching or growing anything."""

from __future__ import annotations

import io
import json
import math
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.files import regular_size

_MAX_BYTES = 1 << 20  # a config is text that somebody wrote; a megabyte is none
_MAX_DEPTH = 50

_WIDTHS = ("in_channels", "out_channels", "latent_channels", "context_dim", "norm_num_groups", "width", "heads")
_RANGES = dict.fromkeys(_WIDTHS, (1, 1 << 16)) | {
    "layers_per_block": (1, 100),
    "layers": (1, 1000),
    "head_channels": (1, 1 << 16),
    "context_length": (1, 1 << 16),
    "num_timesteps": (1, 1_000_000),
    "image_size": (8, 8192),
}


class ConfigError(ValueError):
    """A config that cannot be built. The message has one line per fault: YAML path, value, nearest known name."""


def load_config(path: str | Path) -> dict[str, Any]:
    """Read a YAML file into plain dicts, lists and scalars.

    `1e-4` is a number and a duplicate key is an error. `${a.b}` stands for the scalar at `a.b`; resolvers such as
    `${oc.env:…}` and YAML anchors are refused, so a file neither reads its surroundings nor grows when expanded.
    """
    path = Path(path)
    try:
        size = regular_size(path)
        text = path.read_text(encoding="utf-8") if size <= _MAX_BYTES else ""
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as a config ({error}); give the path of a YAML file") from error
    if size > _MAX_BYTES:
        raise ConfigError(f"{path}: larger than {_MAX_BYTES} bytes, which is no config; give the path of a YAML file")
    return parse_config(text, str(path))


def parse_config(text: str, source: str = "config") -> dict[str, Any]:
    """The same from a string; `source` names it in errors."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        _check_tokens(text, source)
        tree = OmegaConf.load(io.StringIO(text))
        if not OmegaConf.is_dict(tree):
            raise ConfigError(f"{source}: expected a mapping with `target` and `params` at the top")
        _check_interpolations(OmegaConf.to_container(tree, resolve=False), source)
        plain = OmegaConf.to_container(tree, resolve=True, throw_on_missing=True)
    except (yaml.YAMLError, OmegaConfBaseException, RecursionError, OSError) as error:
        raise ConfigError(f"{source}: not readable as YAML: {' '.join(str(error).split())}; mend it there") from error
    assert isinstance(plain, dict)
    return typing.cast("dict[str, Any]", plain)


def yaml_text(tree: Mapping[str, Any]) -> str:
    """A tree of plain values as YAML that `parse_config` reads back the same, keys in their order."""
    import yaml

    text: str = yaml.safe_dump(json.loads(json.dumps(tree)), sort_keys=False, allow_unicode=True, width=100)
    return text


def out_of_range(name: str, value: object) -> str | None:
    """What is wrong with a number of this name, if anything: networks are made of it before any weight says no."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is no finite number; write one"
    if isinstance(value, int) and not isinstance(value, bool) and name in _RANGES:
        low, high = _RANGES[name]
        return None if low <= value <= high else f"{value} is out of range; it can be {low} … {high}"
    return None


def _check_tokens(text: str, source: str) -> None:
    """Refuse what could grow in a parser: anchors, and nesting that no config has."""
    import yaml

    block_starts = (yaml.BlockMappingStartToken, yaml.BlockSequenceStartToken)
    flow_starts = (yaml.FlowMappingStartToken, yaml.FlowSequenceStartToken)
    ends = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)
    depth = 0
    for token in yaml.scan(text):
        if isinstance(token, yaml.AliasToken):
            raise ConfigError(f"{source}: YAML anchors are not read; write the value again, or ${{path.to.it}}")
        depth += isinstance(token, block_starts + flow_starts) - isinstance(token, ends)
        if depth > _MAX_DEPTH:
            raise ConfigError(
                f"{source}: nested deeper than {_MAX_DEPTH} levels, which is no config; give the path of one"
            )


def _check_interpolations(raw: Any, source: str) -> None:
    """Refuse every `${` that is not exactly one `${dotted.path}` to a scalar, before any of them is resolved."""
    targets: list[tuple[str, str]] = []

    def visit(value: Any, path: str) -> None:
        if isinstance(value, dict):
            for key, child in value.items():
                visit(str(key), path)
                visit(child, f"{path}.{key}" if path else str(key))
        elif isinstance(value, list):
            for index, child in enumerate(value):
                visit(child, f"{path}[{index}]")
        elif isinstance(value, str) and "${" in value:
            match = re.fullmatch(r"\$\{(\w+(?:\.\w+)*)\}", value)
            if match is None:
                raise ConfigError(f"{source}: {path}: {value!r} is refused; only ${{path.to.a.value}} is read")
            targets.append((path, match[1]))

    visit(raw, "")
    for path, target in targets:
        found: Any = raw
        for key in target.split("."):
            found = found.get(key) if isinstance(found, dict) else None
        if found is None or isinstance(found, (dict, list)):
            raise ConfigError(
                f"{source}: {path}: ${{{target}}} is not the path of a single value; write the value itself"
            )
