"""The moves of ``host.py`` for the jit column: those that touch every number run on all threads."""

from __future__ import annotations

from typing import Any

import numpy as np

from refvt.array import Array
from refvt.backends.jit.compile import kernel
from refvt.backends.jit.matmul import affine
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
    "copied",
    "fill",
    "frames_to_patches",
    "from_numpy",
    "join_columns",
    "join_rows",
    "matmul",
    "on_device",
    "scaled",
    "session",
    "take",
    "take_patches",
    "to_numpy",
    "wait",
    "write",
    "zeros",
]

keep_freed_memory()

NUMBERS = 1 << 16  # of a task: nothing here but reading and writing


@kernel
def _add(ticket: Any, a: Array, b: Array, parts: int, total: Array) -> None:
    i = next_tile(ticket)
    while i >= 0:
        first, last = span(i, parts, len(total))
        x, y, z = a[first:last], b[first:last], total[first:last]
        for j in range(len(z)):
            z[j] = x[j] + y[j]
        i = next_tile(ticket)


def add(*terms: Array | None) -> Array:
    """The sum of those terms that are not None (at least one must be)."""
    present = [term for term in terms if term is not None]
    total = present[0]
    for term in present[1:]:
        if not (total.flags.c_contiguous and term.flags.c_contiguous and total.shape == term.shape):
            total = total + term
            continue
        more = np.empty(total.shape, total.dtype)
        parts = -(-total.size // NUMBERS)
        run(_add, parts, total.reshape(-1), term.reshape(-1), parts, more.reshape(-1))
        total = more
    return total


@kernel
def _scaled(ticket: Any, x: Array, gain: Array | None, parts: int, y: Array) -> None:
    i = next_tile(ticket)
    while i >= 0:
        first, last = span(i, parts, len(x))
        for r in range(first, last):
            row, place = x[r], y[r]
            factor = x.dtype.type(1)
            if gain is not None:
                factor = gain[r]
            for j in range(len(row)):
                place[j] = factor * row[j]
        i = next_tile(ticket)


def scaled(x: Array, gain: Array | None) -> Array:
    """gain · x row by row, x [n, D], gain [n]; a plain copy without one."""
    y = np.empty(x.shape, x.dtype)
    parts = -(-x.size // NUMBERS)
    run(_scaled, parts, x, None if gain is None else np.array(gain), parts, y)
    return y


def matmul(a: Array, b: Array) -> Array:
    """a b, of two weights: the weight of b followed by a."""
    return affine(a, b.T)


def copied(x: Array) -> Array:
    """A copy of x [n, D]."""
    return scaled(x, None)
