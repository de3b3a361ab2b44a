"""One process or several: how the training loop talks to the other processes of a run.

Every process (an MPI *rank*) holds the whole model and the whole optimiser. In each step it computes some of the
micro-batches; the gradients are summed over all ranks, and then every rank makes the same update.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Protocol, TypeVar

from refvt.array import Array
from refvt.checks import words_of
from refvt.training.errors import TrainingError

__all__ = ["Communicator", "MpiCommunicator", "SingleProcess", "call_on_all", "open_communicator"]

SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")  # set by the mpiexec of MPICH and of Open MPI: the number of processes
FORWARDING = 0.5  # seconds that mpiexec gets to pass on a last message: it drops unread output when it ends a run

T = TypeVar("T")


class Communicator(Protocol):
    """The processes of a run; ``rank`` of ``size``, counted from 0. All must make the same calls in the same order."""

    rank: int
    size: int

    def allreduce(self, vector: Array) -> None:
        """Replace a vector by its sum over all ranks."""
        ...

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        ...

    def allgather(self, items: list[T]) -> list[T]:
        """Return the items of all ranks in one list, on every rank."""
        ...

    def first_error(self, problem: str | None) -> str | None:
        """Return, on every rank, the problem of the first rank that has one; None if there is none."""
        ...

    def abort(self) -> None:
        """End the processes of all ranks. Does nothing in a run of one process."""
        ...


class SingleProcess:
    """The communicator of a run of one process."""

    rank = 0
    size = 1

    def allreduce(self, vector: Array) -> None:
        pass

    def broadcast(self, value: Any) -> Any:
        return value

    def allgather(self, items: list[T]) -> list[T]:
        return items

    def first_error(self, problem: str | None) -> str | None:
        return problem

    def abort(self) -> None:
        pass


class MpiCommunicator:
    """The ranks of an MPI communicator (mpi4py)."""

    def __init__(self, communicator: Any) -> None:
        self._communicator = communicator
        self.rank = int(communicator.Get_rank())
        self.size = int(communicator.Get_size())

    def allreduce(self, vector: Array) -> None:
        from mpi4py import MPI

        self._communicator.Allreduce(MPI.IN_PLACE, vector)

    def broadcast(self, value: Any) -> Any:
        return self._communicator.bcast(value)

    def allgather(self, items: list[T]) -> list[T]:
        return [item for part in self._communicator.allgather(items) for item in part]

    def first_error(self, problem: str | None) -> str | None:
        return next((found for found in self._communicator.allgather(problem) if found is not None), None)

    def abort(self) -> None:
        time.sleep(FORWARDING)
        self._communicator.Abort(2)
        os._exit(2)  # MPICH's Abort may return before mpiexec has ended this process


def call_on_all(communicator: Communicator, function: Callable[[], T]) -> T:
    """Call a function on every rank. If it fails on one it fails on all, so that no rank waits for ever.

    A rank on which it fails raises the error itself, every other rank TrainingError with the first rank's message.
    """
    try:
        result = function()
    except Exception as error:
        communicator.first_error(words_of(error))
        raise
    problem = communicator.first_error(None)
    if problem is not None:
        raise TrainingError(problem)
    return result


@contextmanager
def open_communicator() -> Iterator[Communicator]:
    """Yield the processes this one was started with: ``mpiexec -n 2 refvt train …`` makes two, otherwise it is alone.

    The processors of a machine are divided among its ranks unless REFVT_NUM_THREADS is set. Raises ModuleNotFoundError
    if the process was started by mpiexec and mpi4py is not installed.
    """
    if all(os.environ.get(name, "1") == "1" for name in SIZES):
        yield SingleProcess()
        return
    if find_spec("mpi4py") is None:
        raise ModuleNotFoundError('training with mpiexec needs mpi4py: pip install "refvt[mpi]"', name="mpi4py")
    from mpi4py import MPI

    from refvt.backends.jit import workspace  # only here: without MPI nothing of Numba is needed

    threads = workspace.num_threads()
    if not os.environ.get("REFVT_NUM_THREADS"):
        here = MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED)  # the ranks of this machine
        processors = threads
        if hasattr(os, "sched_getaffinity"):  # each rank may be bound to processors of its own
            processors = workspace.share_of(len(set().union(*here.allgather(os.sched_getaffinity(0)))))
        workspace.set_num_threads(max(1, processors // here.Get_size()))
        here.Free()
    try:
        yield MpiCommunicator(MPI.COMM_WORLD)
    finally:
        workspace.set_num_threads(threads)
