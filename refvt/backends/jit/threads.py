"""The team of threads behind the jit column: ``run`` hands the tiles of one kernel to every thread.

A kernel asks for its tiles itself,

    i = next_tile(ticket)
    while i >= 0:
        …                 # tile i
        i = next_tile(ticket)

so a thread enters it once per operation and holds no interpreter lock between two tiles. Waking a sleeping thread takes
longer than many of the kernels do; the helpers therefore watch the board for a moment after each job before they go to
sleep. They touch the interpreter only while the leader is inside a kernel, so neither ever waits for its lock.

The board is a row of integers that all threads read and change in single indivisible steps:

    OPEN    number of the job that is open to helpers, 0 if none
    NEXT    the next tile nobody has taken            COUNT   how many tiles there are
    SEATS   how many helpers may join                 ACTIVE  how many have joined and not left
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
from numba.extending import intrinsic

from refvt.array import Array
from refvt.backends.jit.compile import kernel
from refvt.backends.jit.workspace import num_threads, workspace
from refvt.backends.progress import compilation_shown

__all__ = ["Ticket", "next_tile", "run", "session", "span"]

OPEN, NEXT, COUNT, SEATS, ACTIVE = range(0, 80, 16)  # each on a cache line (pair) of its own
PATIENCE = 400_000  # looks at the board before a helper goes to sleep: about a millisecond
POLITE = 1_000  # looks after which a waiting thread offers its processor to others
NAP = 0.002  # seconds
CAN_YIELD = hasattr(os, "sched_yield")


class Ticket(NamedTuple):
    """One thread's part in a job."""

    board: Array  # int64
    tiles: int  # of the job
    number: int  # of the job for its leader, 0 for a helper


