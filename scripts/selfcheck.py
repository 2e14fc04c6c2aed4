"""Bad input of every kind, given to the real command line: is each refused in one sentence, with nothing written?

A case is handled if it ends with exit status 2 (1 for a failure) and one sentence that names culprit and remedy, no
traceback, nothing written or changed; odd input that is good must be drawn. Exit status 1 if any case is not handled.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import _installed  # noqa: F401
from _ending import ended

KINDS = ("handled", "not handled", "accepted but wrong")


def main(argv: Sequence[str] | None = None) -> int:
    from _selfcheck import checkpoints, configs, options, paths, pictures, prompt_files, prompts

    tables = {table.NAME: table for table in (checkpoints, configs, pictures, options, prompts, paths, prompt_files)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[*tables], help="one class (default: all)")
    parser.add_argument("--every", type=int, default=1, help="only each N-th case (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print every case as JSON instead of a table")
    asked = parser.parse_args(argv)
    if asked.every < 1:
        print(f"error: --every is {asked.every}; give 1 or more", file=sys.stderr)
        return 2
    chosen = {name: table for name, table in tables.items() if asked.only in (None, name)}
    rows = list(run({name: list(table.cases())[:: asked.every] for name, table in chosen.items()}))
    print(json.dumps({"cases": rows, "counts": counts(rows)}, indent=1) if asked.json else table_of(rows))
    return int(any(row["verdict"] != KINDS[0] for row in rows))


def run(classes: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    from _selfcheck.runner import Bench

    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name))
        for kind, cases in classes.items():
            for case in cases:
                found = bench.run(case)
                row = {"class": kind, "case": case.name, "verdict": found.kind, "why": found.why}
                yield row | {"status": found.status, "said": found.said}


def counts(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """By class, how many cases of each verdict."""
    found = {name: Counter(row["verdict"] for row in rows if row["class"] == name) for name in class_names(rows)}
    return {name: {kind: count[kind] for kind in KINDS} for name, count in found.items()}


def class_names(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["class"] for row in rows))


def table_of(rows: Sequence[dict[str, Any]]) -> str:
    lines = [f"{'':<24}" + "".join(f"{kind:>20}" for kind in KINDS)]
    found = counts(rows)
    total = {kind: sum(count[kind] for count in found.values()) for kind in KINDS}
    lines += [
        f"{name:<24}" + "".join(f"{n:>20}" for n in count.values()) for name, count in {**found, "": total}.items()
    ]
    bad = [row for row in rows if row["verdict"] != KINDS[0]]
    lines += [f"{row['class']}: {row['case']}: {row['verdict']}: {row['why']}\n    {row['said'][-300:]}" for row in bad]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(ended(main))
