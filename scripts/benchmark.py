"""How fast, and in how much memory, against `diffusers`: benchmark.py ROW…, or --all. Without a row it lists them.

Every row runs in a process of its own that holds both sides: the same weights (random ones, nothing is downloaded) and
the same inputs, called in turns, the median of --rounds after a warm-up. Ratios are theirs over ours: above 1, ours is
faster. "floor" is what the operations take at the rate of torch.matmul here, or the bytes at that of a copy.
A row's lines are printed when it is measured; with --out they are kept, and the same command goes on after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import _installed  # noqa: F401
from _bench import files, gpu, gpu_pictures, networks, peaks, pipelines, scaling, startup, training  # noqa: F401  (each adds its rows)
from _bench.harness import ROWS, Bench, Line
from _bench.machine import describe, has_gpu
from _ending import ended

from ldm.files import check_writable, usable_folder, write_text

HEAD = ("row", "what, against what", "ours", "theirs", "ratio", "must show", "floor", "error")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="without one, they are listed")
    parser.add_argument("--all", action="store_true", help="every row, those of a GPU where there is one")
    parser.add_argument("--rounds", type=int, default=3, help="of which the median counts (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where files of weights are kept (default: nowhere; up to 7 GB)")
    parser.add_argument("--file", type=Path, help="load: your checkpoint, instead of one of random weights")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="scaling: the picture of it, where matplotlib is")
    parser.add_argument("--tiny", action="store_true", help="few channels and steps: do the rows run? Seconds each")
    parser.add_argument(
        "--out", type=Path, metavar="JSON", help="keep the rows there; those it has are not measured again"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(argv)
    rows = sorted(ROWS.values(), key=lambda row: row.gpu)
    names = [row.name for row in rows] if options.all else options.rows
    if not names:
        print("\n".join(f"{row.name:22} {row.about}" for row in rows))
        return 0
    try:
        check(names, options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as temporary:
        folder = usable_folder(temporary if options.folder is None else options.folder)
        bench = Bench(folder, options.rounds, options.tiny, options.plot, options.file)
        try:
            return report(names, bench, options.json, options.out)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print(f"stopped{'' if options.out is None else '; the same command goes on'}", file=sys.stderr)
            return 130


def check(names: Sequence[str], options: argparse.Namespace) -> None:
    """ValueError for a row that is none, and for options that measure nothing."""
    for name in names:
        if name not in ROWS:
            raise ValueError(f"there is no row {name!r}; there are {', '.join(ROWS)}")
    if options.rounds < 1:
        raise ValueError(f"--rounds {options.rounds} measures nothing; give 1 or more")
    if options.file is not None and not options.file.is_file():
        raise ValueError(f"--file {options.file}: there is no such file; name a .safetensors file")
    for path in (options.out, options.plot):
        if path is not None:
            check_writable(path)


Found = dict[str, list[Line]]


def report(names: Sequence[str], bench: Bench, as_json: bool, out: Path | None = None) -> int:
    """Print each row as soon as it is measured, and keep it; 1 if one of them failed."""
    about = bench.alone(describe) | bench.told
    kept = {} if out is None else kept_rows(out, about)
    found: Found = {}
    if not as_json:
        print("\n".join(f"{key}: {value}" for key, value in about.items()) + "\n\n" + head(), flush=True)
    for name in names:
        found[name] = kept[name] if name in kept else measured(name, bench)
        if out is not None:
            write_text(out, as_text(about, kept | found))
        if not as_json:
            print("\n".join(table_row(name, line) for line in found[name]), flush=True)
    if as_json:
        print(as_text(about, found))
    return int(any(has_failed(lines) for lines in found.values()))


def as_text(about: dict[str, str], found: Found) -> str:
    rows = {
        name: [asdict(line) | {"ratio": line.shown, "met": line.met} for line in lines] for name, lines in found.items()
    }
    return json.dumps({"machine": about, "rows": rows}, indent=2)


def kept_rows(out: Path, about: dict[str, str]) -> Found:
    """The rows of an earlier run, but for those that failed. ValueError if it was elsewhere, or of another commit."""
    if not out.exists():
        return {}
    try:
        tree: dict[str, Any] = json.loads(out.read_text())
        names = {field.name for field in fields(Line)}
        rows = {
            name: [Line(**{key: value for key, value in line.items() if key in names}) for line in lines]
            for name, lines in tree["rows"].items()
        }
        machine = tree["machine"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"--out {out}: not a file of this command; name another") from error
    if machine != about:
        other = next(key for key in about | machine if machine.get(key) != about.get(key))
        raise ValueError(f"--out {out}: its rows are of another {other}, {machine.get(other)}; name another file")
    return {name: lines for name, lines in rows.items() if not has_failed(lines)}


FAILED = "failed"


def has_failed(lines: Sequence[Line]) -> bool:
    return any(line.what == FAILED for line in lines)


def measured(name: str, bench: Bench) -> list[Line]:
    """The row's lines, out of a process of its own; one that says why, where it cannot run."""
    if ROWS[name].gpu and not bench.alone(has_gpu):
        return [Line(ROWS[name].about, note="not measured")]
    try:
        lines: list[Line] = bench.alone(collect, name, bench)
        return lines
    except Exception as error:  # of a row, which may be another library's: the next ones are still measured
        return [Line(FAILED, note=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")]


def collect(name: str, bench: Bench) -> list[Line]:
    return list(ROWS[name].measure(bench))


# --- the table ---------------------------------------------------------------------------------------------------


def head() -> str:
    return f"| {' | '.join(HEAD)} |\n| --- | --- {'| ---: ' * (len(HEAD) - 2)}|"


def table_row(name: str, line: Line) -> str:
    if line.note and line.ours is None and line.shown is None:
        return f"| {name} | {line.what}: {line.note} {'| ' * (len(HEAD) - 1)}".rstrip()
    must = line.must.replace(">=", "≥").replace("<=", "≤")
    met = {True: " yes", False: " **no**", None: ""}[line.met]
    cells = [
        name,
        f"{line.what} ({line.note})" if line.note else line.what,
        amount(line.ours, line.unit),
        amount(line.theirs, line.unit),
        "" if line.shown is None else f"{line.shown:.2g}" if line.shown < 0.01 else f"{line.shown:.2f}",
        must + met,
        amount(line.floor, line.unit),
        "" if line.error is None else f"{line.error:.1e}",
    ]
    return f"| {' | '.join(cells)} |"


def amount(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    if unit == "s":
        return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.2f} s"
    return f"{value:.2f} {unit}"


if __name__ == "__main__":
    raise SystemExit(ended(main))
