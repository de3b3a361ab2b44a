"""Arrays on the GPU as the host sees them: where they lie, their shape and strides, and who holds their memory.

Views (a slice of rows, some columns, another shape) are new numbers about the same memory. What is known of an array is
written down once, in the order in which a kernel takes it (``words``): a kernel is launched some two hundred times in a
forward pass, and finding it out anew at every launch took longer than many a kernel runs.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, cast

import numpy as np

from refvt.array import Array
from refvt.backends.cuda.driver import LEGACY_STREAM, driver

__all__ = ["DeviceArray", "empty", "layout_of"]


class _Memory:
    """A piece of the device's memory, put back on its shelf when nothing refers to it any more."""

    __slots__ = ("address", "shelf")

    def __init__(self, size: int) -> None:
        shelf = driver().shelf(size)
        try:
            self.address: int = shelf.pop()
        except IndexError:
            self.address = driver().allocate(shelf)
        self.shelf = shelf

    def __del__(self) -> None:
        try:  # noqa: SIM105 - a process that ends may have lost contextlib by now
            self.shelf.append(self.address)
        except Exception:  # there was no memory to be had, or the driver went first
            pass


@lru_cache(maxsize=1 << 14)  # the same few shapes come again in every layer and every pass
def layout_of(shape: Any, dtype: Any, strides: tuple[int, ...] | None = None) -> tuple[Any, ...]:
    """What an array's shape says: all that ``DeviceArray`` keeps but the address, its words around that, its bytes."""
    lengths = tuple(map(int, shape)) if isinstance(shape, tuple) else (int(shape),)
    dtype = np.dtype(dtype)
    size, packed, apart = math.prod(lengths), [], dtype.itemsize
    for length in reversed(lengths):
        packed.append(apart)
        apart *= length
    rows = tuple(reversed(packed))
    strides = rows if strides is None else strides
    gapless = size == 0 or all(n == 1 or a == b for n, a, b in zip(lengths, strides, rows, strict=True))
    kind = f"{len(lengths)}{'c' if gapless else 's'}{dtype.char}"
    around = (0, 0, size, dtype.itemsize), (*lengths, *strides)
    return lengths, dtype, strides, size, gapless, kind, around, size * dtype.itemsize


class DeviceArray:
    """An array on the GPU. ``strides`` in bytes; ``owner`` is kept for as long as the array lives.

    words: nobody's memory to numba (twice 0), numbers, bytes of one, address, shape, strides: numba's own order.
    kind: axes, ``c`` if it is contiguous (``s`` if not), the dtype's letter; what a kernel is compiled for.
    lists: what gather's backward has found out about an index that nobody writes to any more.
    count: an array of one number, how many of the rows there really are, where only the device knows; what lies in the
    others means nothing.
    """

    __slots__ = (
        *("__weakref__", "address", "contiguous", "count", "dtype", "kind", "lists", "nbytes", "owner"),
        *("shape", "size", "strides", "words"),
    )

    def __init__(self, address: int, layout: tuple[Any, ...], owner: Any) -> None:
        self.address, self.owner = address, owner
        self.shape, self.dtype, self.strides, self.size, self.contiguous, self.kind, around, self.nbytes = layout
        self.words = (*around[0], address, *around[1])
        self.count: DeviceArray | None = None
        self.lists: Any = None

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def itemsize(self) -> int:
        return int(self.dtype.itemsize)

    def __len__(self) -> int:
        return int(self.shape[0])

    def __repr__(self) -> str:
        return f"DeviceArray(shape={self.shape}, dtype={self.dtype})"

    def __getitem__(self, rows: slice) -> DeviceArray:
        """Some rows, one after another: a view."""
        if not isinstance(rows, slice) or rows.step not in (None, 1):
            raise TypeError(f"a device array can be cut along its first axis, as x[2:5], got {rows!r}")
        start, stop, _ = rows.indices(self.shape[0])
        shape = (max(0, stop - start), *self.shape[1:])
        return DeviceArray(
            self.address + start * self.strides[0], layout_of(shape, self.dtype, self.strides), self.owner
        )

    def columns(self, start: int, stop: int) -> DeviceArray:
        """x[:, start:stop] of a matrix: a view."""
        across = self.strides[1]
        shape = (self.shape[0], stop - start)
        view = DeviceArray(self.address + start * across, layout_of(shape, self.dtype, self.strides), self.owner)
        view.count = self.count
        return view

    def column(self, i: int) -> DeviceArray:
        """x[:, i] of a matrix: a view."""
        place = self.address + i * self.strides[1]
        view = DeviceArray(place, layout_of(self.shape[:1], self.dtype, self.strides[:1]), self.owner)
        view.count = self.count
        return view

    def reshape(self, *shape: Any) -> DeviceArray:
        """The same numbers in another shape, of which one length may be −1; ValueError unless they are contiguous."""
        lengths = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape
        if -1 in lengths:
            rest = -math.prod(lengths)
            lengths = tuple(self.size // max(rest, 1) if n == -1 else n for n in lengths)
        if not self.contiguous or math.prod(lengths) != self.size:
            raise ValueError(f"a device array of shape {self.shape}, strides {self.strides} cannot become {lengths}")
        return DeviceArray(self.address, layout_of(lengths, self.dtype), self.owner)

    def copy_to_host(self) -> Array:
        """A copy in main memory; waits for the kernels that write it."""
        if self.contiguous:
            host = np.empty(self.shape, self.dtype)
            if self.size:
                driver().download(host, self.address)
            return host
        reach = sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True)) + self.itemsize
        block = np.empty(reach, np.uint8)  # all that lies between the first number and the last
        driver().download(block, self.address)
        return np.ndarray(self.shape, self.dtype, block.data, 0, self.strides).copy()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("an array on the device can only be copied to main memory")
        return self.copy_to_host() if dtype is None else self.copy_to_host().astype(dtype)

    def write(self, values: Any) -> None:
        """x ← values, from the host or the device; both contiguous, of one dtype and of as many numbers."""
        both = self.contiguous and (values.contiguous if isinstance(values, DeviceArray) else values.flags.c_contiguous)
        if not both or values.dtype != self.dtype or values.size != self.size:
            raise ValueError(f"{self!r}: expected as many contiguous numbers, got {values.dtype} {tuple(values.shape)}")
        if not self.size:
            return
        if isinstance(values, DeviceArray):
            driver().copy(self.address, values.address, self.nbytes)
        else:
            driver().upload(self.address, values)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None if self.contiguous else self.strides,
            "stream": LEGACY_STREAM,
            "version": 3,
        }


def empty(shape: int | tuple[int, ...], dtype: Any) -> Array:
    """A fresh device array, its contents whatever lay there. (To a type checker it is an array like any other.)"""
    layout = layout_of(shape, dtype)
    size = layout[-1]
    memory = _Memory(size) if size else None
    array: Any = DeviceArray(memory.address if memory else 0, layout, memory)
    return cast(Array, array)
