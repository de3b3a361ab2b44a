"""A caching allocator for device memory, and captured launches: what a driver needs besides NVIDIA's calls.

Everything runs on one stream. So memory that an array leaves behind can be used again at once by the kernels that
follow: those that used it before are done when the new ones start. A captured graph has an allocator of its own,
because its memory is written to whenever it is replayed.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

__all__ = ["CachingAllocator", "CallRecorder", "DriverError", "FreeList", "Graph", "NoFreeList", "cannot_capture"]

MOST_SIZES = 1 << 16  # most array sizes, in bytes, whose free list is remembered


class DriverError(RuntimeError):
    """An error of the driver, by its own name (CUDA_ERROR_OUT_OF_MEMORY, …)."""


def cannot_capture(what: str) -> DriverError:
    """The error for work that needs an answer at once while launches are being captured."""
    return DriverError(f"{what} cannot be part of a captured graph")


class FreeList(list[int]):
    """Addresses of unused blocks of memory of one size."""

    def __init__(self, size: int) -> None:
        self.size = size


class NoFreeList:
    """Stands in for a ``FreeList`` where no memory is kept: always empty, and an appended block is freed."""

    def __init__(self, size: int, free: Callable[[int], Any]) -> None:
        self.size, self.append = size, free

    def pop(self) -> int:
        raise IndexError("no memory is kept")


class CachingAllocator:
    """Keeps the memory that arrays leave behind for new arrays of about the same size."""

    def __init__(self, keeps: bool, free: Callable[[int], Any]) -> None:
        self.keeps, self.free = keeps, free
        self.free_lists: dict[int, FreeList] = {}  # by the size of their blocks
        self._list_for: dict[int, FreeList | NoFreeList] = {}  # by the number of bytes requested

    def free_list(self, size: int) -> FreeList | NoFreeList:
        """The free list for ``size`` bytes. Sizes are rounded up, by at most an eighth, so that blocks fit again."""
        found = self._list_for.get(size)
        if found is None:
            step = 1 << max(9, size.bit_length() - 4)
            rounded = -(-size // step) * step
            found = (
                self.free_lists.setdefault(rounded, FreeList(rounded)) if self.keeps else NoFreeList(size, self.free)
            )
            if len(self._list_for) >= MOST_SIZES:
                self._list_for.clear()
            self._list_for[size] = found
        return found

    def kept_bytes(self) -> int:
        """Number of bytes in all free lists."""
        return sum(free_list.size * len(free_list) for free_list in list(self.free_lists.values()))

    def release(self) -> None:
        """Return all unused memory to the driver; waits for all kernels."""
        for free_list in list(self.free_lists.values()):
            while free_list:
                self.free(free_list.pop())


class Graph:
    """Captured launches: ``replay`` launches them all, and ``result`` holds the arrays they write."""

    def __init__(self, result: Any, replay: Callable[[], Any], destroy: Callable[[], Any]) -> None:
        self.result, self.replay, self._destroy = result, replay, destroy

    def __del__(self) -> None:
        self.result = None  # its memory is freed with the rest
        try:  # noqa: SIM105 - at interpreter shutdown contextlib may be gone
            self._destroy()
        except Exception:  # the driver is gone already
            pass


class CallRecorder:
    """Records and replays calls, for drivers without a GPU."""

    can_capture = True

    def __init__(self) -> None:
        self.cache_owners: Any = weakref.WeakSet()
        self.lock = threading.RLock()
        self._calls: list[Callable[[], Any]] | None = None
        self._left: list[int] = []  # memory that captured calls no longer need but write to when they are replayed

    def call_or_record(self, call: Callable[[], Any]) -> None:
        """Make a call, or record it while launches are being captured."""
        if self._calls is None:
            call()
        else:
            self._calls.append(call)

    def check_not_capturing(self, what: str) -> None:
        """DriverError while launches are being captured."""
        if self._calls is not None:
            raise cannot_capture(what)

    def free(self, address: int) -> None:
        """Free a block of memory; captured calls keep theirs until the graph is destroyed."""
        if self._calls is None:
            self.free_now(address)
        else:
            self._left.append(address)

    def free_now(self, address: int) -> None:
        """Free a block of memory at once."""
        raise NotImplementedError

    def capture(self, work: Callable[[], Any]) -> Graph:
        """A graph of the launches that ``work`` makes."""
        self._calls, self._left = [], []
        try:
            result = work()
        finally:
            calls, left, self._calls = self._calls, self._left, None

        def replay() -> None:
            for call in calls:
                call()

        def destroy() -> None:
            for address in left:
                self.free_now(address)

        return Graph(result, replay, destroy)
