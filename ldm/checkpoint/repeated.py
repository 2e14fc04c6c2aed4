"""Tables that are mostly one row, as a vocabulary's of which captions have sixty words: a file of ours holds the
distinct rows and, for each row of the table, which of them it is."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

ROWS, WHICH = ".distinct_rows", ".which_row"  # after the table's name
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MOST = 1 << 26  # numbers of all tables, since a small file could ask for any number of them


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each table with few distinct rows as those, (D, C), and the number of each row, (R,) int16."""
    out = dict(tensors)
    for name, table in tensors.items():
        few = _few(table)
        if few and len(table[:, :4].unique(dim=0)) <= few:  # which is soon told
            rows, which = table.unique(dim=0, return_inverse=True)
            if len(rows) <= few:
                del out[name]
                out |= {name + ROWS: rows, name + WHICH: which.to(torch.int16)}
    return out


def spread(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What was `gathered`, with its tables again. ValueError for what cannot have been."""
    out, left = dict(tensors), MOST
    for name in [name.removesuffix(WHICH) for name in tensors if name.endswith(WHICH)]:
        which, rows = out.pop(name + WHICH), out.pop(name + ROWS, None)
        if rows is None or rows.ndim != 2 or which.ndim != 1 or which.dtype != torch.int16:
            raise ValueError(f"{name} is told by rows that are not there")
        left -= len(which) * rows.shape[1]
        if left < 0:
            raise ValueError(f"{name} makes tables of more than {MOST} numbers")
        if len(which) and not 0 <= which.min() <= which.max() < len(rows):
            raise ValueError(f"{name} names a row that is not among its {len(rows)}")
        out[name] = rows[which.long()]
    return out


def _few(table: Tensor) -> int:
    """Distinct rows with which it pays; 0 for what is no large table of numbers."""
    is_table = table.ndim == 2 and len(table) >= 1 << 12 and table.dtype in DTYPES
    return min(len(table) // 4, 1 << 12) if is_table else 0
