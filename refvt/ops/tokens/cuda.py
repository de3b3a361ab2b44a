"""Gather and segment mean on the GPU: one thread per result, so that no two threads add to one number."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from refvt.array import Array
from refvt.backends.cuda.arguments import Indices, Matrix
from refvt.backends.cuda.device_array import empty, num_valid_of, with_rows_of
from refvt.backends.cuda.elementwise import fill
from refvt.backends.cuda.kernel import kernel
from refvt.backends.cuda.threads import cell, valid_rows
from refvt.backends.cuda.upload import read_only, upload
from refvt.ops.tokens import segment_lengths


class GatherCache(NamedTuple):
    source: Array  # the index [m], on the device
    shape: tuple[int, ...]  # of x


@kernel
def _gather(x: Matrix, index: Indices, num_valid: Indices, y: Matrix) -> None:
    """x [n, D], index [m] → y [m, D]; one thread per element."""
    i, c = cell()
    if i < valid_rows(num_valid, y.shape[0]) and c < y.shape[1]:
        # 1. copy rows
        j = index[i]
        y[i, c] = x[j, c] if j >= 0 else x.dtype.type(0)


def _flat(x: Array) -> Array:
    """[n, …] as a matrix [n, columns], a view; a matrix may be strided."""
    return x if len(x.shape) == 2 else x.reshape(x.shape[0], math.prod(x.shape[1:]))


def gather_forward(x: Array, index: Array, keep: bool = True) -> tuple[Array, GatherCache | None]:
    """As ``reference``: y[i] = x[index[i]], a zero row where index[i] = −1.

    x [n, ...], index [m] int64 (host or device) → y [m, ...].
    """
    index = read_only(index)
    y = empty((index.shape[0], *x.shape[1:]), x.dtype)
    target = _flat(y)
    # 1. copy rows
    _gather.cells(target.shape[0], target.shape[1], _flat(x), index, num_valid_of(index), target)
    return with_rows_of(index, y), GatherCache(index, tuple(x.shape)) if keep else None


@kernel(repeatable=False)
def _link_copies(index: Indices, newest: Indices, older: Indices) -> None:
    """index [m] → newest [n], older [m]: a list of the copies of every row; one thread per copy.

    newest[j] is one copy of row j, older[i] the copy that was there before i; −1: none.
    """
    i = cuda.grid(1)
    if i < index.shape[0] and index[i] >= 0:
        older[i] = cuda.atomic.exch(newest, index[i], i)


@kernel
def _sum_copies(dy: Matrix, newest: Indices, older: Indices, dx: Matrix) -> None:
    """dy [m, D], newest [n], older [m] → dx [n, D]; one thread per element."""
    j, c = cell()
    if j < dx.shape[0] and c < dx.shape[1]:
        total = dy.dtype.type(0)
        # 1. copy rows: the sum of all copies, in ascending order. The order of a list depends on the scheduling of
        # threads; the order of additions must not
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


def _lists_of_copies(index: Any, n: int) -> tuple[Array, Array]:
    """The lists (newest, older) of an index into n rows; kept with the index, which may be used again."""
    found: tuple[Array, Array] | None = index.lists
    if found is None or found[0].shape[0] != n:
        newest, older = found = fill(empty(n, np.int64), -1), empty(index.shape[0], np.int64)
        _link_copies.each(index.shape[0], index, newest, older)
        index.lists = found
    return found


def gather_backward(dy: Array, cache: GatherCache) -> Array:
    """As ``reference``: dx; row j is the sum of dy over all i with index[i] = j, added in the order of i."""
    index, shape = cache
    # 1. copy rows: each row of dx collects its copies by a list of them, instead of copies adding to rows. So every
    # thread owns what it writes. Walking r copies in order takes r² steps; in the model r is at most T
    newest, older = _lists_of_copies(index, shape[0])
    dx = empty(shape, dy.dtype)
    target = _flat(dx)
    _sum_copies.cells(target.shape[0], target.shape[1], _flat(dy), newest, older, target)
    return dx


class SegmentMeanCache(NamedTuple):
    offsets: Array  # [segments+1], on the device
    segment: Array  # of each row [n], on the device


@kernel
def _means(x: Matrix, offsets: Indices, y: Matrix) -> None:
    """x [n, D], offsets [segments+1] → y [segments, D]; one thread per element."""
    i, c = cell()
    if i < y.shape[0] and c < y.shape[1]:
        # 1. sum each segment
        total = x[offsets[i], c]
        for j in range(offsets[i] + 1, offsets[i + 1]):
            total += x[j, c]
        # 2. divide by its length
        y[i, c] = total / x.dtype.type(offsets[i + 1] - offsets[i])


def segment_mean_forward(x: Array, offsets: Array, keep: bool = True) -> tuple[Array, SegmentMeanCache | None]:
    """As ``reference``: y[i] = mean of x[offsets[i] : offsets[i+1]].

    x [n, D], offsets [segments+1] int64 (host) → y [segments, D]. ValueError if a segment is empty.
    """
    lengths = segment_lengths(offsets)
    offsets_on_device = read_only(offsets)
    y = empty((len(lengths), x.shape[1]), x.dtype)
    # passes 1–2
    _means.cells(y.shape[0], y.shape[1], x, offsets_on_device, y)
    if not keep:
        return y, None
    return y, SegmentMeanCache(offsets_on_device, upload(np.repeat(np.arange(len(lengths)), lengths), np.int64))


@kernel
def _spread(dy: Matrix, offsets: Indices, segment: Indices, dx: Matrix) -> None:
    """dy [segments, D], offsets [segments+1], segment [n] → dx [n, D]; one thread per element."""
    r, c = cell()
    if r < dx.shape[0] and c < dx.shape[1]:
        # passes 2–1: every row had the same weight in the mean
        i = segment[r]
        dx[r, c] = dy[i, c] / dy.dtype.type(offsets[i + 1] - offsets[i])


def segment_mean_backward(dy: Array, cache: SegmentMeanCache) -> Array:
    """As ``reference``: dx; every row of segment i gets dy[i] / length."""
    offsets, segment = cache
    dx = empty((segment.shape[0], dy.shape[1]), dy.dtype)
    # passes 2–1
    _spread.cells(dx.shape[0], dx.shape[1], dy, offsets, segment, dx)
    return dx
