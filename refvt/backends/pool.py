"""One pool of threads for the CPU columns: tiles of work on every core, each calling BLAS with one thread.

A BLAS that spins with threads of its own beside ours costs up to ten times the work itself. So while the pool is in use
(``session``) every BLAS of the process is limited to one thread, and the caller's own settings come back afterwards;
the parallelism comes from ``run``, which hands out tiles to worker threads. np.matmul and the compiled kernels release
the interpreter's lock, so the threads really run side by side.

What a tile computes never depends on who computes it: at a fixed number of threads results are the same to the bit.
Only ``row_tiles`` looks at that number, so between numbers the rows of a product may differ by rounding.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from refvt.ops import Array

__all__ = ["num_threads", "row_tiles", "run", "session", "set_num_threads", "tiles", "workspace"]

_lock = threading.Lock()
_depth = 0
_limit: Any = None
_controller: ThreadpoolController | None = None
_threads = 0  # 0: not chosen yet
_jobs: list[SimpleQueue[_Job]] = []
_owner = 0  # the process the workers belong to: a forked child has none
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


class _Job:
    """One call of ``run``: tiles are taken by whoever is free."""

    def __init__(self, task: Callable[[int], None], count: int, helpers: int) -> None:
        self.task, self.count = task, count
        self.next = itertools.count()  # next() is one step of the interpreter: no two threads get the same number
        self.error: BaseException | None = None
        self.busy = helpers
        self.done = threading.Event()
        self.lock = threading.Lock()

    def work(self) -> None:
        try:
            while self.error is None and (index := next(self.next)) < self.count:
                self.task(index)
        except BaseException as error:
            self.error = error

    def help(self) -> None:
        self.work()
        with self.lock:
            self.busy -= 1
            if self.busy == 0:
                self.done.set()


def _serve(queue: SimpleQueue[_Job]) -> None:
    while True:
        queue.get().help()


def _workers(number: int) -> list[SimpleQueue[_Job]]:
    """The queues of at least ``number`` worker threads of this process."""
    global _jobs, _owner
    with _lock:
        if _owner != os.getpid():
            _jobs, _owner = [], os.getpid()
        while len(_jobs) < number:
            queue: SimpleQueue[_Job] = SimpleQueue()
            threading.Thread(target=_serve, args=(queue,), name=f"refvt-{len(_jobs)}", daemon=True).start()
            _jobs.append(queue)
        return _jobs[:number]


def run(task: Callable[[int], None], count: int) -> None:
    """task(0), …, task(count − 1), each once, on all threads; returns when all are done. The first error is raised."""
    helpers = min(num_threads(), count) - 1
    with session():
        if helpers < 1:
            for index in range(count):
                task(index)
            return
        job = _Job(task, count, helpers)
        for queue in _workers(helpers):
            queue.put(job)
        job.work()
        job.done.wait()
    if job.error is not None:
        raise job.error


def tiles(rows: int, size: int) -> list[slice]:
    """Cut ``rows`` into slices of nearly equal length, at most ``size``; the cut depends on nothing else.

    Their number is even if there are several: an odd one would leave one of two threads idle at the end.
    """
    count = -(-rows // size)
    count += count % 2 if count > 1 else 0
    edges = [rows * i // count for i in range(count + 1)] if count else [0]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def row_tiles(rows: int) -> list[slice]:
    """Cut the rows of a matrix product: as few tiles as keep all threads busy, of at most 400 rows and 64 or more.

    A product of many rows makes more of the weights it has to lay out for BLAS. Each row's result is its own, so the
    cut may depend on the number of threads.
    """
    threads = num_threads()
    count = min(-(-rows // 400), rows)
    count = max(count, min(threads, -(-rows // 64)))
    if count > 1:
        count = min(-(-count // threads) * threads, rows)
    return [slice(rows * i // count, rows * (i + 1) // count) for i in range(count)]


def workspace(name: str, shape: tuple[int, ...], dtype: Any) -> Array:
    """An uninitialised array that this thread uses again at the next call with this name: no fresh pages to touch."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    buffers: dict[str, Array] = _local.__dict__.setdefault("buffers", {})
    if name not in buffers or buffers[name].nbytes < size:
        buffers[name] = np.empty(size, dtype=np.uint8)
    view: Array = buffers[name][:size].view(dtype).reshape(shape)
    return view
