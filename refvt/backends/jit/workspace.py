"""The number of threads, and memory that is reused because the system has already mapped it.

The first access to a fresh page of memory costs more than a whole pass over it. So temporaries live in a ``workspace``
of their thread, and the memory of freed results is kept for later ones (``keep_freed_memory``).
"""

from __future__ import annotations

import ctypes
import math
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np

from refvt.array import Array

__all__ = ["keep_freed_memory", "num_threads", "set_num_threads", "share_of", "workspace"]

LINE = 64  # bytes of a cache line
MOST_THREADS = 1024
# where Linux writes what share of the processors a container has, in its two versions
CPU_SHARES = (
    ("/sys/fs/cgroup/cpu.max",),
    ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
)
MOST_KEPT = 1 << 29  # bytes of freed memory kept for later results
LARGEST_KEPT = 1 << 25  # bytes of an array; larger ones glibc always returns at once

_threads = 0  # 0: not chosen yet
_local = threading.local()


def num_threads() -> int:
    """Number of threads that share the work: REFVT_NUM_THREADS, or the number of processors this process may use.

    Raises ValueError if REFVT_NUM_THREADS is no whole number from 1 to MOST_THREADS.
    """
    global _threads
    if _threads == 0:
        setting = os.environ.get("REFVT_NUM_THREADS", "").strip()
        bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        _threads = _read_number(setting) if setting else share_of(bound)
    return _threads


def share_of(processors: int) -> int:
    """How many of the processors a container may use: all, or its share of their time, rounded up.

    Inside a container the files of ``CPU_SHARES`` hold its own limits; elsewhere there are none.
    """
    for files in CPU_SHARES:
        try:  # microseconds of processor time in each period, and the period
            time, period = map(int, " ".join(Path(file).read_text(encoding="ascii") for file in files).split())
        except (OSError, ValueError):  # no such file, or "max": no limit
            continue
        if time > 0 and period > 0:
            processors = min(processors, -(-time // period))
    return processors


def _read_number(setting: str) -> int:
    number = int(setting) if setting.isdecimal() and len(setting) < 10 else 0
    if not 0 < number <= MOST_THREADS:
        raise ValueError(f"REFVT_NUM_THREADS: expected a whole number from 1 to {MOST_THREADS}, got {setting[:40]!r}")
    return number


def set_num_threads(number: int) -> None:
    """Set the number of threads that share the work from now on. ValueError below 1."""
    global _threads
    if number < 1:
        raise ValueError(f"number: expected at least 1 thread, got {number}")
    _threads = number


def keep_freed_memory() -> bool:
    """Make glibc keep up to MOST_KEPT bytes of freed memory for this process; whether it agreed.

    Without it every training step maps its memory again, at 2 µs for every page of 4 KB: a tenth of the step. Where the
    C library is not glibc nothing happens.
    """
    trim_threshold, mmap_threshold = -1, -3  # the numbers of mallopt's parameters
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(trim_threshold, MOST_KEPT) and mallopt(mmap_threshold, LARGEST_KEPT))


def _aligned(size: int) -> Array:
    """``size`` bytes that start on a cache line: a vector that crosses two lines costs two loads."""
    block: Array = np.empty(size + LINE, dtype=np.uint8)
    start = -block.ctypes.data % LINE
    return block[start : start + size]


def workspace(name: str, shape: tuple[int, ...], dtype: Any) -> Array:
    """An uninitialised array in memory that this thread reuses at its next call with the same name."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    buffers: dict[str, Array] = _local.__dict__.setdefault("buffers", {})
    if name not in buffers or buffers[name].nbytes < size:
        buffers[name] = _aligned(size)
    view: Array = buffers[name][:size].view(dtype).reshape(shape)
    return view
