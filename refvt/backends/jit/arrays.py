"""The array functions of the jit backend: those of the reference; what touches every number runs on all threads."""

from __future__ import annotations

from typing import Any

import numpy as np

from refvt.array import Array
from refvt.backends.jit.kernel import kernel
from refvt.backends.jit.layouts import contiguous
from refvt.backends.jit.matmul import linear_tiles
from refvt.backends.jit.threads import next_tile, run, session, span
from refvt.backends.jit.workspace import keep_freed_memory
from refvt.backends.reference.arrays import (
    IN_MAIN_MEMORY,
    GraphCache,
    add_scaled,
    add_to_column,
    check_clips,
    column,
    columns,
    fill,
    frames_to_patches,
    from_numpy,
    join_columns,
    join_rows,
    on_device,
    take,
    take_patches,
    to_numpy,
    wait,
    write,
    zeros,
)

__all__ = [
    "IN_MAIN_MEMORY",
    "GraphCache",
    "add",
    "add_scaled",
    "add_to_column",
    "check_clips",
    "column",
    "columns",
    "copy",
    "fill",
    "frames_to_patches",
    "from_numpy",
    "join_columns",
    "join_rows",
    "matmul",
    "on_device",
    "scale_rows",
    "session",
    "take",
    "take_patches",
    "to_numpy",
    "wait",
    "write",
    "zeros",
]

keep_freed_memory()

NUMBERS = 1 << 16  # numbers of a tile: nothing is done here but reading and writing


@kernel
def _add(ticket: Any, a: Array, b: Array, parts: int, total: Array) -> None:
    """total ← a + b, all [numbers]; a tile is one of ``parts`` spans."""
    i = next_tile(ticket)
    while i >= 0:
        first, last = span(i, parts, len(total))
        x, y, z = a[first:last], b[first:last], total[first:last]
        for j in range(len(z)):
            z[j] = x[j] + y[j]
        i = next_tile(ticket)


def add(*terms: Array | None) -> Array:
    """The sum of the terms that are not None, of one shape; at least one must be given."""
    present = [term for term in terms if term is not None]
    total = present[0]
    for term in present[1:]:
        if total.shape != term.shape:
            total = total + term
            continue
        more = np.empty(total.shape, total.dtype)
        parts = -(-total.size // NUMBERS)
        run(_add, parts, contiguous(total).reshape(-1), contiguous(term).reshape(-1), parts, more.reshape(-1))
        total = more
    return total


@kernel
def _scale_rows(ticket: Any, x: Array, gain: Array | None, parts: int, y: Array) -> None:
    """y ← gain · x row by row; x, y [n, D], gain [n] or None (1); a tile is one of ``parts`` spans of the rows."""
    i = next_tile(ticket)
    while i >= 0:
        first, last = span(i, parts, len(x))
        for r in range(first, last):
            row, target = x[r], y[r]
            factor = x.dtype.type(1)
            if gain is not None:
                factor = gain[r]
            for j in range(len(row)):
                target[j] = factor * row[j]
        i = next_tile(ticket)


def scale_rows(x: Array, gain: Array | None) -> Array:
    """gain · x, row by row; x [n, D], gain [n] → [n, D]. Without a gain it is a copy."""
    x, y = contiguous(x), np.empty(x.shape, x.dtype)
    parts = -(-x.size // NUMBERS)
    run(_scale_rows, parts, x, None if gain is None else contiguous(gain), parts, y)
    return y


def matmul(a: Array, b: Array) -> Array:
    """The matrix product a b of two weights [D, E] and [E, F] → [D, F]: the weight of b followed by a."""
    return linear_tiles(a, b.T)


def copy(x: Array) -> Array:
    """A copy of x [n, D], contiguous."""
    return scale_rows(x, None)
