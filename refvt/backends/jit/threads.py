"""The thread pool of the jit backend: ``run`` hands the tiles of one kernel to all threads.

A kernel takes its tiles from the work queue itself,

    i = next_tile(ticket)
    while i >= 0:
        …                 # tile i
        i = next_tile(ticket)

so a thread enters it once per operation and needs no interpreter lock between two tiles. Waking a sleeping thread takes
longer than many of the kernels do. Workers therefore watch the queue for a moment after each job before they go to
sleep. They touch the interpreter only while the leader (the thread that called ``run``) is inside a kernel, so neither
ever waits for its lock.

The work queue is a row of integers that all threads read and change atomically:

    OPEN     number of the job that workers may join, 0 if none
    NEXT     the first tile not yet taken              COUNT   number of tiles
    WORKERS  how many workers may join                 ACTIVE  how many have joined and not left
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from refvt.array import Array
from refvt.backends.jit.kernel import intrinsic, kernel
from refvt.backends.jit.workspace import num_threads, set_num_threads, workspace
from refvt.backends.progress import compilation_shown

__all__ = ["Ticket", "next_tile", "run", "session", "span"]

QUEUE_SIZE = 96  # numbers
OPEN, NEXT, COUNT, WORKERS, ACTIVE = range(0, 80, 16)  # each on a cache line (pair) of its own
SPINS = 400_000  # reads of the queue before a worker goes to sleep: about a millisecond
YIELD_EVERY = 1_000  # reads, after which a waiting thread offers its processor to others
PAUSE = 0.002  # seconds a worker sleeps at first while a kernel is being compiled
CAN_YIELD = hasattr(os, "sched_yield")


class Ticket(NamedTuple):
    """What a thread needs to take part in a job."""

    queue: Array  # [QUEUE_SIZE] int64, the work queue
    tiles: int  # number of tiles of the job
    number: int  # of the job for its leader, 0 for a worker


def _address(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    queue = context.make_array(signature.args[0])(context, builder, arguments[0])
    return builder.gep(queue.data, [context.cast(builder, arguments[1], signature.args[1], types.intp)])


@intrinsic
def _fetch_add(typing_context: Any, queue: Any, field: Any, amount: Any) -> Any:
    """queue[field] += amount, atomically; returns the value before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = context.cast(builder, arguments[2], signature.args[2], types.int64)
        return builder.atomic_rmw("add", _address(context, builder, signature, arguments), value, "seq_cst")

    return types.int64(queue, field, amount), generate


