"""Arrays on the GPU as the host sees them: address, shape, strides, and the owner of their memory.

Views (some rows, some columns, another shape) are new descriptions of the same memory. An array's description is
computed once, in the order in which a kernel takes it (``words``): a forward pass launches some two hundred kernels,
and computing it again at every launch took longer than many a kernel runs.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import Any, cast

import numpy as np

from refvt.array import Array
from refvt.backends.cuda.driver import LEGACY_STREAM, driver
from refvt.backends.cuda.errors import explained

__all__ = ["DeviceArray", "absent", "empty", "layout_of", "num_valid_of", "read_num_valid", "with_rows_of"]


class _Memory:
    """A block of device memory, appended to its free list when nothing refers to it any more."""

    __slots__ = ("address", "free_list")

    def __init__(self, size: int) -> None:
        free_list = driver().free_list(size)
        try:
            self.address: int = free_list.pop()
        except IndexError:
            self.address = driver().allocate(free_list)
        self.free_list = free_list

    def __del__(self) -> None:
        try:  # noqa: SIM105 - at interpreter shutdown contextlib may be gone
            self.free_list.append(self.address)
        except Exception:  # the allocation failed, or the driver is gone already
            pass


@lru_cache(maxsize=1 << 14)  # the same few shapes recur in every layer and every pass
def layout_of(shape: Any, dtype: Any, strides: tuple[int, ...] | None = None) -> tuple[Any, ...]:
    """What follows from an array's shape: all that ``DeviceArray`` keeps except the address.

    The last but one are the words before and behind the address; the last is the number of bytes.
    """
    lengths = tuple(map(int, shape)) if isinstance(shape, tuple) else (int(shape),)
    dtype = np.dtype(dtype)
    size, packed, step = math.prod(lengths), [], dtype.itemsize
    for length in reversed(lengths):
        packed.append(step)
        step *= length
    contiguous_strides = tuple(reversed(packed))
    strides = contiguous_strides if strides is None else strides
    contiguous = size == 0 or all(
        n == 1 or a == b for n, a, b in zip(lengths, strides, contiguous_strides, strict=True)
    )
    kind = f"{len(lengths)}{'c' if contiguous else 's'}{dtype.char}"
    around = (0, 0, size, dtype.itemsize), (*lengths, *strides)
    return lengths, dtype, strides, size, contiguous, kind, around, size * dtype.itemsize


class DeviceArray:
    """An array on the GPU. ``strides`` in bytes; ``owner`` is kept for as long as the array lives.

    words: 0, 0, number of elements, bytes of one, address, shape, strides: numba's own order.
    kind: number of axes, ``c`` if contiguous (``s`` if not), the dtype's letter; decides which kernel is loaded.
    lists: of an index array that is no longer written to: the lists of copies that gather's backward made from it.
    num_valid: an array of one number, the number of valid rows where only the device knows it; other rows have no
    meaning. None: all rows are valid.
    """

    __slots__ = (
        *("__weakref__", "address", "contiguous", "dtype", "kind", "lists", "nbytes", "num_valid", "owner"),
        *("shape", "size", "strides", "words"),
    )

    def __init__(self, address: int, layout: tuple[Any, ...], owner: Any) -> None:
        self.address, self.owner = address, owner
        self.shape, self.dtype, self.strides, self.size, self.contiguous, self.kind, around, self.nbytes = layout
        self.words = (*around[0], address, *around[1])
        self.num_valid: DeviceArray | None = None
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
        """x[start:stop]: a view of neighbouring rows."""
        if not isinstance(rows, slice) or rows.step not in (None, 1):
            raise TypeError(f"rows: expected a slice along the first axis, as x[2:5], got {rows!r}")
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
        view.num_valid = self.num_valid
        return view

    def column(self, i: int) -> DeviceArray:
        """x[:, i] of a matrix: a view."""
        address = self.address + i * self.strides[1]
        view = DeviceArray(address, layout_of(self.shape[:1], self.dtype, self.strides[:1]), self.owner)
        view.num_valid = self.num_valid
        return view

    def reshape(self, *shape: Any) -> DeviceArray:
        """A view of another shape, of which one length may be −1; ValueError unless the array is contiguous."""
        lengths = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape
        if -1 in lengths:
            rest = -math.prod(lengths)
            lengths = tuple(self.size // max(rest, 1) if n == -1 else n for n in lengths)
        if not self.contiguous or math.prod(lengths) != self.size:
            raise ValueError(f"a device array of shape {self.shape}, strides {self.strides} cannot become {lengths}")
        return DeviceArray(self.address, layout_of(lengths, self.dtype), self.owner)

    def copy_to_host(self) -> Array:
        """A NumPy copy; waits for the kernels that write the array."""
        with explained():
            return self._download()

    def _download(self) -> Array:
        if self.contiguous:
            host = np.empty(self.shape, self.dtype)
            if self.size:
                driver().download(host, self.address)
            return host
        reach = sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True)) + self.itemsize
        block = np.empty(reach, np.uint8)  # everything between the first element and the last
        driver().download(block, self.address)
        return np.ndarray(self.shape, self.dtype, block.data, 0, self.strides).copy()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("copy: expected True or None for a device array, got False")
        return self.copy_to_host() if dtype is None else self.copy_to_host().astype(dtype)

    def write(self, values: Any) -> None:
        """x ← values, from the host or the device; both contiguous, of one dtype and one number of elements."""
        both = self.contiguous and (values.contiguous if isinstance(values, DeviceArray) else values.flags.c_contiguous)
        if not both or values.dtype != self.dtype or values.size != self.size:
            raise ValueError(
                f"values: expected contiguous numbers for {self!r}, got {values.dtype} {tuple(values.shape)}"
            )
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
    """A fresh device array with arbitrary contents. (To a type checker it is an ``Array`` like any other.)"""
    layout = layout_of(shape, dtype)
    size = layout[-1]
    memory = _Memory(size) if size else None
    array: Any = DeviceArray(memory.address if memory else 0, layout, memory)
    return cast(Array, array)


@cache
def absent(dtype: Any, ndim: int) -> Array:
    """The array of no elements that stands for an absent optional argument of a kernel."""
    return empty((0,) * ndim, dtype)


def num_valid_of(x: Any) -> Array:
    """The number of valid rows as a kernel takes it: an array [1] if only the device knows it, else no elements."""
    return absent(np.int64, 1) if x.num_valid is None else cast(Array, x.num_valid)


def read_num_valid(x: Any) -> int:
    """The number of valid rows; copied from the device if only it knows."""
    return int(x.shape[0]) if x.num_valid is None else min(int(x.num_valid.copy_to_host()[0]), int(x.shape[0]))


def with_rows_of(x: Any, y: Any) -> Array:
    """y, marked to have as many valid rows as x."""
    y.num_valid = x.num_valid
    return cast(Array, y)
