"""Gather and segment mean in Numba: rows are copied and summed in place."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from refvt.array import Array
from refvt.backends.jit.kernel import kernel
from refvt.backends.jit.layouts import contiguous
from refvt.backends.jit.threads import next_tile, run, span
from refvt.ops.tokens import segment_lengths

ROWS = 256  # rows of a tile: they are only copied
COLUMNS = 192  # columns of a tile where rows must be summed in order


class GatherCache(NamedTuple):
    """What the backward of gather reads."""

    source: Array  # the index [m]
    shape: tuple[int, ...]  # of x


@kernel
def _gather(ticket: Any, x: Array, index: Array, parts: int, y: Array) -> None:
    """y [m, columns] ← rows of x [n, columns] by index [m]; a tile is one of ``parts`` spans of y's rows."""
    part = next_tile(ticket)
    while part >= 0:
        top, bottom = span(part, parts, len(index))
        # 1. copy rows
        for i in range(top, bottom):
            j, row = index[i], y[i]
            if j >= 0:
                source = x[j]
                for c in range(len(row)):
                    row[c] = source[c]
            else:
                for c in range(len(row)):
                    row[c] = 0
        part = next_tile(ticket)


def _flat(x: Array) -> Array:
    """[n, …] → [n, columns], contiguous; x itself, seen in another shape, if it is."""
    return contiguous(x).reshape(len(x), math.prod(x.shape[1:]))


def gather_forward(x: Array, index: Array, keep: bool = True) -> tuple[Array, GatherCache | None]:
    """Gather rows: y[i] = x[index[i]], a zero row where index[i] = −1. x [n, ...], index [m] int64 → y [m, ...]."""
    y = np.empty((len(index), *x.shape[1:]), dtype=x.dtype)
    parts = -(-len(index) // ROWS)
    # pass 1
    run(_gather, parts, _flat(x), contiguous(index), parts, _flat(y))
    return y, GatherCache(index, x.shape) if keep else None


@kernel
def _scatter(ticket: Any, dy: Array, index: Array, parts: int, dx: Array) -> None:
    """dx [n, columns] ← sums of rows of dy [m, columns] by index [m]; a tile is one of ``parts`` spans of columns."""
    part = next_tile(ticket)
    while part >= 0:
        # 1. sum the copies of each row: a tile goes through all rows in order, so the sum is the same on every run
        start, stop = span(part, parts, dx.shape[1])
        seen = np.zeros(len(dx), np.bool_)
        for i in range(len(index)):
            j = index[i]
            if j >= 0:
                row, more = dx[j, start:stop], dy[i, start:stop]
                if seen[j]:
                    for c in range(len(row)):
                        row[c] += more[c]
                else:  # most rows were copied once
                    for c in range(len(row)):
                        row[c] = more[c]
                seen[j] = True
        for j in range(len(dx)):
            if not seen[j]:
                dx[j, start:stop] = 0
        part = next_tile(ticket)


def gather_backward(dy: Array, cache: GatherCache) -> Array:
    """Returns dx: row j is the sum of dy over all i with index[i] = j, added in the order of i."""
    index, shape = cache.source, cache.shape
    dx = np.empty(shape, dtype=dy.dtype)
    target = _flat(dx)
    parts = -(-target.shape[1] // COLUMNS)
    # pass 1
    run(_scatter, parts, _flat(dy), contiguous(index), parts, target)
    return dx


class SegmentMeanCache(NamedTuple):
    """What the backward of the segment mean reads."""

    offsets: Array  # [segments+1]
    rows: int  # of x


@kernel
def _means(ticket: Any, x: Array, offsets: Array, parts: int, y: Array) -> None:
    """y [segments, D] ← means of x [n, D] by offsets [segments+1]; a tile is one of ``parts`` spans of the segments."""
    part = next_tile(ticket)
    while part >= 0:
        top, bottom = span(part, parts, len(y))
        for i in range(top, bottom):
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
        part = next_tile(ticket)


def segment_mean_forward(x: Array, offsets: Array, keep: bool = True) -> tuple[Array, SegmentMeanCache | None]:
    """Mean of each segment: y[i] = mean of x[offsets[i] : offsets[i+1]].

    x [n, D], offsets [segments+1] int64 → y [segments, D].

    ValueError if a segment is empty: the mean of nothing is not a number.
    """
    lengths = segment_lengths(offsets)
    y = np.empty((len(lengths), x.shape[1]), dtype=x.dtype)
    parts = -(-len(lengths) // ROWS)
    # passes 1–2
    run(_means, parts, contiguous(x), contiguous(offsets), parts, y)
    return y, SegmentMeanCache(offsets, len(x)) if keep else None


@kernel
def _spread(ticket: Any, dy: Array, offsets: Array, parts: int, dx: Array) -> None:
    """dx [n, D] ← dy [segments, D] / length by offsets [segments+1]; a tile is one of ``parts`` spans of segments."""
    part = next_tile(ticket)
    while part >= 0:
        top, bottom = span(part, parts, len(dy))
        # passes 2–1: every row had the same weight in the mean
        for i in range(top, bottom):
            length = dy.dtype.type(offsets[i + 1] - offsets[i])
            for j in range(offsets[i], offsets[i + 1]):
                for c in range(dy.shape[1]):
                    dx[j, c] = dy[i, c] / length
        part = next_tile(ticket)


def segment_mean_backward(dy: Array, cache: SegmentMeanCache) -> Array:
    """Returns dx: every row of segment i gets dy[i] / length."""
    dx = np.empty((cache.rows, dy.shape[1]), dtype=dy.dtype)
    parts = -(-len(dy) // ROWS)
    # passes 2–1
    run(_spread, parts, contiguous(dy), contiguous(cache.offsets), parts, dx)
    return dx
