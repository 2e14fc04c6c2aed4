"""What is in a checkpoint: its family, parts, dtypes, EMA copies, broken numbers, and the config that describes it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import _installed  # noqa: F401
from _ending import ended


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", help="a .safetensors or .ckpt file, or a diffusers folder")
    parser.add_argument("--variant", help="which files of a folder, e.g. fp16 (default: the plain ones)")
    parser.add_argument(
        "--no-probe",
        dest="probe",
        action="store_false",
        help="of an SD 2 file that does not say, don't ask the network whether it predicts eps or v (it takes seconds, "
        "and memory for the model)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(argv)
    from ldm.checkpoint.report import report  # torch from here on

    try:
        found = report(options.file, options.variant, ask=options.probe)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(found, indent=2) if options.json else "\n".join(lines(found)))
    return 0


def lines(found: dict[str, Any]) -> list[str]:
    """A row for everything that is known; of long lists the beginning."""
    rows = []
    for name, value in found.items():
        if isinstance(value, dict):
            value = [f"{count} {kind}" for kind, count in value.items()]
        if isinstance(value, list):
            value = ", ".join(value[:5]) + (f", … ({len(value)})" if len(value) > 5 else "") or "none"
        if isinstance(value, bool):
            value = "yes" if value else "no"
        rows.append(f"{name:<17} {'not known' if value is None else value}")
    return rows


if __name__ == "__main__":
    raise SystemExit(ended(main))
