"""Gather and segment mean in Numba: rows are copied and summed where they stand."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refvt.backends.jit import kernel
from refvt.backends.pool import run, tiles
from refvt.ops import Array
from refvt.ops.tokens import segment_lengths

ROWS = 512  # rows of a tile: nothing here but copying
COLUMNS = 128  # columns of a tile where rows must be summed in order


class GatherCache(NamedTuple):
    source: Array  # the index
    shape: tuple[int, ...]  # of x


@kernel
def _gather(x: Array, index: Array, y: Array) -> None:
    for i in range(len(index)):
        j = index[i]
        if j >= 0:
            for c in range(x.shape[1]):
                y[i, c] = x[j, c]
        else:
            for c in range(x.shape[1]):
                y[i, c] = 0


def _flat(x: Array) -> Array:
    """[n, …] → [n, columns], a view where the layout allows one."""
    return x.reshape(len(x), int(np.prod(x.shape[1:])))


def gather_forward(x: Array, index: Array, keep: bool = True) -> tuple[Array, GatherCache | None]:
    """y[i] = x[index[i]], a zero row where index[i] = −1. x [n, ...], index [m] int64 → y [m, ...]."""
    y = np.empty((len(index), *x.shape[1:]), dtype=x.dtype)
    source, target, parts = _flat(x), _flat(y), tiles(len(index), ROWS)

    def tile(i: int) -> None:
        rows = parts[i]
        # 1. copy rows
        _gather(source, index[rows], target[rows])

    run(tile, len(parts))
    return y, GatherCache(index, x.shape) if keep else None


@kernel
def _scatter(dy: Array, index: Array, start: int, stop: int, dx: Array) -> None:
    for j in range(dx.shape[0]):
        for c in range(start, stop):
            dx[j, c] = 0
    for i in range(len(index)):
        j = index[i]
        if j >= 0:
            for c in range(start, stop):
                dx[j, c] += dy[i, c]


def gather_backward(dy: Array, cache: GatherCache) -> Array:
    """Returns dx: row j is the sum of dy over all i with index[i] = j, added in the order of i."""
    index, shape = cache.source, cache.shape
    dx = np.empty(shape, dtype=dy.dtype)
    source, target = _flat(dy), _flat(dx)
    parts = tiles(target.shape[1], COLUMNS)

    def tile(i: int) -> None:
        columns = parts[i]
        # 1. every thread walks all rows in order, in its own columns: the same sum on every run
        _scatter(source, index, columns.start, columns.stop, target)

    run(tile, len(parts))
    return dx


class SegmentMeanCache(NamedTuple):
    offsets: Array
    rows: int


@kernel
def _means(x: Array, offsets: Array, y: Array) -> None:
    for i in range(len(offsets) - 1):
        # 1. sum each segment
        for c in range(x.shape[1]):
            y[i, c] = x[offsets[i], c]
        for j in range(offsets[i] + 1, offsets[i + 1]):
            for c in range(x.shape[1]):
                y[i, c] += x[j, c]
        # 2. divide by its length
        if offsets[i + 1] - offsets[i] > 1:
            length = x.dtype.type(offsets[i + 1] - offsets[i])
            for c in range(x.shape[1]):
                y[i, c] /= length


def segment_mean_forward(x: Array, offsets: Array, keep: bool = True) -> tuple[Array, SegmentMeanCache | None]:
    """y[i] = mean of x[offsets[i] : offsets[i+1]]. x [n, D], offsets [segments+1] int64 → y [segments, D].

    ValueError if a segment is empty: the mean of nothing is not a number.
    """
    lengths = segment_lengths(offsets)
    y = np.empty((len(lengths), x.shape[1]), dtype=x.dtype)
    parts = tiles(len(lengths), ROWS)

    def tile(i: int) -> None:
        part = parts[i]
        # passes 1–2
        _means(x, offsets[part.start : part.stop + 1], y[part])

    run(tile, len(parts))
    return y, SegmentMeanCache(offsets, len(x)) if keep else None


@kernel
def _spread(dy: Array, offsets: Array, dx: Array) -> None:
    for i in range(len(offsets) - 1):
        length = dy.dtype.type(offsets[i + 1] - offsets[i])
        for j in range(offsets[i], offsets[i + 1]):
            for c in range(dy.shape[1]):
                dx[j, c] = dy[i, c] / length


def segment_mean_backward(dy: Array, cache: SegmentMeanCache) -> Array:
    """Returns dx: every row of segment i gets dy[i] / length."""
    dx = np.empty((cache.rows, dy.shape[1]), dtype=dy.dtype)
    parts = tiles(len(dy), ROWS)

    def tile(i: int) -> None:
        part = parts[i]
        # passes 2–1
        _spread(dy[part], cache.offsets[part.start : part.stop + 1], dx)

    run(tile, len(parts))
    return dx
