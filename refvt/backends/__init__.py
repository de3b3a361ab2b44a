"""A backend is one column of the house: every operation, written for one kind of machine.

``get("reference")`` gives the table the model is written against: ``ops.linear.forward(...)``,
``ops.linear.backward(dy, cache)``, one entry per operation of ``refvt.ops.operations()``, and beside it the few moves
on arrays that are no operations of the model (taking columns, joining rows, adding gradients).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from refvt.ops import FAMILIES, Operation

__all__ = ["BACKENDS", "Backend", "DeviceError", "Implementation", "Unavailable", "available", "default", "get"]

# column of the rooms, module with the moves on its arrays
BACKENDS = {
    "reference": ("reference", "refvt.backends.reference.arrays"),
    "jit": ("jit", "refvt.backends.jit.arrays"),
    "cuda": ("cuda", "refvt.backends.cuda.arrays"),
}


class Unavailable(ImportError):  # noqa: N818 - it reads as what happened
    """A backend of refvt that this machine cannot run; the message says what is missing."""


class DeviceError(RuntimeError):
    """A GPU that ran out of memory or stopped answering; the message says which, and what can be done."""


@dataclass(frozen=True)
class Implementation:
    """One operation as one backend computes it. A decision (``top_k``) is called directly and has no backward."""

    operation: Operation
    forward: Callable[..., Any]
    backward: Callable[..., Any] | None

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        return self.forward(*arguments, **settings)


class Backend:
    """The table of operations of one column, as attributes, and its array moves as ``arrays``."""

    def __init__(self, name: str) -> None:
        column, moves = BACKENDS[name]
        self.name = name
        self.arrays: ModuleType = import_module(moves)
        # held around a whole run of the model: what the column's threads need, what its device's errors mean
        self.session: Callable[[], AbstractContextManager[None]] = nullcontext
        if name == "jit":
            self.session = import_module("refvt.backends.jit.threads").session
            import_module("refvt.backends.jit.workspace").keep_freed_memory()
        elif name == "cuda":
            self.session = self.arrays.session
        self.operations: dict[str, Implementation] = {}
        for room in FAMILIES:
            signatures = import_module(f"refvt.ops.{room}").OPERATIONS
            module = import_module(f"refvt.ops.{room}.{column}")
            for signature in signatures:
                if signature.has_backward:
                    forward = getattr(module, f"{signature.name}_forward")
                    backward = getattr(module, f"{signature.name}_backward")
                else:
                    forward, backward = getattr(module, signature.name), None
                self.operations[signature.name] = Implementation(signature, forward, backward)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["operations"][name]
        except KeyError:
            raise AttributeError(f"{name!r} is no operation of the table") from None

    def __repr__(self) -> str:
        return f"Backend({self.name!r})"


@cache
def _missing(name: str) -> str | None:
    """What this machine lacks for a backend, in one sentence; None if nothing."""
    if name != "cuda":
        return None
    if find_spec("numba_cuda") is None:
        return 'the cuda backend needs numba-cuda: pip install "refvt[cuda]" (CUDA 13) or "refvt[cuda12]" (CUDA 12)'
    from numba import cuda

    if cuda.is_available():
        return None
    if cuda.cuda_error() is None:  # the driver works: it is the compiler that is missing
        return (
            "the cuda backend needs NVIDIA's compiler libNVVM, which numba-cuda does not find: "
            "install nvidia-nvvm, or set CUDA_HOME to a CUDA toolkit"
        )
    return "the cuda backend needs an NVIDIA GPU and its driver, and numba-cuda finds no device it can use"


def available() -> tuple[str, ...]:
    """The names of the backends that can run on this machine."""
    return tuple(name for name in BACKENDS if _missing(name) is None)


def default() -> str:
    """The fastest backend that is there on the CPU."""
    return "jit"


@cache
def get(name: str) -> Backend:
    """The table of one backend. ValueError for a name that is not there, Unavailable if this machine cannot run it."""
    if name not in BACKENDS:
        raise ValueError(f"backend: expected one of {list(BACKENDS)}, got {name!r}")
    missing = _missing(name)
    if missing is not None:
        raise Unavailable(f"backend {name!r}: {missing}")
    return Backend(name)
