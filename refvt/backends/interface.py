"""The interface of a backend's array functions: what ``refvt/backends/<backend>/arrays.py`` holds."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from refvt.array import Array

__all__ = ["ArrayFunctions"]


class ArrayFunctions(Protocol):
    """Functions on arrays that are no operations of the model. A module of this form belongs to each backend.

    "Array" is NumPy's for ``reference`` and ``jit``, and lies on the GPU for ``cuda``.
    """

    IN_MAIN_MEMORY: bool
    """Whether the arrays are NumPy arrays."""

    GraphCache: Any
    """``GraphCache()(kind, parameters, function, clips)`` is function(clips), recorded where launching costs time."""

    def session(self) -> AbstractContextManager[None]:
        """Held around a run of the model."""

    # in and out

    def from_numpy(self, array: Array, dtype: str | None = None) -> Array:
        """A C-contiguous array of the backend; a copy only where one is needed."""

    def to_numpy(self, array: Array) -> Array:
        """The array in main memory."""

    def on_device(self, array: object) -> Any:
        """The array as the backend takes it if it lies on the backend's device, else None."""

    def check_clips(self, clips: Array, dtype: str) -> None:
        """ValueError or TypeError unless clips of the backend have this dtype, are contiguous and finite."""

    def wait(self) -> None:
        """Return when all work is done."""

    # whole arrays

    def zeros(self, shape: int | tuple[int, ...], dtype: Any) -> Array:
        """A fresh array of zeros."""

    def fill(self, x: Array, value: float) -> Array:
        """Set every element of x; returns x."""

    def write(self, x: Array, values: Array) -> None:
        """x ← values, of the same shape."""

    def add(self, *terms: Array | None) -> Array:
        """The sum of those terms that are not None; at least one must be."""

    def add_scaled(self, total: Array, x: Array, factor: float) -> None:
        """total ← total + factor · x, of one shape."""

    def matmul(self, a: Array, b: Array) -> Array:
        """a b, of two weights."""

    # rows and columns

    def columns(self, x: Array, start: int, stop: int) -> Array:
        """x[:, start:stop] as a view."""

    def column(self, x: Array, i: int) -> Array:
        """x[:, i] as a view."""

    def add_to_column(self, x: Array, column: int, values: Array) -> Array:
        """A copy of x [n, D] with values [n] added to one column."""

    def join_columns(self, parts: Sequence[Array]) -> Array:
        """[n, D1], [n, D2], … → [n, D1 + D2 + …]; no copy if the parts lie side by side in one array already."""

    def join_rows(self, parts: Sequence[Array]) -> Array:
        """[n1, …], [n2, …], … → [n1 + n2 + …, …]."""

    # indices

    def take(self, x: Array, index: Array) -> Array:
        """x[index], of integers."""

    def take_patches(self, table: Array, places: Array, tail: int = 0) -> Array:
        """Rows of CLS and of chosen patches: table [n, 1+S+tail], places [n, k] → [n, 1+k+tail]."""

    def frames_to_patches(self, rows: Array, T: int) -> Array:
        """From frame-major to patch-major order: [B·T, m] → [B·m·T]."""
