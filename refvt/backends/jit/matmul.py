"""The matrix products every layer is made of, out of tiles: ``x Wᵀ`` with its epilogue, and a weight's gradient.

A task is some rows and some columns of the result. Its columns of the one factor are packed in panels as wide as a
tile, unless its thread has them from the task before: then every tile reads memory in order, and the panels wait in the
second cache while all rows go by.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from refvt.array import Array
from refvt.backends.jit.compile import kernel
from refvt.backends.jit.layouts import by_rows, packable
from refvt.backends.jit.microkernel import ROWS, VECTOR, VECTORS, add_rows, copy_rows, tile, turn, view
from refvt.backends.jit.threads import next_tile, run, span
from refvt.backends.jit.workspace import num_threads

__all__ = ["Cut", "affine", "dots", "edges", "few", "grid", "multiply", "pack", "packed", "room", "weight_gradients"]

CACHE = 400_000  # bytes of packed panels, well within a second cache
CHUNK = 128  # rows of a task, so that one that was held up does not leave the others long to wait for
FEW = 2  # rows for which a weight is not packed at all
FEWEST = 256  # rows for each thread; with fewer it packs no columns that others pack too
DEPTH = 256  # rows added up at a time for a weight's gradient
BLOCK = 64  # rows added up at a time for a bias's, so that rounding does not pile up
FEWEST_GRADIENT = 96  # rows of a weight's gradient that are worth packing for
AHEAD = 8  # tiles whose rows of the left factor are packed at a time


class Cut(NamedTuple):
    """A result cut in tasks, parts of its rows by parts of its columns.

    A few parts of the columns stand side by side and are gone through from top to bottom before the next few: so each
    thread mostly stays in its columns, and packs them once.
    """

    down: int  # parts of the rows
    across: int  # parts of the columns
    abreast: int  # side by side
    wide: int  # columns of a panel: parts are whole panels and whole tiles

    @property
    def tasks(self) -> int:
        return self.down * self.across


def _panels(columns: int, itemsize: int) -> tuple[int, int]:
    """How wide to make the panels of so many columns, and how many: 64 columns are two of 32, not 48 and 16."""
    lanes = VECTOR // itemsize
    vectors = max(1, -(-columns // lanes))
    wide = -(-vectors // -(-vectors // VECTORS)) * lanes
    return wide, max(1, -(-columns // wide))


def grid(rows: int, columns: int, depth: int, itemsize: int) -> Cut:
    """How to cut x Wᵀ [rows, columns] in tasks; nothing in the result depends on it."""
    return _grid(rows, columns, depth, itemsize, num_threads())


@lru_cache(maxsize=1024)  # a layer asks anew at every pass, and each counts when few tokens live
def _grid(rows: int, columns: int, depth: int, itemsize: int, threads: int) -> Cut:
    wide, panels = _panels(columns, itemsize)
    together = max(1, min(panels, CACHE // (max(depth, 1) * wide * itemsize)))
    across = -(-panels // together)
    if rows < FEWEST * threads:  # each thread its own columns
        across = min(panels, -(-across // threads) * threads)
    return Cut(max(1, rows // CHUNK), across, min(threads, across), wide)


def _weight_grid(rows: int, columns: int, itemsize: int) -> Cut:
    """How to cut a weight's gradient [rows, columns] in tasks."""
    wide, panels = _panels(columns, itemsize)
    threads = num_threads()
    across = -(-panels // max(1, CACHE // (DEPTH * wide * itemsize)))
    down = max(1, min(-(-2 * threads // across), rows // FEWEST_GRADIENT))
    across = min(panels, max(across, -(-threads // down)))
    return Cut(down, across, across, wide)


def room(cut: Cut, columns: int, depth: int) -> int:
    """How many numbers a thread needs for the panels of one task."""
    panels = -(-columns // cut.wide)
    return -(-panels // cut.across) * cut.wide * depth


@kernel
def edges(i: int, cut: Cut, rows: int, columns: int) -> tuple[int, int, int, int]:
    """Where task i lies: its first row and the one after its last, then its columns."""
    group, nth = divmod(i, cut.down * cut.abreast)
    abreast = min(cut.abreast, cut.across - group * cut.abreast)
    top, bottom = span(nth // abreast, cut.down, (rows + ROWS - 1) // ROWS)
    left, right = span(group * cut.abreast + nth % abreast, cut.across, (columns + cut.wide - 1) // cut.wide)
    return top * ROWS, min(bottom * ROWS, rows), left * cut.wide, min(right * cut.wide, columns)


@kernel
def pack(b: Array, panels: Array) -> None:
    """b [k, n] → panels [⌈n/w⌉, k, w], w the width of a tile; zeros after the last column.

    Rows or columns of b must be contiguous.
    """
    n, wide = b.shape[1], panels.shape[2]
    for p in range(len(panels)):
        left, right = p * wide, min((p + 1) * wide, n)
        if b.strides[1] == b.itemsize:
            copy_rows(b[:, left:right], panels[p])
        else:
            turn(b[:, left:right].T, panels[p, :, : right - left])
        if right - left < wide:
            panels[p, :, right - left :] = 0


@kernel
def multiply(a: Array, panels: Array, c: Array, start: Array | None, gain: Array | None, base: Array | None) -> None:
    """c ← base + gain · (start + a b), of a few rows a [≤ ROWS, k] and packed b.

    What is empty is not there. For what is None nothing is compiled either: there is base alone, start alone, neither,
    or all three.
    """
    wide = panels.shape[2]
    for p in range(len(panels)):
        left, right = p * wide, (p + 1) * wide
        if start is None:
            if base is None:
                tile(a, panels[p], c[:, left:right], None, None, None)
            else:
                tile(a, panels[p], c[:, left:right], None, None, base[:, left:right])
        elif base is None:
            tile(a, panels[p], c[:, left:right], start[left:right], None, None)
        else:
            tile(a, panels[p], c[:, left:right], start[left:right], gain, base[:, left:right])


@kernel
def dots(a: Array, weight: Array, c: Array, start: Array, gain: Array, base: Array) -> None:
    """c ← base + gain · (start + a weightᵀ) for a row or two, weights as they lie; as in ``multiply``.

    A vector of partial sums is added up, so the last bit may differ from what a tile gives for the same row.
    """
    one, zero = a.dtype.type(1), a.dtype.type(0)
    for j in range(len(weight)):
        right = weight[j]
        for i in range(len(a)):
            left, total = a[i], zero
            for k in range(len(right)):
                total += left[k] * right[k]
            if len(start) > 0:
                total += start[j]
            total *= gain[i] if len(gain) > 0 else one
            c[i, j] = base[i, j] + total if len(base) > 0 else total


@kernel
def few(x: Array, weight: Array) -> bool:
    """Are these too few rows to pack the weight for?"""
    return len(x) <= FEW and weight.strides[1] == weight.itemsize


@kernel
def packed(b: Array, cut: Cut, space: Array, fresh: bool) -> Array:
    """The panels of b [k, n], in a thread's own memory; they are there already unless they are ``fresh``."""
    k, n = b.shape
    count = (n + cut.wide - 1) // cut.wide
    panels: Array = view(space, 0, count * k, cut.wide).reshape(count, k, cut.wide)
    if fresh:
        pack(b, panels)
    return panels


@kernel
def _affine(
    ticket: Any,
    space: Array,
    x: Array,
    weight: Array,
    turned: bool,
    bias: Array,
    residual: Array,
    gain: Array,
    cut: Cut,
    y: Array,
) -> None:
    """What is not there comes as an empty array, and a weight may come transposed: one kernel is compiled for all."""
    i, before = next_tile(ticket), -1
    while i >= 0:
        top, bottom, left, right = edges(i, cut, *y.shape)
        shift = bias[left:right]
        if few(x, weight) and not turned:
            dots(x, weight[left:right], y[:, left:right], shift, gain, residual[:, left:right])
        else:
            part = weight[:, left:right] if turned else weight[left:right, :].T
            panels, before = packed(part, cut, space, left != before), left
            for a in range(top, bottom, ROWS):
                b = min(a + ROWS, bottom)
                multiply(x[a:b], panels, y[a:b, left:right], shift, gain[a:b], residual[a:b, left:right])
        i = next_tile(ticket)


def affine(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    residual: Array | None = None,
    gain: Array | None = None,
) -> Array:
    """residual + gain · (x Wᵀ + bias).

    x [n, E], weight [D, E], bias [D], residual [n, D], gain [n] → [n, D].
    """
    weight = packable(weight)
    y = np.empty((len(x), len(weight)), x.dtype)
    cut = grid(len(x), len(weight), x.shape[1], x.itemsize)
    space = (room(cut, *weight.shape), x.dtype)
    turned = weight.strides[1] != weight.itemsize  # its columns lie side by side, as those of a weight's transpose
    nothing = np.empty(0, x.dtype)
    epilogue = (
        nothing if bias is None else np.ascontiguousarray(bias, x.dtype),
        nothing.reshape(0, 0) if residual is None else by_rows(residual.astype(x.dtype, copy=False)),
        nothing if gain is None else np.array(gain, x.dtype),  # of one nobody may write to numba would compile anew
    )
    run(_affine, cut.tasks, x, weight.T if turned else weight, turned, *epilogue, cut, y, space=space)
    return y


@kernel
def _add_columns(rows: Array, sums: Array, total: Array, add: bool) -> None:
    """total ← Σ rows (or total + Σ rows) over their first columns; ``sums`` has room for a row."""
    if not add:
        total[:] = 0
    two = 2 * VECTOR // rows.itemsize
    for first in range(0, len(rows), BLOCK):
        sums[:] = 0
        for j in range(0, len(sums), two):
            add_rows(rows[first : first + BLOCK, j : j + two], sums[j : j + two])
        for j in range(len(total)):
            total[j] += sums[j]


@kernel
def _sums(ticket: Any, space: Array, dy: Array, x: Array, cut: Cut, dweight: Array, dbias: Array) -> None:
    n = len(x)
    wide = AHEAD * ROWS
    ready, sums, rest = (
        view(space, 0, DEPTH, wide),
        space[DEPTH * wide : (DEPTH + 1) * wide],
        space[(DEPTH + 1) * wide :],
    )
    i = next_tile(ticket)
    while i >= 0:
        top, bottom, left, right = edges(i, cut, *dweight.shape)
        for first in range(0, max(n, 1), DEPTH):  # without any row the gradient is zero
            last = min(first + DEPTH, n)
            panels = packed(x[first:last, left:right], cut, rest, True)
            for ahead in range(top, bottom, wide):
                until = min(ahead + wide, bottom)
                copy_rows(dy[first:last, ahead:until], ready)
                if left == 0:
                    _add_columns(ready[: last - first], sums, dbias[ahead:until], first > 0)
                for a in range(ahead, until, ROWS):
                    b = min(a + ROWS, until)
                    strip, sum_ = ready[: last - first, a - ahead : b - ahead].T, dweight[a:b, left:right]
                    multiply(strip, panels, sum_, None, None, sum_ if first > 0 else sum_[:0])
        i = next_tile(ticket)


def weight_gradients(dy: Array, x: Array) -> tuple[Array, Array]:
    """dweight = dyᵀ x and dbias = Σ dy, sums over all rows: dy [n, D], x [n, E] → [D, E], [D]."""
    dy, x = by_rows(dy), by_rows(x)
    dweight, dbias = np.empty((dy.shape[1], x.shape[1]), x.dtype), np.empty(dy.shape[1], x.dtype)
    cut = _weight_grid(dy.shape[1], x.shape[1], x.itemsize)
    space = (room(cut, x.shape[1], DEPTH) + AHEAD * (DEPTH + 1) * ROWS, x.dtype)
    run(_sums, cut.tasks, dy, x, cut, dweight, dbias, space=space)
    return dweight, dbias
