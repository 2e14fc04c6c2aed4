"""Spoil good files, and look at how each parser takes them: fuzz.py [PARSER …] --seconds 60. Without a name, all.

A case is handled if it is read, or refused by a ValueError of one sentence that names the file; within seconds, and
within 2 GB of memory more than before. A prompt is never refused. Edits know the structure: bits and pieces of bytes,
nodes of trees, operations of pickles, chunks, under lengths and checksums that are right. Exit status 1 if there was
any finding.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import _installed  # noqa: F401
from _ending import ended

from ldm.files import usable_folder


def main(argv: Sequence[str] | None = None) -> int:
    from _fuzz.parsers import PARSERS
    from _fuzz.runner import Bench

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parsers", nargs="*", metavar="PARSER", help=f"of {', '.join(PARSERS)} (default: all)")
    parser.add_argument("--seconds", type=float, default=60, help="for each (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="write the case of each finding there, made small")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(argv)
    if unknown := [name for name in options.parsers if name not in PARSERS]:
        print(f"error: {unknown[0]} is none of {', '.join(PARSERS)}; name one of them", file=sys.stderr)
        return 2
    if options.keep is not None:
        usable_folder(options.keep)
    found = {}
    shared = "/dev/shm" if Path("/dev/shm").is_dir() else None  # a file system in memory, where a sync costs nothing
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        bench = Bench(Path(folder), options.keep)
        for name in options.parsers or PARSERS:
            found[name] = bench.run(PARSERS[name], options.seconds, options.seed)
            if not options.json:
                print(f"{name:<14}{found[name]['cases']:>8} cases{found[name]['read']:>8} read", end="")
                print(f"{found[name]['refused']:>8} refused{len(found[name]['findings']):>4} findings", flush=True)
                print("".join(f"    {why}\n" for why in found[name]["findings"]), end="", flush=True)
    if options.json:
        print(json.dumps(found, indent=1))
    return int(any(row["findings"] for row in found.values()))


if __name__ == "__main__":
    raise SystemExit(ended(main))
