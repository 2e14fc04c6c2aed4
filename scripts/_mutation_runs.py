"""Runs of the tests against an edited file, each in a fork of a process that has collected them once."""

from __future__ import annotations
import __future__

import ast
import importlib
import inspect
import math
import os
import pickle
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from importlib.machinery import SourceFileLoader
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from _mutations import Mutant

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, FOLDER = "ldm.models.diffusion", ROOT / "ldm" / "models" / "diffusion"
TESTS = ROOT / "tests" / "models" / "diffusion"
PLUGINS = ("terminal", "cacheprovider", "xdist", "faulthandler")  # left out
MEMORY = 6 * 2**30  # bytes that a child may have

Function = tuple[str, str]
"""Path of a file, and the qualified name of a function in it."""


class Session:
    """Collects the tests of some files and hands itself to `then` instead of running them. Prints nothing."""

    def __init__(self, then: Callable[[Session], object], files: Sequence[str]) -> None:
        self.then, self.failed = then, ""
        self.items: dict[str, pytest.Item] = {}
        options = ["-o", "addopts=", "--import-mode=importlib", "--long", "-s", f"--rootdir={ROOT}"]
        options += [word for name in PLUGINS for word in ("-p", f"no:{name}")]
        code = pytest.main([*options, *(str(TESTS / file) for file in files)], plugins=[self])
        self.failed = self.failed or ("collecting the tests" if code else "")  # the name of the first test that fails

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.items = {item.nodeid: item for item in session.items}
        self.then(self)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed = self.failed or (report.nodeid if report.failed else "")

    def run(self, names: Sequence[str], seconds: dict[str, float]) -> str:
        """The name of the first that fails, or nothing. One that takes far longer than it should ends this process."""
        items = [self.items[name] for name in names if name in self.items]
        for item, after in zip_longest(items, items[1:]):
            signal.setitimer(signal.ITIMER_PROF, 10 * seconds.get(item.nodeid, 60) + 2)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
            if self.failed:
                break
        return self.failed


class Entered:
    """The functions of FOLDER that are entered while this context lasts."""

    def __enter__(self) -> set[Function]:
        self.found: set[Function] = set()
        sys.settrace(self._trace)
        return self.found

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: Any, event: str, arg: object) -> None:
        if frame.f_code.co_filename.startswith(str(FOLDER)):
            self.found.add((frame.f_code.co_filename, frame.f_code.co_qualname.split(".<locals>")[0]))


def in_child(action: Callable[..., object], *arguments: object) -> Any:
    """What it returns in a fork of this process; None where that did not come to an end."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read)
            with open(os.devnull, "w") as nothing:
                os.dup2(nothing.fileno(), 1)
                os.dup2(nothing.fileno(), 2)
                resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
                os.write(write, pickle.dumps(action(*arguments)))
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as file:
        answer = file.read()
    os.waitpid(pid, 0)
    return pickle.loads(answer) if answer else None


def measured(session: Session, names: Sequence[str]) -> dict[str, tuple[float, set[Function]]]:
    """The CPU seconds of each test on the code as it is (infinite where it fails), and what it enters."""
    found = {}
    for name in names:
        start = time.process_time()
        with Entered() as entered:
            session.run([name], {})
        found[name] = math.inf if session.failed else time.process_time() - start, entered
        session.failed = ""
    return found


def in_place(
    mutant: Mutant, tree: ast.Module, session: Session, names: Sequence[str], seconds: dict[str, float]
) -> str:
    """The test that fails once the edited function's code is in the function that everyone holds already."""
    function, name = mutant.scope or (ast.FunctionDef(), "")
    module = importlib.import_module(f"{PACKAGE}.{mutant.path.stem}")
    held: Any = module
    for part in name.split("."):
        held = inspect.unwrap(getattr(held, part))
    function.decorator_list, scope = [], dict(vars(module))
    try:
        exec(_compiled(ast.Module([function], []), mutant.path), scope)
    except Exception:  # a default that cannot be computed: nobody could import the file
        return "importing the file"
    new = scope[function.name]
    held.__code__, held.__defaults__, held.__kwdefaults__ = new.__code__, new.__defaults__, new.__kwdefaults__
    return session.run(names, seconds)


def anew(mutant: Mutant, tree: ast.Module, session: Session, names: Sequence[str], seconds: dict[str, float]) -> str:
    """The test that fails with ldm and the tests imported again, from the edited source."""
    code, original = _compiled(tree, mutant.path), SourceFileLoader.get_code

    def get_code(self: SourceFileLoader, fullname: str) -> Any:
        return code if fullname == f"{PACKAGE}.{mutant.path.stem}" else original(self, fullname)

    SourceFileLoader.get_code = get_code  # type: ignore[method-assign]
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "ldm" or str(getattr(module, "__file__", "")).startswith(str(ROOT / "tests")):
            del sys.modules[name]
    for file in dict.fromkeys(name.split("::")[0].split("/")[-1] for name in names):
        signal.setitimer(signal.ITIMER_PROF, 60)
        own = [name for name in names if f"/{file}::" in name]
        fresh = Session(lambda one, own=own: one.run(own, seconds), [file])
        if fresh.failed:
            return fresh.failed
    return ""


def _compiled(tree: ast.Module, path: Path) -> Any:
    return compile(tree, path, "exec", flags=__future__.annotations.compiler_flag, dont_inherit=True)
