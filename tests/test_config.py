from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from ldm.config import ConfigError, build, check, load_config, load_plugin, parse_config, register, registered


class Wheel:
    pass


@register("test.Round", "original.wheels.Round")
class Round(Wheel):
    def __init__(self, radius: float, spokes: int | None = None) -> None:
        self.radius, self.spokes = radius, spokes


@register("test.Car")
class Car:
    built = 0

    def __init__(
        self,
        wheel: Wheel,
        spare: Wheel | None = None,
        doors: int = 4,
        size: tuple[int, ...] | int = 1,
        pair: tuple[int, str] = (1, "a"),
        names: Sequence[str] = (),
        fuel: Literal["petrol", "none", 98] = "petrol",
        closed: bool = True,
        extra: Any = None,
        others: list[Wheel] | None = None,
        options: dict[str, float] | None = None,
    ) -> None:
        Car.built += 1
        self.__dict__.update({key: value for key, value in locals().items() if key != "self"})


def car(text: str = "", wheel: str = "{target: test.Round, params: {radius: 1}}") -> dict[str, Any]:
    return parse_config(f"target: test.Car\nparams:\n  wheel: {wheel}\n{text}", "car.yaml")


def message(tree: dict[str, Any]) -> str:
    """The error of a tree that must not be built, and of which nothing must be built."""
    before = Car.built
    with pytest.raises(ConfigError) as caught:
        build(tree, "car.yaml")
    assert Car.built == before
    return str(caught.value)


def test_values_take_the_types_of_the_constructor() -> None:
    made = build(
        car(
            "  doors: 2\n  size: [1, 2]\n  pair: [3, x]\n  names: [a, b]\n  fuel: 98\n  closed: false\n"
            "  extra: {deep: [{target: original.wheels.Round, params: {radius: 2.5, spokes: 3}}]}\n"
            "  others: [{target: test.Round, params: {radius: 1e-4}}]\n  options: {a: 1, b: 2e3}\n  spare: null"
        )
    )
    assert isinstance(made.wheel, Round) and made.wheel.radius == 1.0 and type(made.wheel.radius) is float
    assert (made.doors, made.size, made.pair, made.names) == (2, (1, 2), (3, "x"), ("a", "b"))
    assert (made.fuel, made.closed, made.spare, made.options) == (98, False, None, {"a": 1.0, "b": 2000.0})
    assert made.extra["deep"][0].spokes == 3 and made.others[0].radius == 1e-4
    assert build(car("  size: 7")).size == 7


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("  door: 2", "car.yaml: params.door: unknown key, did you mean 'doors'?"),
        ("  zzz: 2", "params.zzz: unknown key (known: closed, doors, extra"),
        ("  doors: two", "params.doors: expected int, found str 'two'"),
        ("  doors: 2.5", "params.doors: expected int, found float 2.5"),
        ("  doors: true", "params.doors: expected int, found bool True"),
        ("  doors: null", "params.doors: expected int, found NoneType None"),
        ("  closed: 1", "params.closed: expected bool, found int 1"),
        ("  size: [1, x]", "params.size[1]: expected int, found str 'x'"),
        ("  size: 1.5", "params.size: expected tuple[int, ...] | int, found float 1.5"),
        ("  pair: [1]", "params.pair: expected tuple[int, str], found 1 values"),
        ("  names: abc", "params.names: expected collections.abc.Sequence[str], found str 'abc'"),
        (
            "  fuel: petrl",
            "params.fuel: expected one of 'petrol', 'none', 98, found str 'petrl', did you mean 'petrol'?",
        ),
        ("  spare: 3", "params.spare: expected"),
        ("  options: {a: b}", "params.options.a: expected float, found str 'b'"),
        ("  spare: {target: test.Car}", "params.spare.target: 'test.Car' is not a"),
        ("  spare: {target: test.Rond}", "params.spare.target: unknown target 'test.Rond', did you mean 'test.Round'?"),
        ("  spare: {target: os.system, params: {command: id}}", "unknown target 'os.system'"),
        ("  spare: {target: [1]}", "unknown target [1]"),
        ("  spare: {target: test.Round, params: 3}", "params.spare.params: expected a mapping, found int 3"),
        ("  spare: {target: test.Round, param: {}}", "params.spare.param: unknown key, did you mean 'params'?"),
        ("  extra: {a: {target: nothing}}", "params.extra.a.target: unknown target 'nothing'"),
        ("  others: [{target: test.Round, params: {}}]", "params.others[0].params.radius: missing"),
        (
            "  spare: {target: test.Round, params: {raduis: 1}}",
            "params.spare.params.radius: missing; is 'raduis' meant?",
        ),
    ],
)
def test_one_fault_is_named_with_its_path(text: str, words: str) -> None:
    assert words in message(car(text))


