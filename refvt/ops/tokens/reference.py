"""Gather and segment mean in NumPy. The maths is in ``__init__.py``."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refvt.array import Array
from refvt.ops.tokens import segment_lengths


class GatherCache(NamedTuple):
    """What the backward of gather reads."""

    source: Array  # the index [m]
    shape: tuple[int, ...]  # of x


def gather_forward(x: Array, index: Array, keep: bool = True) -> tuple[Array, GatherCache | None]:
    """Gather rows: y[i] = x[index[i]], a zero row where index[i] = −1. x [n, ...], index [m] int64 → y [m, ...]."""
    # 1. copy rows
    y = np.zeros((len(index), *x.shape[1:]), dtype=x.dtype)
    present = index >= 0
    y[present] = x[index[present]]
    return y, GatherCache(index, x.shape) if keep else None


def gather_backward(dy: Array, cache: GatherCache) -> Array:
    """Returns dx: row j is the sum of dy over all i with index[i] = j, added in the order of i."""
    index, shape = cache.source, cache.shape
    dx = np.zeros(shape, dtype=dy.dtype)
    # 1. sum the copies of each row: sort them by row (stable: in order of i), then sum each run of equals
    copies = np.flatnonzero(index >= 0)
    copies = copies[np.argsort(index[copies], kind="stable")]
    if len(copies):
        rows, first = np.unique(index[copies], return_index=True)
        dx[rows] = np.add.reduceat(dy[copies], first, axis=0)
    return dx


class SegmentMeanCache(NamedTuple):
    """What the backward of the segment mean reads."""

    offsets: Array  # [segments+1]


def segment_mean_forward(x: Array, offsets: Array, keep: bool = True) -> tuple[Array, SegmentMeanCache | None]:
    """Mean of each segment: y[i] = mean of x[offsets[i] : offsets[i+1]].

    x [n, D], offsets [segments+1] int64 → y [segments, D].

    ValueError if a segment is empty: the mean of nothing is not a number.
    """
    lengths = segment_lengths(offsets)
    # 1. sum each segment
    y = np.add.reduceat(x, offsets[:-1], axis=0)  # [segments, D]
    # 2. divide by its length
    y /= lengths.astype(x.dtype)[:, None]
    return y, SegmentMeanCache(offsets) if keep else None


def segment_mean_backward(dy: Array, cache: SegmentMeanCache) -> Array:
    """Returns dx: every row of segment i gets dy[i] / length."""
    lengths = np.diff(cache.offsets)
    # 2. divide
    dsum = dy / lengths.astype(dy.dtype)[:, None]
    # 1. every row of the segment was a term of the sum
    return np.repeat(dsum, lengths, axis=0)
