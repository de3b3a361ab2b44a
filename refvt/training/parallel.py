"""One process or several: what the loop needs to know of the others.

Every process (an MPI *rank*) holds the whole model and the whole optimiser. In each step it computes its share of the
micro-batches; the gradients are summed over all ranks, and every rank then makes the same step.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Protocol, TypeVar

from refvt.array import Array
from refvt.backends.jit import workspace as pool

__all__ = ["Alone", "Mpi", "Ranks", "ranks"]

SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")  # how MPICH's and Open MPI's mpiexec tell a process that it has company
FORWARDING = 0.5  # seconds for mpiexec to pass a last message on: it drops what it has not read when it ends the others

T = TypeVar("T")


class Ranks(Protocol):
    """The processes of a run; ``rank`` of ``size``, counted from 0. All must make the same calls in the same order."""

    rank: int
    size: int

    def add_up(self, vector: Array) -> None:
        """Replace a vector by its sum over all ranks."""
        ...

    def from_first(self, value: Any) -> Any:
        """Rank 0's value on every rank."""
        ...

    def everybodys(self, items: list[T]) -> list[T]:
        """The items of all ranks in one list, on every rank."""
        ...

    def agree(self, problem: str | None) -> str | None:
        """The problem of the first rank that has one, on every rank; None if nobody has."""
        ...

    def abort(self) -> None:
        """End the processes of all ranks. A run of one process is left to the caller."""
        ...


class Alone:
    """A run of one process."""

    rank = 0
    size = 1

    def add_up(self, vector: Array) -> None:
        pass

    def from_first(self, value: Any) -> Any:
        return value

    def everybodys(self, items: list[T]) -> list[T]:
        return items

    def agree(self, problem: str | None) -> str | None:
        return problem

    def abort(self) -> None:
        pass


class Mpi:
    """The ranks of an MPI communicator (mpi4py)."""

    def __init__(self, communicator: Any) -> None:
        self._communicator = communicator
        self.rank = int(communicator.Get_rank())
        self.size = int(communicator.Get_size())

    def add_up(self, vector: Array) -> None:
        from mpi4py import MPI

        self._communicator.Allreduce(MPI.IN_PLACE, vector)

    def from_first(self, value: Any) -> Any:
        return self._communicator.bcast(value)

    def everybodys(self, items: list[T]) -> list[T]:
        return [item for part in self._communicator.allgather(items) for item in part]

    def agree(self, problem: str | None) -> str | None:
        return next((found for found in self._communicator.allgather(problem) if found is not None), None)

    def abort(self) -> None:
        time.sleep(FORWARDING)
        self._communicator.Abort(2)
        os._exit(2)  # MPICH's Abort may return before mpiexec has ended this process


@contextmanager
def ranks() -> Iterator[Ranks]:
    """The processes this one was started with: ``mpiexec -n 2 refvt train …`` makes two, otherwise it is alone.

    The processors of a machine are shared out among its ranks unless REFVT_NUM_THREADS says otherwise.
    ModuleNotFoundError if it was started by mpiexec and mpi4py is not there.
    """
    if all(os.environ.get(name, "1") == "1" for name in SIZES):
        yield Alone()
        return
    if find_spec("mpi4py") is None:
        raise ModuleNotFoundError('training with mpiexec needs mpi4py: pip install "refvt[mpi]"', name="mpi4py")
    from mpi4py import MPI

    threads = pool.num_threads()
    if not os.environ.get("REFVT_NUM_THREADS"):
        beside = MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED)  # the ranks of this machine
        processors = threads
        if hasattr(os, "sched_getaffinity"):  # each rank may be bound to processors of its own
            processors = len(set().union(*beside.allgather(os.sched_getaffinity(0))))
        pool.set_num_threads(max(1, processors // beside.Get_size()))
        beside.Free()
    try:
        yield Mpi(MPI.COMM_WORLD)
    finally:
        pool.set_num_threads(threads)
