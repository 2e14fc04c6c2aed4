"""YAML -> checked tree -> objects, through the closed registry of classes.

A node is `{target: NAME, params: {...}}`. NAME is a key of the registry and is never imported: a config runs no code.
Params are compared with the constructor's annotated signature before anything is built, nested nodes included.
"""

from __future__ import annotations

import collections.abc
import difflib
import inspect
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union

from ldm.config_file import ConfigError, load_config, out_of_range, parse_config
from ldm.registry import load_plugin, nearest, register, registered, short_names

__all__ = ["ConfigError", "build", "check", "load_config", "load_plugin", "parse_config", "register", "registered"]


@dataclass(frozen=True)
class _Call:
    """A checked node: what to construct, and with which (possibly nested) arguments."""

    cls: type
    kwargs: dict[str, Any]
    path: str


# --- checking ----------------------------------------------------------------------------------------------------


def check(tree: Mapping[str, Any], source: str = "config", expected: Any = Any) -> None:
    """Compare a tree with the registry and the constructors' signatures; one ConfigError lists all. Builds nothing."""
    _plan_checked(tree, source, expected)


def build(tree: Mapping[str, Any], source: str = "config", expected: Any = Any) -> Any:
    """Check the whole tree, then construct it, inner nodes first. `expected` is the class the root must be."""
    return _realise(_plan_checked(tree, source, expected), source)


def _realise(plan: Any, source: str) -> Any:
    if isinstance(plan, _Call):
        kwargs = {key: _realise(value, source) for key, value in plan.kwargs.items()}
        try:
            return plan.cls(**kwargs)
        except (ArithmeticError, AssertionError, ValueError) as error:
            where = f"{source}: {plan.path or plan.cls.__name__}"
            if type(error) is ValueError:  # of the class, which does not know where its params stand
                raise ConfigError(f"{where}: {error}") from error
            if isinstance(error, ValueError):  # of another file, which is named
                raise
            # what no check of the class's own foresaw
            raise ConfigError(f"{where}: cannot be made of these params ({error}); change them") from error
    if isinstance(plan, dict):
        return {key: _realise(value, source) for key, value in plan.items()}
    if isinstance(plan, (list, tuple)):
        return type(plan)(_realise(value, source) for value in plan)
    return plan


def _plan_checked(tree: Any, source: str, expected: Any) -> Any:
    faults: list[str] = []
    if not isinstance(tree, Mapping) or "target" not in tree:
        raise ConfigError(f"{source}: expected `target` and `params` at the top, found {_shown(tree)}")
    plan = _plan(tree, expected, "", faults)
    if faults:
        raise ConfigError("\n".join(f"{source}: {fault}" for fault in faults))
    return plan


