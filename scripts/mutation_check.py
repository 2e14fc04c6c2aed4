"""Do the tests of the samplers notice small wrong edits? Each is made, one at a time, and the tests are run against it.

    python scripts/mutation_check.py                            # samplers, step, schedule, spacing, levels, denoiser
    python scripts/mutation_check.py step.py ddim.py --survivors
    python scripts/mutation_check.py --sample 100               # so many of them, the same ones for the same --seed

Edits are those of _mutations.py: operators, comparisons, constants, conditions, calls, keywords and statements; not
docstrings, annotations or error messages. An edit is killed if a test fails with it, or runs out of time or memory.

The tests are collected once. For each edit this process forks; the child puts the edited code into the function that
everyone holds already, and runs the tests that enter it, beginning with those that noticed most. Edits outside of
functions, and of functions that run while tests are imported, take longer: there the child imports ldm and the tests
anew, from the edited source.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import _installed  # noqa: F401
import torch
from _ending import ended
from _mutation_runs import FOLDER, ROOT, TESTS, Entered, Function, Session, anew, in_child, in_place, measured
from _mutations import mutants

from ldm.files import check_writable, write_text

LEFT_OUT = ("__init__", "guidance", "corrections", "prompted", "tiles")
FILES = tuple(sorted(path.name for path in FOLDER.glob("*.py") if path.stem not in LEFT_OUT))
NOT_RUN = ("test_guidance.py", "test_corrections.py", "test_tiles.py", "test_gradients.py")  # of other files, or slow
SLOW = (  # parts of names of tests that are left out, too: others notice the same
    "every_number_of_steps",
    "every_n",
    "every_schedule",
    "test_order",
    "what_is_asked",
    "gradients_agree",
    "round_trip",
    "first_order",
    "ancestral_dpm_solvers_keep",
    "depend_on_the_ends_alone",
    "mean_and_covariance",
    "two_draws",
    "few_steps_are_known",
    "variance_of_samples",
    "one_picture",
    "alone_and_in_a_batch",
    "changes_no_bit",
    "no_digits",
    "of_diffusers",
    "diffusers_dpm",
    "keeps_its_tolerance",
    "churn_keeps",
    "forgets_the_start",
)


def check(session: Session, options: argparse.Namespace, imported: set[Function]) -> list[dict[str, Any]]:
    """A row for each mutant: where and what it is, and the test that noticed it, if any did."""
    tests = in_child(measured, session, [name for name in session.items if not any(slow in name for slow in SLOW)])
    seconds = {name: one for name, (one, _) in tests.items()}
    if math.inf in seconds.values():
        session.failed = next(name for name, one in seconds.items() if one == math.inf)
        return []
    found = [(tree, mutant) for name in options.files for tree, many in [mutants(FOLDER / name)] for mutant in many]
    if options.sample is not None:
        found = random.Random(options.seed).sample(found, min(options.sample, len(found)))
    noticed: Counter[tuple[str, str]] = Counter()  # (where, test) → how often
    rows = []
    for tree, mutant in found:
        function, file = (str(mutant.path), mutant.scope[1] if mutant.scope else ""), mutant.path.name
        whole = mutant.scope is None or function in imported
        order = {name: (-noticed[function[1], name], -noticed[file, name], seconds[name]) for name in seconds}
        entering = (name for name in order if whole or function in tests[name][1])
        names = _within(options.budget, sorted(entering, key=lambda name: order[name]), seconds)
        old = mutant.swap(mutant.new)
        by = in_child(anew if whole else in_place, mutant, tree, session, names, seconds)
        mutant.swap(old)
        by = "time or memory" if by is None else by
        noticed.update([(function[1], by), (file, by)])
        rows.append({"file": file, "line": mutant.line, "before": mutant.before, "after": mutant.after, "by": by})
        if options.json:  # as they come: it may be read, or this be stopped, before the end
            write_text(options.json, json.dumps(rows, indent=1, ensure_ascii=False))
        if options.survivors and not by:
            print(f"{file}:{mutant.line}: {_line(mutant.before)} → {_line(mutant.after)}", flush=True)
    return rows


def _within(budget: float, names: Sequence[str], seconds: dict[str, float]) -> Sequence[str]:
    """Of them as many, from the first on, as take no longer than that."""
    ends = accumulate(seconds[name] for name in names)
    return [name for name, end in zip(names, ends, strict=True) if end <= budget]


def _line(code: str) -> str:
    return " ".join(code.split())


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["| file | mutants | killed | survived | killed, % |", "| --- | ---: | ---: | ---: | ---: |"]
    for name in (*sorted({row["file"] for row in rows}), "all"):
        own = [row for row in rows if name in (row["file"], "all")]
        killed = sum(1 for row in own if row["by"])
        lines.append(f"| {name} | {len(own)} | {killed} | {len(own) - killed} | {100 * killed / len(own):.1f} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="FILE", help=f"of {', '.join(FILES)} (default: all)")
    every = sorted(path.name for path in TESTS.glob("test_*.py") if path.name not in NOT_RUN)
    parser.add_argument(
        "--tests", nargs="+", choices=every, default=every, metavar="FILE", help="of tests (default: all)"
    )
    parser.add_argument("--sample", type=int, metavar="N", help="so many mutants, drawn by --seed (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--budget", type=float, default=2.0, metavar="S", help="CPU seconds of tests for one (%(default)s)"
    )
    parser.add_argument("--survivors", action="store_true", help="print those that no test notices")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every mutant and the test that noticed it")
    options = parser.parse_args()
    if unknown := [name for name in options.files if name not in FILES]:
        parser.error(f"{unknown[0]} is none of {', '.join(FILES)}")
    options.files, options.json = options.files or FILES, options.json and options.json.resolve()
    if options.json is not None:
        check_writable(options.json)
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    entering = Entered()
    imported = entering.__enter__()  # until the tests are collected

    def begin(session: Session) -> None:
        entering.__exit__()
        rows.extend(check(session, options, imported))

    failed = Session(begin, options.tests).failed
    if failed or not rows:
        print(f"error: {failed or 'running the tests'} fails on the code as it is; mend that first", file=sys.stderr)
        return 2
    print(table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(ended(main))
