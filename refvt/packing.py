"""Packed rows: the rows of all clips in one array, clip after clip; offsets mark the first row of each."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from refvt.array import Array

__all__ = ["first_rows", "frozen_copy", "offsets_of"]


def frozen_copy(array: Array) -> Array:
    """A read-only copy of an array. A backend may keep its own copy of a read-only array for the life of the array."""
    copy = array.copy()
    copy.setflags(write=False)
    return copy


def offsets_of(lengths: Array) -> Array:
    """Offsets [B+1] from the number of rows of each clip [B]: clip b has the rows offsets[b] to offsets[b+1] − 1."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


@lru_cache(maxsize=64)
def first_rows(B: int, rows: int) -> Array:
    """The first row of each clip [B], if all clips have the same number of rows."""
    return frozen_copy(np.arange(B) * rows)
