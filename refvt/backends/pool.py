"""What the jit column has of the machine: how many threads, and memory that was touched before.

The first look at a fresh page of memory costs more than a whole pass over it: a training step that asks the system for
its gradients anew spends a tenth of its time on that. So temporaries lie in a ``workspace`` of their thread, and results
in ``fresh`` memory that is handed out again once nobody looks at the array any more.
"""

from __future__ import annotations

import math
import os
import threading
from typing import Any

import numpy as np

from refvt.ops import Array

__all__ = ["fresh", "num_threads", "set_num_threads", "workspace"]

LINE = 64  # bytes of a cache line
LEAST_LENT = 1 << 15  # bytes; below that np.empty hands out what was used before by itself
MOST_IDLE = 1 << 29  # bytes kept for later results; what comes back beyond that is given to the system

_lock = threading.RLock()  # the collector may return a block while its own thread is at it
_blocks: dict[int, list[Array]] = {}  # by size
_idle = 0
_threads = 0  # 0: not chosen yet
_local = threading.local()


def num_threads() -> int:
    """How many threads share the work: REFVT_NUM_THREADS, or the processors this process may use."""
    global _threads
    if _threads == 0:
        asked = os.environ.get("REFVT_NUM_THREADS", "")
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        _threads = int(asked) if asked.isdigit() and int(asked) > 0 else available
    return _threads


def set_num_threads(number: int) -> None:
    """Share the work among this many threads from now on. ValueError below 1."""
    global _threads
    if number < 1:
        raise ValueError(f"number: expected at least 1 thread, got {number}")
    _threads = number


class _Lease:
    """Memory lent to one result. It comes back when the last array that looks at it is gone."""

    __slots__ = ("block",)

    def __init__(self, block: Array) -> None:
        self.block = block

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return self.block.__array_interface__

    def __del__(self) -> None:
        global _idle
        size = self.block.nbytes
        with _lock:
            if _idle + size <= MOST_IDLE:
                _idle += size
                _blocks.setdefault(size, []).append(self.block)


def fresh(shape: int | tuple[int, ...], dtype: Any) -> Array:
    """An uninitialised array, as ``np.empty`` gives one, in memory that was used before where there is some."""
    global _idle
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size < LEAST_LENT:
        return np.empty(shape, dtype)
    step = 1 << (size.bit_length() - 4)  # sizes go up in steps of at most an eighth, so that later ones fit
    size_class = -(-size // step) * step
    block = None
    with _lock:
        if _blocks.get(size_class):
            block = _blocks[size_class].pop()
            _idle -= size_class
    lease = _Lease(_aligned(size_class) if block is None else block)
    lent: Array = np.asarray(lease)
    return lent[:size].view(dtype).reshape(shape)


def _aligned(size: int) -> Array:
    """So many bytes from the start of a cache line: vectors that lie across two lines cost two loads."""
    block = np.empty(size + LINE, dtype=np.uint8)
    start = -block.ctypes.data % LINE
    return block[start : start + size]


def workspace(name: str, shape: tuple[int, ...], dtype: Any) -> Array:
    """An uninitialised array that this thread uses again at the next call with this name: no fresh pages to touch."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    buffers: dict[str, Array] = _local.__dict__.setdefault("buffers", {})
    if name not in buffers or buffers[name].nbytes < size:
        buffers[name] = _aligned(size)
    view: Array = buffers[name][:size].view(dtype).reshape(shape)
    return view
