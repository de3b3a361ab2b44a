"""Kernels that work element by element: fill, copy, scale rows; and sums down the columns of a matrix."""

from __future__ import annotations

from numba import cuda

from refvt.array import Array
from refvt.backends.cuda.arguments import Int, Matrix, Real, Vector
from refvt.backends.cuda.device_array import absent, empty
from refvt.backends.cuda.kernel import kernel
from refvt.backends.cuda.sizes import ROWS_PER_PART
from refvt.backends.cuda.threads import cell

__all__ = ["column_sums", "copy", "copy_into", "fill", "scale_rows"]


@kernel
def _fill(x: Vector, value: Real) -> None:
    """x [n] ← value; one thread per element."""
    i = cuda.grid(1)
    if i < x.shape[0]:
        x[i] = value


def fill(x: Array, value: float) -> Array:
    """Set every element of a contiguous array; returns it."""
    if x.size:
        _fill.each(x.size, x.reshape(-1), x.dtype.type(value))
    return x


@kernel
def _copy(x: Matrix, y: Matrix) -> None:
    """x [n, D] → y [n, D]; one thread per element."""
    r, c = cell()
    if r < y.shape[0] and c < y.shape[1]:
        y[r, c] = x[r, c]


def copy_into(x: Array, y: Array) -> None:
    """y ← x, matrices of one shape."""
    _copy.cells(x.shape[0], x.shape[1], x, y)


def copy(x: Array) -> Array:
    """A fresh contiguous copy of a matrix."""
    y = empty(x.shape, x.dtype)
    copy_into(x, y)
    return y


@kernel
def _scale(x: Matrix, gain: Vector, y: Matrix) -> None:
    """x [n, D], gain [n] → y [n, D]; one thread per element."""
    r, c = cell()
    if r < y.shape[0] and c < y.shape[1]:
        y[r, c] = gain[r] * x[r, c]


def scale_rows(x: Array, gain: Array) -> Array:
    """gain · x, row by row: x [n, D], gain [n] → [n, D]."""
    y = empty(x.shape, x.dtype)
    _scale.cells(x.shape[0], x.shape[1], x, gain, y)
    return y


@kernel
def _partial_sums(x: Matrix, factor: Matrix, height: Int, sums: Matrix) -> None:
    """x [n, D], factor [n, D] or empty → sums [parts, D or 2D]; one thread per element of sums.

    sums[p, j] = Σ over the p-th ``height`` rows of x[i, j]; sums[p, D + j] = Σ x[i, j] · factor[i, j].
    """
    p, c = cell()
    if p < sums.shape[0] and c < sums.shape[1]:
        total, D = x.dtype.type(0), x.shape[1]
        for i in range(p * height, min((p + 1) * height, x.shape[0])):
            total += x[i, c] if c < D else x[i, c - D] * factor[i, c - D]
        sums[p, c] = total


def column_sums(x: Array, factor: Array | None = None) -> Array:
    """Σ over rows of x, [n, D] → [D]; with ``factor`` [n, D] also Σ over rows of x · factor behind it, [2D].

    Rows are summed in parts, then the parts: enough threads work at once, and rounding errors stay small.
    """
    n, D = x.shape
    width = D if factor is None else 2 * D
    if n == 0:
        return fill(empty(width, x.dtype), 0)
    factor = absent(x.dtype, 2) if factor is None else factor
    while True:
        parts = -(-n // ROWS_PER_PART)
        sums = empty((parts, width), x.dtype)
        _partial_sums.cells(parts, width, x, factor, ROWS_PER_PART, sums)
        if parts == 1:
            return sums.reshape(width)
        x, n, factor = sums, parts, absent(x.dtype, 2)
