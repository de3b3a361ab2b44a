"""How kernels are compiled: lazily, at their first call, without the interpreter's lock, and cached on disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

__all__ = ["FASTMATH", "kernel"]

# Loops vectorise only if sums may be reordered and a division by zero raises nothing. NaN does not occur (the model
# refuses it at its door); −∞ does.
FASTMATH = {"reassoc", "contract", "arcp", "nsz", "nnan"}
Function = TypeVar("Function", bound=Callable[..., Any])


def kernel(function: Function) -> Function:
    """Compile a function of arrays and numbers, lazily, at its first call.

    A kernel that ``threads.run`` starts takes a ticket first; the functions it calls are compiled in the same way.
    """
    compiled: Function = njit(nogil=True, cache=True, fastmath=FASTMATH, error_model="numpy")(function)
    return compiled
