"""The short form of scripts/fuzz.py: a few spoiled files for each parser, and all that once were found."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

TESTS = Path(__file__).parents[1]
PARSERS = ("safetensors", "checkpoint", "config", "picture", "prompt", "prompt file", "keys", "manifest")
FOUND = sorted(path for path in (TESTS / "fuzzed").rglob("*") if path.is_file())
FEW = settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", PARSERS)
def test_spoiled_files_are_read_or_refused(name: str, tmp_path: Path) -> None:
    from _fuzz.parsers import PARSERS as KNOWN
    from _fuzz.runner import fault

    assert tuple(KNOWN) == PARSERS
    cases = KNOWN[name].cases()
    seen: list[str | None] = []

    @FEW
    @given(cases)
    def look(case: bytes) -> None:
        seen.append(fault(KNOWN[name], case, tmp_path))
        assert seen[-1] in ((None, "refused") if name != "prompt" else (None,))

    look()
    assert len(seen) >= 20 and (None if name == "prompt" else "refused") in seen


@pytest.mark.parametrize("path", FOUND, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_was_found_stays_mended(path: Path, tmp_path: Path) -> None:
    from _fuzz.parsers import PARSERS as KNOWN
    from _fuzz.runner import fault

    parser = KNOWN[path.parent.name.replace("-", " ")]
    assert fault(parser, path.read_bytes(), tmp_path) == "refused"


def test_it_finds_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from _fuzz import runner
    from _fuzz.parsers import Parser

    def read(path: Path) -> None:
        text = path.read_text()
        if text == "named":
            raise ValueError(f"{path}: is wrong; mend it")
        if text == "unnamed":
            raise ValueError("is wrong")
        if text == "asleep":
            time.sleep(60)
        json.loads("{")  # the library's own words

    monkeypatch.setattr(runner, "LIMIT", 1)
    parser = Parser("words", "a.txt", lambda: st.just(b""), read)
    said = [runner.fault(parser, word, tmp_path) for word in (b"named", b"unnamed", b"asleep", b"other")]
    assert said[0] == "refused" and said[2] == "takes longer than 1 s"
    assert "not a sentence that names the file: ValueError" in str(said[1]) and "JSONDecodeError" in str(said[3])
    strict = Parser("words", "a.txt", lambda: st.just(b""), read, refuses=False)
    assert "ValueError" in str(runner.fault(strict, b"named", tmp_path))


def test_a_finding_is_kept_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from _fuzz import runner
    from _fuzz.parsers import Parser
    from _fuzz.runner import Bench

    def read(path: Path) -> None:
        if b"!" in path.read_bytes():
            raise KeyError("!")

    parser = Parser("words", "a.txt", lambda: st.binary(max_size=3).map(lambda some: some + b"!"), read)
    monkeypatch.setattr(runner, "ROUND", 20)
    (tmp_path / "here").mkdir()
    found = Bench(tmp_path / "here", tmp_path / "kept").run(parser, 0.3, 0)
    assert found["cases"] > 0 and [why.split(" at ")[0] for why in found["findings"]] == ["KeyError"]
    assert (tmp_path / "kept/words/1").read_bytes() == b"!"  # made as small as it gets
