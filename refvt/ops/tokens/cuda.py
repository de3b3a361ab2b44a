"""Gather and segment mean on the GPU: one thread per number that is written, so that no two threads ever add to one."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from refvt.array import Array
from refvt.backends.cuda.kernel import as_many, cell, empty, fill, kernel, read_only, rows_there, there, upload
from refvt.ops.tokens import segment_lengths


class GatherCache(NamedTuple):
    source: Array  # the index, on the device
    shape: tuple[int, ...]  # of x


@kernel("F i i F")
def _gather(x, index, there, y):  # type: ignore[no-untyped-def]
    i, c = cell()
    if i < rows_there(there, y.shape[0]) and c < y.shape[1]:
        # 1. copy rows
        j = index[i]
        y[i, c] = x[j, c] if j >= 0 else x.dtype.type(0)


def _flat(x: Array) -> Array:
    """[n, …] → [n, columns], a view; a matrix may be strided."""
    return x if len(x.shape) == 2 else x.reshape(x.shape[0], math.prod(x.shape[1:]))


def gather_forward(x: Array, index: Array, keep: bool = True) -> tuple[Array, GatherCache | None]:
    """y[i] = x[index[i]], a zero row where index[i] = −1. x [n, ...], index [m] int64 → y [m, ...]."""
    index = read_only(index)
    y = empty((index.shape[0], *x.shape[1:]), x.dtype)
    target = _flat(y)
    # pass 1
    _gather.cells(target.shape[0], target.shape[1], _flat(x), index, there(index), target)
    return as_many(index, y), GatherCache(index, tuple(x.shape)) if keep else None


@kernel("i i i", repeatable=False)
def _chain(index, newest, older):  # type: ignore[no-untyped-def]
    """A list for every row of x: newest[j] is one of its copies, older[i] the one that was there before i, −1 none."""
    i = cuda.grid(1)
    if i < index.shape[0] and index[i] >= 0:
        older[i] = cuda.atomic.exch(newest, index[i], i)


@kernel("F i i F")
def _scatter(dy, newest, older, dx):  # type: ignore[no-untyped-def]
    j, c = cell()
    if j < dx.shape[0] and c < dx.shape[1]:
        total = dy.dtype.type(0)
        # the next copy is the smallest that is larger than the last: who came first to a list is a matter of chance, in
        # which order it is added must not be
        last, more = -1, newest[j] >= 0
        while more:
            following, i = -1, newest[j]
            while i >= 0:
                if i > last and (following < 0 or i < following):
                    following = i
                i = older[i]
            more = following >= 0
            if more:
                total += dy[following, c]
                last = following
        dx[j, c] = total


def _copies(index: Any, n: int) -> tuple[Array, Array]:
    """The lists of an index into n rows. They are kept with the index: it may gather, or be gathered by, once more."""
    found: tuple[Array, Array] | None = index.lists
    if found is None or found[0].shape[0] != n:
        newest, older = found = fill(empty(n, np.int64), -1), empty(index.shape[0], np.int64)
        _chain.each(index.shape[0], index, newest, older)
        index.lists = found
    return found


def gather_backward(dy: Array, cache: GatherCache) -> Array:
    """Returns dx: row j is the sum of dy over all i with index[i] = j, added in the order of i."""
    index, shape = cache
    # 1. a list of copies for every row instead of additions to it: every thread owns what it writes, and adds in one
    # order. A row that was copied r times takes r² steps to find them in order; in the model r is at most T
    newest, older = _copies(index, shape[0])
    dx = empty(shape, dy.dtype)
    target = _flat(dx)
    _scatter.cells(target.shape[0], target.shape[1], _flat(dy), newest, older, target)
    return dx


class SegmentMeanCache(NamedTuple):
    offsets: Array  # on the device
    segment: Array  # of each row, on the device


@kernel("F i F")
def _means(x, offsets, y):  # type: ignore[no-untyped-def]
    i, c = cell()
    if i < y.shape[0] and c < y.shape[1]:
        # 1. sum each segment
        total = x[offsets[i], c]
        for j in range(offsets[i] + 1, offsets[i + 1]):
            total += x[j, c]
        # 2. divide by its length
        y[i, c] = total / x.dtype.type(offsets[i + 1] - offsets[i])


def segment_mean_forward(x: Array, offsets: Array, keep: bool = True) -> tuple[Array, SegmentMeanCache | None]:
    """y[i] = mean of x[offsets[i] : offsets[i+1]]. x [n, D], offsets [segments+1] int64 (host) → y [segments, D].

    ValueError if a segment is empty: the mean of nothing is not a number.
    """
    lengths = segment_lengths(offsets)
    cuts = read_only(offsets)
    y = empty((len(lengths), x.shape[1]), x.dtype)
    # passes 1–2
    _means.cells(y.shape[0], y.shape[1], x, cuts, y)
    if not keep:
        return y, None
    return y, SegmentMeanCache(cuts, upload(np.repeat(np.arange(len(lengths)), lengths), np.int64))


@kernel("F i i F")
def _spread(dy, offsets, segment, dx):  # type: ignore[no-untyped-def]
    r, c = cell()
    if r < dx.shape[0] and c < dx.shape[1]:
        # 2, 1. every row had an equal share in the mean
        i = segment[r]
        dx[r, c] = dy[i, c] / dy.dtype.type(offsets[i + 1] - offsets[i])


def segment_mean_backward(dy: Array, cache: SegmentMeanCache) -> Array:
    """Returns dx: every row of segment i gets dy[i] / length."""
    offsets, segment = cache
    dx = empty((segment.shape[0], dy.shape[1]), dy.dtype)
    # passes 2–1
    _spread.cells(dx.shape[0], dx.shape[1], dy, offsets, segment, dx)
    return dx
