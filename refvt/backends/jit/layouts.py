"""Memory layouts that generated code can read, rows as vectors; arrays of any other layout are copied."""

from __future__ import annotations

from typing import TypeGuard

import numpy as np

from refvt.array import Array

__all__ = ["by_rows", "columns_of", "packable", "writable"]


def by_rows(x: Array) -> Array:
    """x [n, D] itself if its rows are contiguous, else a contiguous copy."""
    return x if x.shape[1] < 2 or x.strides[1] == x.itemsize else np.ascontiguousarray(x)


def packable(weight: Array) -> Array:
    """A weight [D, E] itself if its rows or its columns are contiguous, else a contiguous copy."""
    return weight if weight.itemsize in weight.strides else np.ascontiguousarray(weight)


def writable(x: Array) -> Array:
    """x itself, or a copy of a read-only array, for which Numba would compile every kernel again."""
    return x if x.flags.writeable else x.copy()


def columns_of(*parts: Array) -> tuple[list[Array], tuple[int, ...]]:
    """Contiguous matrices that contain these arrays [n, D] as columns, and the columns at which they begin.

    q, k and v, or their gradients, are mostly columns of one qkv. A kernel is compiled for every layout it meets; in
    this form there is only one.
    """
    matrices, starts = [], []
    for part in parts:
        base, start = part.base, 0
        if part.flags.c_contiguous:
            base = part
        elif _is_contiguous_matrix(base) and (base.dtype, len(base), base.strides) == (
            part.dtype,
            len(part),
            part.strides,
        ):
            start = (_address(part) - _address(base)) // part.itemsize
        else:
            base = np.ascontiguousarray(part)
        matrices.append(base)
        starts.append(start)
    return matrices, tuple(starts)


def _is_contiguous_matrix(base: object) -> TypeGuard[Array]:
    """Whether this is a contiguous array of two axes."""
    return isinstance(base, np.ndarray) and base.ndim == 2 and base.flags.c_contiguous


def _address(x: Array) -> int:
    """The address of the first number."""
    return int(x.__array_interface__["data"][0])
