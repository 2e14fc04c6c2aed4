"""That mutants are the edits they say they are, and that a child runs with one while this process does not."""

from __future__ import annotations

import ast
import time
from pathlib import Path

import pytest
from _mutation_runs import FOLDER, anew, in_child, in_place
from _mutations import Mutant, mutants

SOURCE = '''
"""Words."""
N = 3

def f(a: int = 2, b: float = 0.5) -> float:
    """Words."""
    if not a:
        raise ValueError(f"a is {a + 1}")
    a = min(a, N)
    return -a + b
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file.py"
    path.write_text(SOURCE)
    return path


def test_the_mutants_of_a_file(file):
    found = {(one.line, one.before.splitlines()[0], one.after.splitlines()[0]) for one in mutants(file)[1]}
    assert found == {
        (3, "3", "4"),
        (5, "2", "3"),
        (5, "0.5", "0.55"),
        (7, "if not a:", "if not not a:"),
        (7, "not a", "a"),
        (9, "a = min(a, N)", "pass"),  # a has another value without it
        (9, "min(a, N)", "max(a, N)"),
        (10, "return -a + b", "return None"),
        (10, "-a + b", "-a - b"),
        (10, "-a", "a"),
    }


def test_an_edit_is_there_and_gone_again(file):
    tree, many = mutants(file)
    texts = set()
    for mutant in many:
        old = mutant.swap(mutant.new)
        texts.add(ast.unparse(tree))
        mutant.swap(old)
        assert ast.unparse(tree) == ast.unparse(ast.parse(SOURCE))
    assert len(texts) == len(many)


class Asking:
    """Stands for the tests: what they find is what the edited function answers."""

    failed = ""

    def run(self, names: list[str], seconds: dict[str, float]) -> str:
        from ldm.models.diffusion.step import move, split

        return f"{move(6.0, 2.0, 4.0, 1.0)} {split(5.0, 4.0, 1.0)[1]:.1f}"


def of_move(after: str) -> tuple[ast.Module, Mutant]:
    tree, many = mutants(FOLDER / "step.py")
    (mutant,) = (one for one in many if one.scope and one.scope[1] == "move" and one.after == after)
    return tree, mutant


def test_a_child_runs_with_the_edited_function():
    tree, mutant = of_move("sigma_next * sigma")
    old = mutant.swap(mutant.new)
    assert Asking().run([], {}) == in_child(Asking().run, [], {}) == "3.0 2.4"
    assert in_child(in_place, mutant, tree, Asking(), [], {}) == "18.0 2.4"
    mutant.swap(old)
    assert in_child(in_place, mutant, tree, Asking(), [], {}) == Asking().run([], {}) == "3.0 2.4"


def test_a_child_imports_the_edited_file(monkeypatch):
    tree, mutant = of_move("sigma_next * sigma")
    mutant.swap(mutant.new)
    monkeypatch.setattr("_mutation_runs.Session", lambda then, files: type("", (), {"failed": then(Asking())}))
    assert in_child(anew, mutant, tree, None, ["tests/models/diffusion/test_samplers.py::test_x"], {}) == "18.0 2.4"
    assert Asking().run([], {}) == "3.0 2.4"


def test_a_child_that_fails_or_does_not_end_is_none():
    assert in_child(lambda: 1 / 0) is None

    def endless() -> None:
        import signal

        signal.setitimer(signal.ITIMER_PROF, 0.05)
        while True:
            pass

    start = time.process_time()
    assert in_child(endless) is None
    assert time.process_time() - start < 5  # it was the child's
