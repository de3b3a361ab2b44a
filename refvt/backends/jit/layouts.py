"""How arrays must lie in memory for generated code, which reads rows as vectors: what lies otherwise is copied."""

from __future__ import annotations

from typing import TypeGuard

import numpy as np

from refvt.array import Array

__all__ = ["by_rows", "columns_of", "packable"]


def by_rows(x: Array) -> Array:
    """x [n, D] itself if the numbers of a row lie side by side, else a copy."""
    return x if x.shape[1] < 2 or x.strides[1] == x.itemsize else np.ascontiguousarray(x)


def packable(weight: Array) -> Array:
    """A weight itself if the numbers of its rows or of its columns lie side by side, else a copy."""
    return weight if weight.itemsize in weight.strides else np.ascontiguousarray(weight)


def columns_of(*parts: Array) -> tuple[list[Array], tuple[int, ...]]:
    """q, k and v, or their gradients, as columns of contiguous matrices: the matrices, and where those columns begin.

    They are mostly columns of one qkv. A kernel is compiled for every layout it meets; so that it meets but one.
    """
    matrices, starts = [], []
    for part in parts:
        base, start = part.base, 0
        if part.flags.c_contiguous:
            base = part
        elif _is_of_rows(base) and (base.dtype, len(base), base.strides) == (part.dtype, len(part), part.strides):
            start = (_address(part) - _address(base)) // part.itemsize
        else:
            base = np.ascontiguousarray(part)
        matrices.append(base)
        starts.append(start)
    return matrices, tuple(starts)


def _is_of_rows(base: object) -> TypeGuard[Array]:
    return isinstance(base, np.ndarray) and base.ndim == 2 and base.flags.c_contiguous


def _address(x: Array) -> int:
    return int(x.__array_interface__["data"][0])
