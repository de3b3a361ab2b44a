"""How kernels are compiled: lazily, at their first call, without the interpreter's lock, and cached on disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import numba.extending
from numba import njit

from refvt.backends.jit.cache import attach_cache

__all__ = ["function", "intrinsic", "kernel"]

# Loops vectorise only if sums may be reordered and a division by zero raises nothing. No kernel decides anything by a
# NaN: the model refuses NaN in what it is given, and training looks for it in the loss and in the norm of the gradient,
# outside of kernels. −∞ occurs inside.
OPTIONS = {"fastmath": {"reassoc", "contract", "arcp", "nsz", "nnan"}, "error_model": "numpy"}
Function = TypeVar("Function", bound=Callable[..., Any])
Arguments = ParamSpec("Arguments")


def kernel(function: Function) -> Function:
    """Compile a function of arrays and numbers, lazily, at its first call.

    A kernel that ``threads.run`` starts takes a ticket first; the functions it calls are compiled in the same way.
    """
    compiled: Function = njit(nogil=True, **OPTIONS)(function)
    attach_cache(compiled)
    return compiled


def function(stub: Callable[..., Any]) -> Callable[[Function], Function]:
    """Decorate the function that says, from the types of the arguments, what ``stub`` is inside kernels."""
    decorate: Callable[[Function], Function] = numba.extending.overload(stub, jit_options=dict(OPTIONS))
    return decorate


def intrinsic(function: Callable[Concatenate[Any, Arguments], Any]) -> Callable[Arguments, Any]:
    """Make a function of generated code: from a typing context and types to a signature and what emits its LLVM IR."""
    made: Callable[Arguments, Any] = numba.extending.intrinsic(function)
    return made
