"""How the CPU columns share the machine: how many threads, how work is cut for them, BLAS at one thread each.

A BLAS that spins with threads of its own beside ours costs up to ten times the work itself. So while a model runs
(``session``) every BLAS of the process is limited to one thread, and the caller's own settings come back afterwards;
the parallelism comes from ``refvt.backends.team``, whose threads each call BLAS on tiles of their own.

What a tile computes never depends on who computes it: at a fixed number of threads results are the same to the bit.
Only ``grid`` looks at that number, so between numbers a product may differ by rounding.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from refvt.ops import Array

__all__ = ["grid", "num_threads", "session", "set_num_threads", "workspace"]

LINE = 64  # bytes of a cache line

_lock = threading.Lock()
_depth = 0
_limit: Any = None
_controller: ThreadpoolController | None = None
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


@contextmanager
def session() -> Iterator[None]:
    """While inside, BLAS uses one thread per caller; the setting from before comes back at the end. May be nested."""
    global _depth, _limit, _controller
    with _lock:
        if _depth == 0:
            if _controller is None:
                _controller = ThreadpoolController().select(user_api="blas")
            _limit = _controller.limit(limits=1)
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                _limit.restore_original_limits()
                _limit = None


def grid(rows: int, columns: int, finest: int = 64) -> tuple[int, int]:
    """Into how many parts to cut the rows and the columns of a matrix product: at least one tile for every thread.

    A tile lays out its rows of the one factor and its columns of the other for BLAS, so of all cuts the one that lays
    out least in total is best. Nothing is cut finer than ``finest``.
    """
    threads = num_threads()
    cuts = [(down, -(-threads // down)) for down in range(1, threads + 1)]
    fine = [cut for cut in cuts if cut[0] * finest <= max(rows, finest) and cut[1] * finest <= max(columns, finest)]
    down, across = min(fine, key=lambda cut: cut[1] * rows + cut[0] * columns, default=(1, 1))
    # a large product in more tiles: a thread that was held up then leaves the others less to wait for
    more = max(1, min(rows // (down * 384), 4))
    return down * more, across


def workspace(name: str, shape: tuple[int, ...], dtype: Any) -> Array:
    """An uninitialised array that this thread uses again at the next call with this name: no fresh pages to touch."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    buffers: dict[str, Array] = _local.__dict__.setdefault("buffers", {})
    if name not in buffers or buffers[name].nbytes < size:
        bytes_ = np.empty(size + LINE, dtype=np.uint8)
        start = -bytes_.ctypes.data % LINE  # vectors that lie across two cache lines cost two loads
        buffers[name] = bytes_[start : start + size]
    view: Array = buffers[name][:size].view(dtype).reshape(shape)
    return view
