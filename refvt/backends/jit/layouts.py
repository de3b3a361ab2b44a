"""Memory layouts that kernels are compiled for; other arrays are copied first, and so are read-only ones.

To Numba these are arrays of other types, for which it would compile a kernel again. That takes seconds; a copy takes
less time than the kernel itself.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import numpy as np

from refvt.array import Array
from refvt.backends.jit.kernel import kernel

__all__ = ["columns_of", "contiguous", "packable"]


def contiguous(x: Array, dtype: Any = None) -> Array:
    """x itself if it is contiguous, writable and of this dtype (None: of any), else a copy."""
    fits = x.flags.c_contiguous and x.flags.writeable and (dtype is None or x.dtype == dtype)
    return x if fits else np.array(x, dtype, order="C")


def packable(weight: Array) -> Array:
    """A weight [D, E] itself if it or its transpose is contiguous, else a copy."""
    return weight if weight.flags.f_contiguous and weight.flags.writeable else contiguous(weight)


def columns_of(*parts: Array) -> tuple[list[Array], tuple[int, ...]]:
    """Contiguous matrices that contain these arrays [n, D] as columns, and the columns at which they begin.

    q, k and v, or their gradients, are mostly columns of one qkv: in this form a kernel takes them without a copy. A
    part that is no column of such a matrix is copied.
    """
    matrices, starts = [], []
    for part in parts:
        base, start = part.base, 0
        if not part.flags.c_contiguous and _holds_columns(base, part):
            start = _first_column(base, part)
        else:
            base = contiguous(part)
        matrices.append(base)
        starts.append(start)
    return matrices, tuple(starts)


def _holds_columns(base: object, part: Array) -> TypeGuard[Array]:
    """Whether ``part`` [n, D] is columns of ``base`` [n, m], a matrix that needs no copy."""
    return (
        isinstance(base, np.ndarray)
        and base.ndim == 2
        and base.flags.c_contiguous
        and base.flags.writeable
        and (base.dtype, len(base), base.strides) == (part.dtype, len(part), part.strides)
    )


@kernel
def _first_column(base: Array, part: Array) -> int:
    """The column of ``base`` at which ``part`` begins. NumPy tells addresses too, but takes 20 times as long."""
    column: int = (part.ctypes.data - base.ctypes.data) // base.itemsize
    return column
