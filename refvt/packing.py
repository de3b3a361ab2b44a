"""Packed rows: the rows of a batch stand one clip after another, and offsets say where each clip begins."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from refvt.array import Array

__all__ = ["first_rows", "frozen_copy", "offsets_of"]


def frozen_copy(array: Array) -> Array:
    """A read-only copy. A backend may keep its own copy of such an array for as long as it lives."""
    copy = array.copy()
    copy.setflags(write=False)
    return copy


def offsets_of(lengths: Array) -> Array:
    """[B+1] where the rows of each clip begin and end, from the number of its rows [B]."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


@lru_cache(maxsize=64)
def first_rows(B: int, rows: int) -> Array:
    """[B] the first row of each clip if every clip has the same number of rows."""
    return frozen_copy(np.arange(B) * rows)
