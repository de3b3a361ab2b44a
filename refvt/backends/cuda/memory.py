"""Whose memory is whose on the GPU, and launches that are written down: what a driver needs beside NVIDIA's calls.

Everything runs on one stream. So memory that an array leaves behind can be handed out again at once, to the kernels
that follow: those that used it last are done when they begin. A recording has a pool of its own, for what it writes to
is written to whenever it is played.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

__all__ = ["DriverError", "NoShelf", "Pool", "Recorder", "Recording", "Shelf", "unrecordable"]

MOST_SIZES = 1 << 16  # of arrays, in bytes, of which it is remembered where they get their memory


class DriverError(RuntimeError):
    """What the driver complains of, by its own name (CUDA_ERROR_OUT_OF_MEMORY, …)."""


def unrecordable(what: str) -> DriverError:
    """What is said of what has to be done at once while launches are only written down."""
    return DriverError(f"{what} cannot be part of a recording")


class Shelf(list[int]):
    """Pieces of memory of one size that nobody needs at present, by their addresses."""

    def __init__(self, size: int) -> None:
        self.size = size


class NoShelf:
    """In the place of a ``Shelf`` where nothing is kept: it is always empty, and what is put there is freed."""

    def __init__(self, size: int, free: Callable[[int], Any]) -> None:
        self.size, self.append = size, free

    def pop(self) -> int:
        raise IndexError("nothing is kept")


class Pool:
    """Memory that arrays have left behind, for those to come."""

    def __init__(self, keeps: bool, free: Callable[[int], Any]) -> None:
        self.keeps, self.free = keeps, free
        self.shelves: dict[int, Shelf] = {}  # by the size of their pieces
        self.shelf_for: dict[int, Shelf | NoShelf] = {}  # by what was asked for

    def shelf(self, size: int) -> Shelf | NoShelf:
        """Where pieces of so many bytes are; of few sizes, so that they fit again: at most an eighth too long."""
        found = self.shelf_for.get(size)
        if found is None:
            step = 1 << max(9, size.bit_length() - 4)
            whole = -(-size // step) * step
            found = self.shelves.setdefault(whole, Shelf(whole)) if self.keeps else NoShelf(size, self.free)
            if len(self.shelf_for) >= MOST_SIZES:
                self.shelf_for.clear()
            self.shelf_for[size] = found
        return found

    def bytes(self) -> int:
        return sum(shelf.size * len(shelf) for shelf in list(self.shelves.values()))

    def release(self) -> None:
        """Give the driver back what nobody needs at present; waits for all kernels."""
        for shelf in list(self.shelves.values()):
            while shelf:
                self.free(shelf.pop())


class Recording:
    """Launches that were written down instead of made. ``result`` is what they write, each time ``play`` is called."""

    def __init__(self, result: Any, play: Callable[[], Any], forget: Callable[[], Any]) -> None:
        self.result, self.play, self._forget = result, play, forget

    def __del__(self) -> None:
        self.result = None  # its memory goes with the rest
        try:  # noqa: SIM105 - a process that ends may have lost contextlib by now
            self._forget()
        except Exception:  # the driver went first
            pass


class Recorder:
    """Of drivers that stand in for the GPU's: recordings, of calls of their own."""

    records = True

    def __init__(self) -> None:
        self.hoards: Any = weakref.WeakSet()
        self.lock = threading.RLock()
        self._calls: list[Callable[[], Any]] | None = None
        self._left: list[int] = []  # memory that a recording has no more use for, but may write to when it is played

    def now_or_later(self, call: Callable[[], Any]) -> None:
        """Do it, or write it down."""
        if self._calls is None:
            call()
        else:
            self._calls.append(call)

    def now(self, what: str) -> None:
        """DriverError if calls are being written down."""
        if self._calls is not None:
            raise unrecordable(what)

    def free(self, address: int) -> None:
        if self._calls is None:
            self.freed(address)
        else:
            self._left.append(address)

    def freed(self, address: int) -> None:
        raise NotImplementedError

    def record(self, work: Callable[[], Any]) -> Recording:
        self._calls, self._left = [], []
        try:
            result = work()
        finally:
            calls, left, self._calls = self._calls, self._left, None

        def play() -> None:
            for call in calls:
                call()

        def forget() -> None:
            for address in left:
                self.freed(address)

        return Recording(result, play, forget)
