"""Array functions of the ``cuda`` backend: what the model does to arrays besides its operations, as on NumPy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numba import cuda

from refvt.array import Array
from refvt.backends.cuda.arguments import IndexMatrix, Indices, Int, Matrix, Real, Vector
from refvt.backends.cuda.device_array import DeviceArray, empty, layout_of, num_valid_of
from refvt.backends.cuda.driver import driver
from refvt.backends.cuda.elementwise import copy, fill
from refvt.backends.cuda.errors import session as session
from refvt.backends.cuda.graphs import GraphCache as GraphCache
from refvt.backends.cuda.interop import on_device as on_device
from refvt.backends.cuda.kernel import kernel
from refvt.backends.cuda.matmul import matmul_nn
from refvt.backends.cuda.threads import cell, valid_rows
from refvt.backends.cuda.upload import read_only, upload

IN_MAIN_MEMORY = False


def from_numpy(array: Any, dtype: str | None = None) -> Array:
    """A device array of the given dtype; a device array is returned unchanged."""
    result: Array = upload(array, dtype)
    return result


def to_numpy(array: Any) -> Array:
    """A contiguous copy in main memory; a NumPy array is returned unchanged."""
    result: Array = array.copy_to_host() if isinstance(array, DeviceArray) else np.asarray(array)
    return result


def zeros(shape: int | tuple[int, ...], dtype: Any) -> Array:
    return fill(empty(shape, dtype), 0)


def write(x: Any, values: Any) -> None:
    """x ← values, of the same shape, from the host or the device; x is contiguous."""
    x.write(values if isinstance(values, DeviceArray) else np.ascontiguousarray(values, x.dtype))


@kernel
def _add_scaled(total: Vector, x: Vector, factor: Real) -> None:
    """total [n] += factor · x [n]; one thread per element."""
    i = cuda.grid(1)
    if i < total.shape[0]:
        total[i] += factor * x[i]


def add_scaled(total: Array, x: Array, factor: float) -> None:
    """total ← total + factor · x, both contiguous and of one shape."""
    _add_scaled.each(total.size, total.reshape(-1), x.reshape(-1), total.dtype.type(factor))


def columns(x: Any, start: int, stop: int) -> Array:
    """x[:, start:stop] as a view."""
    view: Array = x.columns(start, stop)
    return view


def column(x: Any, i: int) -> Array:
    """x[:, i] as a view."""
    view: Array = x.column(i)
    return view


@kernel
def _take(x: Indices, index: Indices, y: Indices) -> None:
    """x [n], index [m] → y [m] = x[index]; one thread per element."""
    i = cuda.grid(1)
    if i < y.shape[0]:
        y[i] = x[index[i]]


def take(x: Array, index: Array) -> Array:
    """x[index], for integers: x [n], index [m] → [m]."""
    y = empty(index.shape[0], np.int64)
    _take.each(index.shape[0], read_only(x), index, y)
    return y


@kernel
def _take_patches(table: IndexMatrix, patches: IndexMatrix, rows: IndexMatrix) -> None:
    """table [n, 1+S+tail], patches [n, k] → rows [n, 1+k+tail]; one thread per element."""
    f, j = cell()
    if f < rows.shape[0] and j < rows.shape[1]:
        column = 0
        if j > patches.shape[1]:
            column = table.shape[1] - 1
        elif j > 0:
            column = 1 + patches[f, j - 1]
        rows[f, j] = table[f, column]


def take_patches(table: Array, places: Array, tail: int = 0) -> Array:
    """From each row its first number, those at 1 + places, and its last if ``tail`` is 1: row indices of a frame.

    table [n, 1+S+tail], places [n, k] → [n, 1+k+tail]. Example: row [c, p0, p1, p2], places [2, 0] → [c, p2, p0].
    """
    n, k = places.shape
    rows = empty((n, 1 + k + tail), np.int64)
    _take_patches.cells(n, 1 + k + tail, read_only(table), places, rows)
    return rows


@kernel
def _frames_to_patches(rows: IndexMatrix, T: Int, y: Indices) -> None:
    """rows [B·T, m] → y [B·m·T]; one thread per element."""
    f, s = cell()
    m = rows.shape[1]
    if f < rows.shape[0] and s < m:
        y[f // T * m * T + s * T + f % T] = rows[f, s]


def frames_to_patches(rows: Array, T: int) -> Array:
    """From frames to patches: [B·T, m] → [B·m·T] flat, the T frames of one patch index next to one another."""
    n, m = rows.shape
    y = empty(n * m, np.int64)
    _frames_to_patches.cells(n, m, rows, T, y)
    return y


@kernel
def _place_block(part: Matrix, num_valid: Indices, whole: Matrix, top: Int, left: Int) -> None:
    """part [n, D] → whole[top : top+n, left : left+D]; one thread per element."""
    r, c = cell()
    if r < valid_rows(num_valid, part.shape[0]) and c < part.shape[1]:
        whole[top + r, left + c] = part[r, c]


def _matrix(x: Array) -> Array:
    return x.reshape(-1, 1) if len(x.shape) == 1 else x


def join_columns(parts: Sequence[Array]) -> Array:
    """The inverse of ``columns``: [n, D1], [n, D2], … → [n, D1 + D2 + …]; no copy if they are adjacent."""
    first: Any = parts[0]
    layout, address = layout_of((first.shape[0], sum(part.shape[1] for part in parts)), first.dtype), first.address
    adjacent = all(part.owner is first.owner and part.strides == layout[2] for part in cast(Any, parts))
    for part in cast(Any, parts):
        adjacent, address = adjacent and part.address == address, address + part.shape[1] * part.itemsize
    if adjacent:
        return cast(Array, DeviceArray(first.address, layout, first.owner))
    whole = empty((parts[0].shape[0], sum(part.shape[1] for part in parts)), parts[0].dtype)
    left = 0
    for part in parts:
        _place_block.cells(part.shape[0], part.shape[1], part, num_valid_of(part), whole, 0, left)
        left += part.shape[1]
    return whole


def join_rows(parts: Sequence[Array]) -> Array:
    """[n1, …], [n2, …], … → [n1 + n2 + …, …]; one or two axes."""
    whole = empty((sum(part.shape[0] for part in parts), *parts[0].shape[1:]), parts[0].dtype)
    target, top = _matrix(whole), 0
    for part in parts:
        matrix = _matrix(part)
        _place_block.cells(matrix.shape[0], matrix.shape[1], matrix, num_valid_of(part), target, top, 0)
        top += part.shape[0]
    return whole


@kernel
def _add(x: Matrix, y: Matrix, total: Matrix) -> None:
    """x [n, D], y [n, D] → total [n, D]; one thread per element."""
    r, c = cell()
    if r < x.shape[0] and c < x.shape[1]:
        total[r, c] = x[r, c] + y[r, c]


def add(*terms: Array | None) -> Array:
    """The sum of the terms that are not None, at least one; one or two axes."""
    present = [term for term in terms if term is not None]
    total = present[0]
    for term in present[1:]:
        left, right = _matrix(total), _matrix(term)
        both = empty(left.shape, left.dtype)
        _add.cells(left.shape[0], left.shape[1], left, right, both)
        total = both.reshape(tuple(term.shape))
    return total


def matmul(a: Array, b: Array) -> Array:
    """The product a b of two weights: the weight of the map b followed by a."""
    return matmul_nn(a, b)


@kernel
def _add_to_column(x: Matrix, column: Int, values: Vector) -> None:
    """x [n, D], values [n]: x[:, column] += values; one thread per row."""
    i = cuda.grid(1)
    if i < x.shape[0]:
        x[i, column] += values[i]


def add_to_column(x: Array, column: int, values: Array) -> Array:
    """A copy of x [n, D] with values [n] added to one column."""
    result = copy(x)
    _add_to_column.each(x.shape[0], result, column, values)
    return result


@kernel
def _not_finite(x: Vector, found: Indices) -> None:
    """x [n] → found [1] = 1 if a number is NaN or infinite; one thread per element."""
    i = cuda.grid(1)
    # NaN fails every comparison; all threads that find one write the same 1
    if i < x.shape[0] and not abs(x[i]) < x.dtype.type(np.inf):
        found[0] = 1


def wait() -> None:
    """Wait until the device has finished all kernels; launches return before their kernels are done."""
    driver().wait()


def check_clips(clips: DeviceArray, dtype: str) -> None:
    """ValueError or TypeError unless clips on the device have the model's dtype, are contiguous and finite."""
    if clips.dtype != np.dtype(dtype):
        raise TypeError(f"clips: expected {dtype} on the device, as the model computes in it, got {clips.dtype}")
    if not clips.contiguous:
        raise ValueError("clips: expected a contiguous array on the device, got a strided view; copy it first")
    found = fill(empty(1, np.int64), 0)
    _not_finite.each(clips.size, clips.reshape(-1), found)
    if to_numpy(found)[0]:
        raise ValueError(f"clips: expected finite numbers in {dtype}, got NaN or infinite values")
