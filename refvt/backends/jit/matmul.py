"""The matrix products of every layer, built from tiles: ``x Wᵀ`` with its epilogue, and a weight's gradient.

A task computes some rows and some columns of the result. Its columns of the right factor are packed in panels as wide
as a tile, unless its thread has packed them for the task before. Then every tile reads memory in order, and the panels
stay in the L2 cache while all rows are multiplied with them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from refvt.array import Array
from refvt.backends.jit.kernel import kernel
from refvt.backends.jit.layouts import contiguous, packable
from refvt.backends.jit.microkernel import ROWS, tile
from refvt.backends.jit.threads import next_tile, run, span
from refvt.backends.jit.vectors import VECTOR, VECTORS, add_rows, copy_rows, fill_rows, transpose, view
from refvt.backends.jit.workspace import num_threads

__all__ = [
    "Cut",
    "dots",
    "edges",
    "grid",
    "linear_tiles",
    "multiply",
    "pack",
    "pack_panels",
    "panel_size",
    "too_few_to_pack",
    "weight_gradients",
]

CACHE = 400_000  # bytes of packed panels: they must fit well within the L2 cache
CHUNK = 128  # rows of a task: few, so that the others need not wait long for a thread that was delayed
FEW = 2  # rows for which a weight is not packed at all
FEWEST = 256  # rows per thread below which no two threads pack the same columns
DEPTH = 256  # rows summed at a time for a weight's gradient
BLOCK = 64  # rows summed at a time for a bias's gradient, so that rounding errors do not pile up
FEWEST_GRADIENT = 96  # rows of a weight's gradient that are worth packing for
AHEAD = 8  # tiles whose rows of the left factor are packed at a time


class Cut(NamedTuple):
    """How a result is cut into tasks: parts of its rows by parts of its columns.

    Tasks are numbered so that ``abreast`` neighbouring parts of the columns are done from top to bottom before the next
    ones: each thread mostly stays in its columns, and packs them once.
    """

    down: int  # parts of the rows
    across: int  # parts of the columns
    abreast: int  # parts of the columns that are worked on at the same time
    wide: int  # columns of a panel; a part is a number of whole panels, and of whole tiles

    @property
    def tasks(self) -> int:
        """Number of tasks."""
        return self.down * self.across


def _panels(columns: int, itemsize: int) -> tuple[int, int]:
    """Width and number of the panels for some columns: 64 columns are two panels of 32, not 48 and 16."""
    lanes = VECTOR // itemsize
    vectors = max(1, -(-columns // lanes))
    wide = -(-vectors // -(-vectors // VECTORS)) * lanes
    return wide, max(1, -(-columns // wide))


def grid(rows: int, columns: int, depth: int, itemsize: int) -> Cut:
    """How to cut x Wᵀ [rows, columns], sums of ``depth`` terms, into tasks; no number of the result depends on it."""
    return _grid(rows, columns, depth, itemsize, num_threads())


@lru_cache(maxsize=1024)  # needed at every pass; its time counts when few tokens are alive
def _grid(rows: int, columns: int, depth: int, itemsize: int, threads: int) -> Cut:
    wide, panels = _panels(columns, itemsize)
    together = max(1, min(panels, CACHE // (max(depth, 1) * wide * itemsize)))
    across = -(-panels // together)
    if rows < FEWEST * threads:  # every thread has its own columns
        across = min(panels, -(-across // threads) * threads)
    return Cut(max(1, rows // CHUNK), across, min(threads, across), wide)


def _weight_grid(rows: int, columns: int, itemsize: int) -> Cut:
    """How to cut a weight's gradient [rows, columns] into tasks; no number of the result depends on it."""
    wide, panels = _panels(columns, itemsize)
    threads = num_threads()
    across = -(-panels // max(1, CACHE // (DEPTH * wide * itemsize)))
    down = max(1, min(-(-2 * threads // across), rows // FEWEST_GRADIENT))
    across = min(panels, max(across, -(-threads // down)))
    return Cut(down, across, across, wide)


def panel_size(cut: Cut, columns: int, depth: int) -> int:
    """Numbers of scratch memory that a thread needs for the panels of one task: columns in all, sums of depth terms."""
    panels = -(-columns // cut.wide)
    return -(-panels // cut.across) * cut.wide * depth


@kernel
def edges(i: int, cut: Cut, rows: int, columns: int) -> tuple[int, int, int, int]:
    """Rows and columns of task i of a result [rows, columns]: top, bottom, left, right."""
    group, nth = divmod(i, cut.down * cut.abreast)
    abreast = min(cut.abreast, cut.across - group * cut.abreast)
    top, bottom = span(nth // abreast, cut.down, (rows + ROWS - 1) // ROWS)
    left, right = span(group * cut.abreast + nth % abreast, cut.across, (columns + cut.wide - 1) // cut.wide)
    return top * ROWS, min(bottom * ROWS, rows), left * cut.wide, min(right * cut.wide, columns)


@kernel
def pack(b: Array, panels: Array) -> None:
    """b [k, n] → panels [⌈n/w⌉, k, w], w the columns of a panel; zeros after the last column.

    Rows or columns of b must be contiguous.
    """
    n, wide = b.shape[1], panels.shape[2]
    for p in range(len(panels)):
        left, right = p * wide, min((p + 1) * wide, n)
        if b.strides[1] == b.itemsize:
            copy_rows(b[:, left:right], panels[p])
        else:
            transpose(b[:, left:right].T, panels[p, :, : right - left])
        if right - left < wide:
            fill_rows(panels[p, :, right - left :], 0.0)


@kernel
def multiply(a: Array, panels: Array, c: Array, start: Array | None, gain: Array | None, base: Array | None) -> None:
    """c ← base + gain · (start + a b) for a strip of at most ROWS rows: one tile for every panel of b.

    a [m, k], panels of b [⌈n/w⌉, k, w], c [m, n], start [n], gain [m], base [m, n]. Empty arrays are absent operands;
    None removes the operand at compile time: base alone, start alone, neither, or all three may be given.
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
    """c ← base + gain · (start + a weightᵀ) for a row or two, without packing; the rest as in ``multiply``.

    a [n, k], weight [m, k], c [n, m], start [m], gain [n], base [n, m]. Every sum is the sum of a vector of partial
    sums, so its last bit may differ from what a tile gives for the same row.
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
def too_few_to_pack(x: Array, weight: Array) -> bool:
    """Whether x [n, k] has too few rows to pack the weight [m, k] for."""
    return len(x) <= FEW and weight.strides[1] == weight.itemsize


@kernel
def pack_panels(b: Array, cut: Cut, scratch: Array, fresh: bool) -> Array:
    """b [k, n] packed in scratch memory → panels [⌈n/w⌉, k, w]; they are there already unless ``fresh``."""
    k, n = b.shape
    count = (n + cut.wide - 1) // cut.wide
    panels: Array = view(scratch, 0, count * k, cut.wide).reshape(count, k, cut.wide)
    if fresh:
        pack(b, panels)
    return panels


@kernel
def _linear_tiles(
    ticket: Any,
    scratch: Array,
    x: Array,
    weight: Array,
    transposed: bool,
    bias: Array,
    residual: Array,
    gain: Array,
    cut: Cut,
    y: Array,
) -> None:
    """y ← residual + gain · (x Wᵀ + bias); a tile is a task of ``cut``.

    x [n, E], weight [D, E], or [E, D] if ``transposed``; bias [D], residual [n, D], gain [n] → y [n, D].
    Absent operands are empty arrays, so that one kernel is compiled for all.
    """
    i, before = next_tile(ticket), -1
    while i >= 0:
        top, bottom, left, right = edges(i, cut, *y.shape)
        shift = bias[left:right]
        if too_few_to_pack(x, weight) and not transposed:
            dots(x, weight[left:right], y[:, left:right], shift, gain, residual[:, left:right])
        else:
            part = weight[:, left:right] if transposed else weight[left:right, :].T
            panels, before = pack_panels(part, cut, scratch, left != before), left
            for a in range(top, bottom, ROWS):
                b = min(a + ROWS, bottom)
                multiply(x[a:b], panels, y[a:b, left:right], shift, gain[a:b], residual[a:b, left:right])
        i = next_tile(ticket)


def linear_tiles(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    residual: Array | None = None,
    gain: Array | None = None,
) -> Array:
    """The linear layer in tiles: residual + gain · (x Wᵀ + bias), row by row.

    x [n, E], weight [D, E], bias [D], residual [n, D], gain [n] → [n, D]. Arrays that are not contiguous are copied; of
    a weight it is enough that its transpose is.
    """
    x, weight = contiguous(x), packable(weight)
    y = np.empty((len(x), len(weight)), x.dtype)
    cut = grid(len(x), len(weight), x.shape[1], x.itemsize)
    scratch = (panel_size(cut, *weight.shape), x.dtype)
    transposed = weight.strides[1] != weight.itemsize  # its columns are contiguous, as in a weight's transpose
    absent = np.empty(0, x.dtype)
    epilogue = (
        absent if bias is None else contiguous(bias, x.dtype),
        absent.reshape(0, 0) if residual is None else contiguous(residual, x.dtype),
        absent if gain is None else contiguous(gain, x.dtype),
    )
    run(_linear_tiles, cut.tasks, x, weight.T if transposed else weight, transposed, *epilogue, cut, y, scratch=scratch)
    return y


@kernel
def _add_columns(rows: Array, sums: Array, total: Array, add: bool) -> None:
    """total [m] ← Σ_i rows[i, :m] (plus total, if ``add``); rows [k, ≥ m]; sums is scratch memory for one row."""
    if not add:
        for j in range(len(total)):
            total[j] = 0
    two = 2 * VECTOR // rows.itemsize
    for first in range(0, len(rows), BLOCK):
        for j in range(len(sums)):
            sums[j] = 0
        for j in range(0, len(sums), two):
            add_rows(rows[first : first + BLOCK, j : j + two], sums[j : j + two])
        for j in range(len(total)):
            total[j] += sums[j]


@kernel
def _weight_gradients(ticket: Any, scratch: Array, dy: Array, x: Array, cut: Cut, dweight: Array, dbias: Array) -> None:
    """dweight [D, E] ← dyᵀ x, dbias [D] ← Σ dy; dy [n, D], x [n, E]; a tile is a task of ``cut``.

    DEPTH rows at a time are added up. The rows of dy come to lie in ``ready`` [DEPTH, AHEAD · ROWS], where a tile reads
    them as columns.
    """
    n = len(x)
    wide = AHEAD * ROWS
    ready, sums, rest = (
        view(scratch, 0, DEPTH, wide),
        scratch[DEPTH * wide : (DEPTH + 1) * wide],
        scratch[(DEPTH + 1) * wide :],
    )
    i = next_tile(ticket)
    while i >= 0:
        top, bottom, left, right = edges(i, cut, *dweight.shape)
        for first in range(0, max(n, 1), DEPTH):  # without any row the gradient is zero
            last = min(first + DEPTH, n)
            panels = pack_panels(x[first:last, left:right], cut, rest, i >= 0)  # a constant would be compiled apart
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
    """The gradients of weight and bias, dweight = dyᵀ x and dbias = Σ dy: dy [n, D], x [n, E] → [D, E], [D]."""
    dy, x = contiguous(dy), contiguous(x)
    dweight, dbias = np.empty((dy.shape[1], x.shape[1]), x.dtype), np.empty(dy.shape[1], x.dtype)
    cut = _weight_grid(dy.shape[1], x.shape[1], x.itemsize)
    scratch = (panel_size(cut, x.shape[1], DEPTH) + AHEAD * (DEPTH + 1) * ROWS, x.dtype)
    run(_weight_gradients, cut.tasks, dy, x, cut, dweight, dbias, scratch=scratch)
    return dweight, dbias
