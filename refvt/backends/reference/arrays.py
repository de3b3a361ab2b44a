"""The array functions of NumPy, which ``reference`` and ``jit`` share (see ``refvt.backends.interface``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from refvt.array import Array

IN_MAIN_MEMORY = True


class GraphCache:
    """Runs a function as it is. On a GPU the second forward pass of a kind is recorded and launched as a whole."""

    def __call__(self, kind: Any, parameters: Any, function: Callable[[Any], Any], clips: Any) -> Any:
        return function(clips)


def session() -> AbstractContextManager[None]:
    """Nothing has to be held around a run."""
    return nullcontext()


def from_numpy(array: Array, dtype: str | None = None) -> Array:
    """A C-contiguous array of the given dtype; a copy only where one is needed."""
    return np.asarray(array, dtype=dtype, order="C")


def to_numpy(array: Array) -> Array:
    return array


def wait() -> None:
    """Nothing to wait for: work is done when a function returns."""


def on_device(array: object) -> None:
    """None: this backend has no device, so an array that lies on one is not taken."""
    return None


def check_clips(clips: Array, dtype: str) -> None:
    """ValueError unless the clips are finite."""
    if not np.isfinite(clips).all():
        raise ValueError(f"clips: expected finite numbers in {dtype}, got NaN or infinite values")


def zeros(shape: int | tuple[int, ...], dtype: Any) -> Array:
    return np.zeros(shape, dtype=dtype)


def fill(x: Array, value: float) -> Array:
    """Set every element; returns x."""
    x[...] = value
    return x


def write(x: Array, values: Array) -> None:
    """x ← values, of the same shape; nothing to do where they are x itself."""
    if values is not x:
        x[...] = values


def add_scaled(total: Array, x: Array, factor: float) -> None:
    """total ← total + factor · x, of one shape."""
    total += total.dtype.type(factor) * x


def columns(x: Array, start: int, stop: int) -> Array:
    """x[:, start:stop] as a view: q, k and v are columns of one qkv."""
    return x[:, start:stop]


def column(x: Array, i: int) -> Array:
    """x[:, i] as a view: the halting logit is column 0 of the state."""
    return x[:, i]


def take(x: Array, index: Array) -> Array:
    """x[index], of integers."""
    return np.asarray(x[index])


def take_patches(table: Array, places: Array, tail: int = 0) -> Array:
    """The rows of CLS and of chosen patches of each frame: table[:, 0], table[:, 1 + places], table[:, −1] if ``tail``.

    table [n, 1+S+tail], places [n, k] → [n, 1+k+tail]. With S = 3 and k = 2, row [c, p0, p1, p2] and places [2, 0] give
    [c, p2, p0].
    """
    chosen = np.take_along_axis(table, 1 + places, axis=1)
    return np.concatenate([table[:, :1], chosen, table[:, table.shape[1] - tail :]], axis=1)


def frames_to_patches(rows: Array, T: int) -> Array:
    """From frame-major to patch-major order: [B·T, m] → [B·m·T], the T rows of one place next to one another."""
    return np.ascontiguousarray(rows.reshape(-1, T, rows.shape[1]).transpose(0, 2, 1)).reshape(-1)


def join_columns(parts: Sequence[Array]) -> Array:
    """[n, D1], [n, D2], … → [n, D1 + D2 + …]; no copy if the parts are neighbouring views of one array."""
    first, width = parts[0], sum(part.shape[1] for part in parts)
    strides = (width * first.itemsize, first.itemsize)
    if first.base is not None and all(
        part.base is first.base and part.strides == strides and part.dtype == first.dtype for part in parts
    ):
        ends = [part.ctypes.data + part.shape[1] * part.itemsize for part in parts]
        if all(end == part.ctypes.data for end, part in zip(ends, parts[1:], strict=False)):
            return np.lib.stride_tricks.as_strided(first, (len(first), width), strides)
    return np.concatenate(parts, axis=1)


def join_rows(parts: Sequence[Array]) -> Array:
    """[n1, …], [n2, …], … → [n1 + n2 + …, …]."""
    return np.concatenate(parts, axis=0)


def add(*terms: Array | None) -> Array:
    """The sum of those terms that are not None (at least one must be)."""
    present = [term for term in terms if term is not None]
    if len(present) == 1:
        return present[0]
    total: Array = present[0] + present[1]
    for term in present[2:]:
        total += term
    return total


def matmul(a: Array, b: Array) -> Array:
    """a b, of two weights: the weight of layer b followed by layer a."""
    result: Array = a @ b
    return result


def add_to_column(x: Array, column: int, values: Array) -> Array:
    """A copy of x with values added to one column."""
    result = x.copy()
    result[:, column] += values
    return result
