"""What the jit column has of the machine: how many threads, and memory that was touched before.

The first look at a fresh page of memory costs more than a whole pass over it. So temporaries lie in a ``workspace`` of
their thread, and what results leave behind is kept for later ones (``keep_freed_memory``).
"""

from __future__ import annotations

import ctypes
import math
import os
import threading
from typing import Any

import numpy as np

from refvt.array import Array

__all__ = ["keep_freed_memory", "num_threads", "set_num_threads", "workspace"]

LINE = 64  # bytes of a cache line
MOST_KEPT = 1 << 29  # bytes of freed memory that wait for later results
LARGEST_KEPT = 1 << 25  # bytes of an array; glibc gives larger ones back at once, whatever it is asked

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


def keep_freed_memory() -> bool:
    """Ask glibc to hand out freed memory again, up to MOST_KEPT bytes of it, before it asks for more; did it listen?

    For the whole process: 2 µs for every fresh page of 4 KB add up to a tenth of a training step. Elsewhere than with
    glibc nothing happens.
    """
    trim_threshold, mmap_threshold = -1, -3  # the numbers of mallopt's parameters
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(trim_threshold, MOST_KEPT) and mallopt(mmap_threshold, LARGEST_KEPT))


def _aligned(size: int) -> Array:
    """So many bytes from the start of a cache line: vectors that lie across two lines cost two loads."""
    block: Array = np.empty(size + LINE, dtype=np.uint8)
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