def _address(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    board = context.make_array(signature.args[0])(context, builder, arguments[0])
    return builder.gep(board.data, [context.cast(builder, arguments[1], signature.args[1], types.intp)])


@intrinsic  # type: ignore[untyped-decorator]
def _add(typing_context: Any, board: Any, field: Any, amount: Any) -> Any:
    """board[field] += amount in one step; returns what was there."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = context.cast(builder, arguments[2], signature.args[2], types.int64)
        return builder.atomic_rmw("add", _address(context, builder, signature, arguments), value, "seq_cst")

    return types.int64(board, field, amount), generate


@intrinsic  # type: ignore[untyped-decorator]
def _look(typing_context: Any, board: Any, field: Any) -> Any:
    """board[field] as the other threads left it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(_address(context, builder, signature, arguments), "seq_cst", 8)

    return types.int64(board, field), generate


@intrinsic  # type: ignore[untyped-decorator]
def _write(typing_context: Any, board: Any, field: Any, value: Any) -> Any:
    """board[field] ← value, seen by the other threads after everything before it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = context.cast(builder, arguments[2], signature.args[2], types.int64)
        builder.store_atomic(number, _address(context, builder, signature, arguments), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(board, field, value), generate


@intrinsic  # type: ignore[untyped-decorator]
def _offer_processor(typing_context: Any) -> Any:
    """Let another thread run, if one waits for this processor."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if CAN_YIELD:
            function = ir.FunctionType(ir.IntType(32), [])
            builder.call(cgutils.get_or_insert_function(builder.module, function, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), generate


@kernel
def _close(board: Array) -> None:
    """Let nobody else join, and wait until all who did have left."""
    _write(board, OPEN, 0)
    looks = 0
    while _look(board, ACTIVE) > 0:
        looks += 1
        if looks % POLITE == 0:
            _offer_processor()


@kernel
def next_tile(ticket: Ticket) -> int:
    """The next tile, −1 if there is none left. The leader opens the job with its first tile and waits at the end."""
    board = ticket.board
    i = _add(board, NEXT, 1)
    if i == 0 and ticket.number > 0:
        _write(board, OPEN, ticket.number)
    if i < ticket.tiles:
        return i  # type: ignore[no-any-return]
    if ticket.number > 0:
        _close(board)
    return -1


@kernel
def span(i: int, parts: int, rows: int) -> tuple[int, int]:
    """Where part i of so many nearly equal parts of some rows starts and ends."""
    return rows * i // parts, rows * (i + 1) // parts


@kernel
def _await_job(board: Array, seat: int, last: int, patience: int) -> int:
    """Leave job ``last`` (0: none), then join the next one that has tiles left: its number, 0 if none came."""
    if last > 0:
        _add(board, ACTIVE, -1)
    for looks in range(patience):
        number = _look(board, OPEN)
        if number not in (0, last) and seat < _look(board, SEATS):
            _add(board, ACTIVE, 1)
            # from here on the leader waits for us, if the job is still the one we saw
            if _look(board, OPEN) == number and _look(board, NEXT) < _look(board, COUNT):
                return number  # type: ignore[no-any-return]
            _add(board, ACTIVE, -1)
        if looks % POLITE == POLITE - 1:
            _offer_processor()
    return 0


class _Helper:
    """A thread that joins the jobs on the board; a daemon, so it ends with the process."""

    def __init__(self, team: _Team, seat: int) -> None:
        self.team, self.seat = team, seat
        self.asleep, self.call = False, threading.Event()
        threading.Thread(target=self.serve, name=f"refvt-{seat}", daemon=True).start()

    def serve(self) -> None:
        team, last, served, nap = self.team, 0, 0, NAP
        while True:
            last = _await_job(team.board, self.seat, last, PATIENCE)
            if last == 0:
                self.asleep = True
                # a job may be there that is not open yet, its kernel being compiled: then only a nap, a longer one each
                # time, for compiling needs the interpreter
                expected = team.number != served and team.wants(self.seat)
                self.call.wait(nap if expected else None)
                self.call.clear()
                nap = 2 * nap if expected else NAP
                self.asleep = False
                continue
            served, nap = last, NAP
            try:
                kernel, count, space, arguments = team.job
                _enter(kernel, Ticket(team.board, count, 0), space, arguments)
            except BaseException as error:
                team.error = error


class _Team:
    """The helpers of one process and the board they watch; one job at a time."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.lock = threading.Lock()
        self.board = np.zeros(96, np.int64)
        self.helpers: list[_Helper] = []
        self.number, self.leading = 0, False
        self.job: tuple[Callable[..., None], int, _Space, tuple[Any, ...]]
        self.error: BaseException | None = None

    def wants(self, seat: int) -> bool:
        """Is there a job, perhaps not open yet, that the helper of this seat may join?"""
        return self.leading and seat < self.board[SEATS] and bool(self.board[NEXT] < self.board[COUNT])

    def wake(self, number: int) -> None:
        """Call so many helpers to the board, if they sleep; there may be fewer."""
        for helper in self.helpers[:number]:
            if helper.asleep:
                helper.call.set()

    def lead(self, kernel: Callable[..., None], count: int, space: _Space, arguments: tuple[Any, ...]) -> None:
        helpers = min(num_threads(), count) - 1
        while len(self.helpers) < helpers:
            self.helpers.append(_Helper(self, len(self.helpers)))
        self.number += 1
        self.job = (kernel, count, space, arguments)
        board = self.board
        board[NEXT], board[COUNT], board[SEATS] = 0, count, helpers
        self.leading = True
        self.wake(helpers)
        try:
            _enter(kernel, Ticket(self.board, count, self.number), space, arguments)
        except BaseException:
            board[NEXT] = count
            _close(board)
            raise
        finally:
            self.leading = False
        if self.error is not None:
            error, self.error = self.error, None
            raise error


_Space = tuple[int, Any] | None
_team = _Team()


def _enter(kernel: Callable[..., None], ticket: Ticket, space: _Space, arguments: tuple[Any, ...]) -> None:
    if space is None:
        kernel(ticket, *arguments)
    else:
        kernel(ticket, workspace("team", (space[0],), space[1]), *arguments)


@contextmanager
def session() -> Iterator[None]:
    """Held around a whole run of the model: the helpers wake up while its first arrays are made."""
    _team.wake(num_threads() - 1)
    with compilation_shown():
        yield


def run(kernel: Callable[..., None], count: int, *arguments: Any, space: _Space = None) -> None:
    """kernel(ticket, *arguments) on all threads, until its tiles 0 … count − 1 are done.

    space: (numbers, dtype) of memory that each thread has to itself, the kernel's second argument.
    """
    global _team
    if _team.process != os.getpid():  # a forked child has the board, but no helpers
        _team = _Team()
    if count > 1 and num_threads() > 1 and _team.lock.acquire(blocking=False):
        try:
            _team.lead(kernel, count, space, arguments)
        finally:
            _team.lock.release()
    else:  # too little work to ticket, or the team is busy with another caller's
        _enter(kernel, Ticket(np.zeros(96, np.int64), count, 1), space, arguments)
