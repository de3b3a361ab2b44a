"""Copies of host arrays on the device, and those that are kept because the host array never changes."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

import numpy as np

from refvt.array import Array
from refvt.backends.cuda.device_array import DeviceArray, empty

__all__ = ["copies_used", "read_only", "upload"]

SHORT = 1024  # most elements of an index array that is kept by its contents: offsets of clips, rows of CLS
MOST_COPIES = 1 << 14
_COPIES: dict[Any, Array] = {}  # copies of arrays that never change, by id; of short index arrays, by their bytes


def upload(array: Any, dtype: Any = None) -> Array:
    """A host array on the device, contiguous and of the given dtype; a device array is returned unchanged.

    TypeError if a device array has another dtype.
    """
    if isinstance(array, DeviceArray):
        if dtype is not None and array.dtype != dtype:
            raise TypeError(f"array: expected a device array of {np.dtype(dtype)}, got {array.dtype}")
        return cast(Array, array)
    return _copy_to_device(np.ascontiguousarray(array, dtype=dtype))


class _Used(threading.local):
    copies: list[Array] | None = None


_used = _Used()


@contextmanager
def copies_used() -> Iterator[list[Array]]:
    """A list of all copies that ``read_only`` returns to this thread inside; holding the list keeps them alive."""
    _used.copies = []
    try:
        yield _used.copies
    finally:
        _used.copies = None


def read_only(array: Any, dtype: Any = np.int64) -> Array:
    """``upload`` for arrays that kernels only read, mostly indices: an array seen before is not copied again.

    Copies are kept of arrays that are not writeable, as long as these live, and of short index arrays.
    """
    if isinstance(array, DeviceArray):
        return upload(array, dtype)
    found = _COPIES.get(id(array))
    if found is None or dtype != found.dtype:
        found = _kept_copy(array, dtype)
    if _used.copies is not None:
        _used.copies.append(found)
    return found


def _kept_copy(array: Any, dtype: Any) -> Array:
    host = np.ascontiguousarray(array, dtype=dtype)
    key: Any = None
    if host.dtype == np.int64 and host.ndim == 1 and len(host) <= SHORT:
        key = host.tobytes()
        found = _COPIES.get(key)
        if found is not None:
            return found
    elif host is array and host.base is None and not host.flags.writeable:
        key = id(array)
        weakref.finalize(array, _COPIES.pop, key, None).atexit = False
    copy = _copy_to_device(host)
    if key is not None:
        while len(_COPIES) >= MOST_COPIES:
            with suppress(StopIteration, RuntimeError):  # another thread may change the table meanwhile
                _COPIES.pop(next(iter(_COPIES)), None)
        _COPIES[key] = copy
    return copy


def _copy_to_device(host: Array) -> Array:
    device: Any = empty(host.shape, host.dtype)
    device.write(host)
    return cast(Array, device)