@intrinsic
def _load(typing_context: Any, queue: Any, field: Any) -> Any:
    """queue[field], atomically: the latest value that any thread wrote."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(_address(context, builder, signature, arguments), "seq_cst", 8)

    return types.int64(queue, field), generate


@intrinsic
def _store(typing_context: Any, queue: Any, field: Any, value: Any) -> Any:
    """queue[field] ← value, atomically; other threads see it after all that was written before it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = context.cast(builder, arguments[2], signature.args[2], types.int64)
        builder.store_atomic(number, _address(context, builder, signature, arguments), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(queue, field, value), generate


@intrinsic
def _yield_processor(typing_context: Any) -> Any:
    """Let another thread run if one waits for this processor."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if CAN_YIELD:
            function = ir.FunctionType(ir.IntType(32), [])
            builder.call(cgutils.get_or_insert_function(builder.module, function, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), generate


@kernel
def _close(queue: Array) -> None:
    """Close the job to further workers, and wait until those that have joined have left."""
    _store(queue, OPEN, 0)
    spins = 0
    while _load(queue, ACTIVE) > 0:
        spins += 1
        if spins % YIELD_EVERY == 0:
            _yield_processor()


@kernel
def next_tile(ticket: Ticket) -> int:
    """Take the next tile; −1 if none is left. The leader opens the job with its first tile and waits at the end."""
    queue = ticket.queue
    i: int = _fetch_add(queue, NEXT, 1)
    if i == 0 and ticket.number > 0:
        _store(queue, OPEN, ticket.number)
    if i < ticket.tiles:
        return i
    if ticket.number > 0:
        _close(queue)
    return -1


@kernel
def span(i: int, parts: int, rows: int) -> tuple[int, int]:
    """Start and end of part i when some rows are cut into nearly equal parts."""
    return rows * i // parts, rows * (i + 1) // parts


@kernel
def _await_job(queue: Array, index: int, last: int, most_spins: int) -> int:
    """Leave job ``last`` (0: none), then join the next one that has tiles left; its number, 0 if none came."""
    if last > 0:
        _fetch_add(queue, ACTIVE, -1)
    for spins in range(most_spins):
        number: int = _load(queue, OPEN)
        if number not in (0, last) and index < _load(queue, WORKERS):
            _fetch_add(queue, ACTIVE, 1)
            # from here on the leader waits for this worker, if the job is still the one it saw
            if _load(queue, OPEN) == number and _load(queue, NEXT) < _load(queue, COUNT):
                return number
            _fetch_add(queue, ACTIVE, -1)
        if spins % YIELD_EVERY == YIELD_EVERY - 1:
            _yield_processor()
    return 0


class _Worker:
    """A thread that joins the jobs of the queue; a daemon, so it ends with the process."""

    def __init__(self, pool: _ThreadPool, index: int) -> None:
        self.pool, self.index = pool, index
        self.asleep, self.call = False, threading.Event()
        threading.Thread(target=self.serve, name=f"refvt-{index}", daemon=True).start()

    def serve(self) -> None:
        """Join job after job; sleep when none has come for a while."""
        pool, last, served, pause = self.pool, 0, 0, PAUSE
        while True:
            last = _await_job(pool.queue, self.index, last, SPINS)
            if last == 0:
                self.asleep = True
                # a job may be waiting that is not open yet because its kernel is being compiled: then sleep only
                # briefly, longer each time, for compiling needs the interpreter
                expected = pool.number != served and pool.wants(self.index)
                self.call.wait(pause if expected else None)
                self.call.clear()
                pause = 2 * pause if expected else PAUSE
                self.asleep = False
                continue
            served, pause = last, PAUSE
            try:
                kernel, count, scratch, arguments = pool.job
                _enter(kernel, Ticket(pool.queue, count, 0), scratch, arguments)
            except BaseException as error:
                pool.error = error


class _ThreadPool:
    """The workers of one process and the work queue they watch; one job at a time."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.lock = threading.Lock()
        self.queue = np.zeros(QUEUE_SIZE, np.int64)
        self.workers: list[_Worker] = []
        self.number, self.leading = 0, False
        self.job: tuple[Callable[..., None], int, _Scratch, tuple[Any, ...]]
        self.error: BaseException | None = None

    def wants(self, index: int) -> bool:
        """Whether there is a job, perhaps not open yet, that this worker may join."""
        return self.leading and index < self.queue[WORKERS] and bool(self.queue[NEXT] < self.queue[COUNT])

    def hire(self, number: int) -> int:
        """Start workers until there are ``number``; how many there are now, fewer if the system allows no more."""
        while len(self.workers) < number:
            try:
                self.workers.append(_Worker(self, len(self.workers)))
            except RuntimeError:  # "can't start new thread": a container's limit
                set_num_threads(len(self.workers) + 1)
                return len(self.workers)
        return number

    def wake(self, number: int) -> None:
        """Wake the first ``number`` workers (or all, if there are fewer) that sleep."""
        for worker in self.workers[:number]:
            if worker.asleep:
                worker.call.set()

    def lead(self, kernel: Callable[..., None], count: int, scratch: _Scratch, arguments: tuple[Any, ...]) -> None:
        """Open a job of ``count`` tiles, work on it as its leader, and wait for the workers."""
        workers = self.hire(min(num_threads(), count) - 1)
        self.number += 1
        self.job = (kernel, count, scratch, arguments)
        queue = self.queue
        queue[NEXT], queue[COUNT], queue[WORKERS] = 0, count, workers
        self.leading = True
        self.wake(workers)
        try:
            _enter(kernel, Ticket(self.queue, count, self.number), scratch, arguments)
        except BaseException:
            queue[NEXT] = count
            _close(queue)
            self.error = None  # of a worker; this one is raised instead
            raise
        finally:
            self.leading = False
        if self.error is not None:
            error, self.error = self.error, None
            raise error


_Scratch = tuple[int, Any] | None
_pool = _ThreadPool()


def _own_pool() -> _ThreadPool:
    """The pool of this process: a forked child inherits the queue, but no workers."""
    global _pool
    if _pool.process != os.getpid():
        _pool = _ThreadPool()
    return _pool


def _enter(kernel: Callable[..., None], ticket: Ticket, scratch: _Scratch, arguments: tuple[Any, ...]) -> None:
    """Call a kernel on this thread, with scratch memory of its own if it needs some."""
    if scratch is None:
        kernel(ticket, *arguments)
    else:
        kernel(ticket, workspace("scratch", (scratch[0],), scratch[1]), *arguments)


@contextmanager
def session() -> Iterator[None]:
    """Context of a whole run of the model: the workers wake up while its first arrays are made."""
    _own_pool().wake(num_threads() - 1)
    with compilation_shown():
        yield


def run(kernel: Callable[..., None], count: int, *arguments: Any, scratch: _Scratch = None) -> None:
    """Run kernel(ticket, *arguments) on all threads, until its tiles 0 … count − 1 are done.

    scratch: (numbers, dtype) of memory that each thread has to itself, the kernel's second argument. An error in a
    kernel is raised here, from whichever thread it comes.
    """
    pool = _own_pool()
    if count > 1 and num_threads() > 1 and pool.lock.acquire(blocking=False):
        try:
            pool.lead(kernel, count, scratch, arguments)
        finally:
            pool.lock.release()
    else:  # too little work to divide, or the pool is busy with another caller's
        _enter(kernel, Ticket(np.zeros(QUEUE_SIZE, np.int64), count, 1), scratch, arguments)