def test_all_faults_come_in_one_error() -> None:
    lines = message(car("  door: 2\n  size: x", wheel="{target: test.Round}")).splitlines()
    assert len(lines) == 3 and all(line.startswith("car.yaml: params.") for line in lines)


def test_check_builds_nothing_and_the_root_has_a_class() -> None:
    before = Car.built
    check(car())
    assert Car.built == before
    with pytest.raises(ConfigError, match="target: 'test.Car' is not a Wheel"):
        check(car(), expected=Wheel)


def test_names_are_a_closed_set() -> None:
    assert registered("original.wheels.Round") is Round is registered("test.Round")
    with pytest.raises(ConfigError, match="unknown target 'collections.OrderedDict'"):
        registered("collections.OrderedDict")
    with pytest.raises(ValueError, match="already registered"):
        register("test.Round")(Car)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: ${oc.env:HOME}", "a: '${oc.env:HOME}' is refused"),
        ("a: x${b}\nb: 1", "refused"),
        ("a: ${${b}}\nb: c", "refused"),
        ("a: [{b: '${oc.decode:x}'}]", "a[0].b: '${oc.decode:x}' is refused"),
        ("${oc.env:HOME}: 1", "refused"),
        ("a: ${b}\nb: {c: 1}", "a: ${b} is not the path of a single value"),
        ("a: ${nothing}", "a: ${nothing} is not the path of a single value"),
        ("a: ${b}\nb: ${a}", "not readable as YAML"),
        ("a: &x [1]\nb: *x", "anchors are not read"),
        ("a: 1\na: 2", "found duplicate key a"),
        ("a: [1", "not readable as YAML"),
        ("!!python/object/apply:os.system ['id']", "not readable as YAML"),
        ("a: !!python/name:os.system", "not readable as YAML"),
        ("just words", "expected"),
        ("[1, 2]", "expected a mapping"),
        ("7", "not readable"),
        ("", "expected"),
        ("a: " + "[" * 300, "nested deeper than 50 levels"),
        ("a: ???", "not readable as YAML"),
    ],
)
def test_files_that_are_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(parse_config(text, "bad.yaml"), "bad.yaml")
    assert str(caught.value).startswith("bad.yaml: ") and words in str(caught.value)


def test_numbers_and_references() -> None:
    tree = parse_config("a: 1e-4\nb: ${c.d}\nc: {d: 1e3}\ne: 0.1\nf: '1e-4'\ng: ['${a}']")
    assert tree == {"a": 1e-4, "b": 1000.0, "c": {"d": 1000.0}, "e": 0.1, "f": "1e-4", "g": [1e-4]}


def test_reading_a_file(tmp_path: Path) -> None:
    path = tmp_path / "car.yaml"
    path.write_text("target: test.Round\nparams: {radius: 2}")
    assert build(load_config(path)).radius == 2.0
    for missing in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read as a config"):
            load_config(missing)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read as a config"):
        load_config(path)
    path.write_bytes(b"a: 1\n" * 300_000)
    with pytest.raises(ConfigError, match="larger than"):
        load_config(path)


def test_plugin(tmp_path: Path) -> None:
    path = tmp_path / "my_wheel.py"
    path.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom ldm.config import register\n"
        "@register('test.Square')\n@dataclass\nclass Square:\n    side: int\n"
    )
    with pytest.raises(ConfigError, match="unknown target"):
        registered("test.Square")
    load_plugin(path)
    assert build({"target": "test.Square", "params": {"side": 3}}).side == 3
    assert "expected int" in message({"target": "test.Square", "params": {"side": "x"}})
    load_plugin(path)  # again, as from a notebook


def test_plugin_faults(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.py: a plugin must be an existing \.py file"):
        load_plugin(tmp_path / "none.py")
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(ConfigError, match=r"broken.py: the plugin failed with ZeroDivisionError"):
        load_plugin(tmp_path / "broken.py")