def _plan(value: Any, wanted: Any, path: str, faults: list[str]) -> Any:
    """`value` as the annotation has it: list -> tuple, int -> float, node -> _Call. Faults are appended."""
    origin, args = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is typing.Annotated:
        return _plan(value, args[0], path, faults)
    if isinstance(value, Mapping) and "target" in value:
        return _plan_node(value, wanted, path, faults)
    if origin in (Union, types.UnionType):
        return _plan_union(value, args, wanted, path, faults)
    if wanted is Any or isinstance(wanted, TypeVar):
        return _plan_any(value, path, faults)
    if origin is Literal:
        if any(value == option and type(value) is type(option) for option in args):
            return value
        near = nearest(value, [a for a in args if isinstance(a, str)]) if isinstance(value, str) else ""
        faults.append(f"{path}: expected one of {', '.join(map(repr, args))}, found {_shown(value)}{near}")
        return value
    kind = origin or wanted
    if (
        isinstance(kind, type)
        and isinstance(value, (list, tuple))
        and issubclass(kind, collections.abc.Sequence)
        and kind is not str
    ):
        return _plan_sequence(value, kind, args, wanted, path, faults)
    if isinstance(kind, type) and isinstance(value, Mapping) and issubclass(kind, collections.abc.Mapping):
        inner = args[1] if len(args) == 2 else Any
        return {key: _plan(child, inner, _join(path, str(key)), faults) for key, child in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if value is None and wanted in (None, type(None)):
        return None
    fits = isinstance(kind, type) and not getattr(kind, "_is_protocol", False) and isinstance(value, kind)
    if isinstance(
        value, (bool, str)
    ):  # a bool is an int and a str is a sequence to Python, not to somebody writing YAML
        fits = kind in (type(value), object)
    if not fits:
        faults.append(f"{path}: expected {_name(wanted)}, found {_shown(value)}")
    return value


def _plan_node(node: Mapping[str, Any], wanted: Any, path: str, faults: list[str]) -> Any:
    """A `{target, params}` mapping: known name, fitting class, and params that fit its constructor."""
    for key in node:
        if key not in ("target", "params"):
            near = nearest(str(key), ["target", "params"])
            faults.append(f"{_join(path, str(key))}: unknown key{near}; a node has `target` and `params`")
    try:
        cls = registered(node["target"])
    except ConfigError as error:
        faults.append(f"{_join(path, 'target')}: {error}")
        return None
    if not _accepts(wanted, cls):
        fitting = [name for name, c in short_names().items() if _accepts(wanted, c)]
        known = f" (known: {', '.join(fitting)})" if fitting else ""
        faults.append(f"{_join(path, 'target')}: {node['target']!r} is not a {_name(wanted)}{known}")
    params = node.get("params")
    params = {} if params is None else params
    if not isinstance(params, Mapping):
        faults.append(f"{_join(path, 'params')}: expected a mapping, found {_shown(params)}")
        return None
    return _Call(cls, _plan_params(cls, params, _join(path, "params"), faults), path)


def _plan_params(cls: type, params: Mapping[str, Any], path: str, faults: list[str]) -> dict[str, Any]:
    accepted = inspect.signature(cls).parameters
    try:
        hints = typing.get_type_hints(cls.__init__)  # type: ignore[misc]
    except NameError:  # an annotation imported for type checkers only: these values cannot be checked
        hints = {}
    named = {n: p for n, p in accepted.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    planned = {}
    for key, value in params.items():
        if key in named or open_ended:
            planned[key] = _plan(value, hints.get(key, Any), _join(path, str(key)), faults)
            if fault := out_of_range(str(key), value):
                faults.append(f"{_join(path, str(key))}: {fault}")
        else:
            faults.append(f"{_join(path, str(key))}: unknown key{nearest(str(key), named)}")
    for key, parameter in named.items():
        if parameter.default is parameter.empty and key not in params:
            near = difflib.get_close_matches(key, [str(k) for k in params if k not in named], n=1)
            faults.append(f"{_join(path, key)}: missing; " + (f"is {near[0]!r} meant?" if near else "give it a value"))
    return planned


def _plan_union(value: Any, options: tuple[Any, ...], wanted: Any, path: str, faults: list[str]) -> Any:
    exact = [option for option in options if type(value) is option]  # 3 stays an int under `float | int`
    for option in (*exact, *options):
        trial: list[str] = []
        plan = _plan(value, option, path, trial)
        if not trial:
            return plan
        if not trial[0].startswith(f"{path}: "):  # the right kind, with a fault deeper inside
            faults.extend(trial)
            return value
    faults.append(f"{path}: expected {_name(wanted)}, found {_shown(value)}")
    return value


def _plan_sequence(value: Any, kind: type, args: tuple[Any, ...], wanted: Any, path: str, faults: list[str]) -> Any:
    fixed = kind is tuple and args and args[-1] is not Ellipsis
    if fixed and len(value) != len(args):
        faults.append(f"{path}: expected {_name(wanted)}, found {len(value)} values: {_shown(value)}")
        return value
    each = args if fixed else [args[0] if args else Any] * len(value)
    items = [
        _plan(child, inner, f"{path}[{i}]", faults) for i, (child, inner) in enumerate(zip(value, each, strict=True))
    ]
    return items if kind is list else tuple(items)


def _plan_any(value: Any, path: str, faults: list[str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _plan(child, Any, _join(path, str(key)), faults) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plan(child, Any, f"{path}[{i}]", faults) for i, child in enumerate(value)]
    return value


# --- words -------------------------------------------------------------------------------------------------------


def _accepts(wanted: Any, cls: type) -> bool:
    """May an instance of `cls` stand where the annotation says `wanted`? Protocols cannot be asked, so they accept."""
    origin, args = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (Union, types.UnionType):
        return any(_accepts(option, cls) for option in args)
    kind = origin or wanted
    if (
        kind is Any
        or isinstance(kind, TypeVar)
        or getattr(kind, "_is_protocol", False)
        or kind is collections.abc.Callable
    ):
        return True
    return isinstance(kind, type) and issubclass(cls, kind)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _name(wanted: Any) -> str:
    return (
        wanted.__name__
        if isinstance(wanted, type) and not typing.get_args(wanted)
        else str(wanted).replace("typing.", "")
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
