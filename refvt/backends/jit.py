"""What the ``jit`` rooms share: how kernels are compiled, and the elementary functions that must vectorise.

Kernels are compiled lazily, at their first call, without holding the interpreter's lock, and cached on disk.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

from refvt.ops import Array

__all__ = ["column_sums", "erfc", "exp", "exp_within", "finish", "kernel", "scaled"]

# so that loops vectorise, sums may be reordered and divisions by zero are not looked for; NaN does not occur (the
# model refuses it at its door), −∞ does
FASTMATH = {"reassoc", "contract", "arcp", "nsz", "nnan"}
Function = TypeVar("Function", bound=Callable[..., Any])


def kernel(function: Function) -> Function:
    """Compile a function of arrays and numbers, lazily, at its first call."""
    compiled: Function = njit(nogil=True, cache=True, fastmath=FASTMATH, error_model="numpy")(function)
    return compiled


@intrinsic  # type: ignore[untyped-decorator]
def _as_float32(typing_context: Any, bits: Any) -> Any:
    """The float32 with these 32 bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


def exp(x: float) -> float:
    """e^x; in float32 as 2^n · e^f with a polynomial in f, relative error 2e-7, and 0 below −87 (so e^−∞ = 0)."""
    return math.exp(x)


@overload(exp, jit_options={"fastmath": FASTMATH, "error_model": "numpy"})
def _exp(x):  # type: ignore[no-untyped-def]
    if x != types.float32:
        return lambda x: math.exp(x)
    lowest, highest, zero = np.float32(-87.0), np.float32(88.0), np.float32(0)

    def exp32(x):  # type: ignore[no-untyped-def]
        power = exp_within(min(max(x, lowest), highest))
        return power if x >= lowest else zero

    return exp32


def exp_within(x: float) -> float:
    """e^x for |x| ≤ 87: half the work where nothing can overflow or vanish."""
    return math.exp(x)


# e^f for |f| ≤ ½ ln 2 to 2e-9: least squares of the relative error at Chebyshev's nodes
_f = 0.5 * math.log(2) * np.cos(np.pi * (np.arange(200) + 0.5) / 200)
_POWER = np.linalg.lstsq(np.vander(_f, 7, increasing=True) / np.exp(_f)[:, None], np.ones(200), rcond=None)[0]


@overload(exp_within, jit_options={"fastmath": FASTMATH, "error_model": "numpy"})
def _exp_within(x):  # type: ignore[no-untyped-def]
    if x != types.float32:
        return lambda x: math.exp(x)
    log2e, ln2_high, ln2_low = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
    c0, c1, c2, c3, c4, c5, c6 = (np.float32(c) for c in _POWER)
    shift = np.float32(127.5)

    def exp_within32(x):  # type: ignore[no-untyped-def]
        biased = np.int32(x * log2e + shift)  # n + 127 > 0, so that cutting off the fraction rounds to the nearest n
        n = np.float32(np.int32(biased - np.int32(127)))
        f = x - n * ln2_high - n * ln2_low
        f2 = f * f
        p = (c0 + c1 * f) + f2 * ((c2 + c3 * f) + f2 * ((c4 + c5 * f) + f2 * c6))  # short chains: they overlap
        return p * _as_float32(np.int32(biased << np.int32(23)))  # e^f · 2^n

    return exp_within32


def erfc(x: float) -> float:
    """1 − erf(x); in float32 by a rational approximation whose error is relative (1.2e-7) in both tails."""
    return math.erfc(x)


@overload(erfc, jit_options={"fastmath": FASTMATH, "error_model": "numpy"})
def _erfc(x):  # type: ignore[no-untyped-def]
    if x != types.float32:
        return lambda x: math.erfc(x)
    # erfc(z) = t · exp(−z² + P(t)), t = 1/(1 + z/2), for z ≥ 0; Chebyshev fit by W. H. Press et al., Numerical Recipes
    coefficients = (
        -1.26551223,
        1.00002368,
        0.37409196,
        0.09678418,
        -0.18628806,
        0.27886807,
        -1.13520398,
        1.48851587,
        -0.82215223,
        0.17087277,
    )
    a0, a1, a2, a3, a4, a5, a6, a7, a8, a9 = (np.float32(a) for a in coefficients)
    one, half, two = np.float32(1), np.float32(0.5), np.float32(2)

    def erfc32(x):  # type: ignore[no-untyped-def]
        z = abs(x)
        t = one / (one + half * z)
        t2 = t * t
        t4 = t2 * t2
        low, high = (a1 + a2 * t) + t2 * (a3 + a4 * t), (a5 + a6 * t) + t2 * (a7 + a8 * t)
        p = a0 + t * (low + t4 * (high + t4 * a9))
        tail = t * exp(p - z * z)
        return tail if x >= 0 else two - tail

    return erfc32


@kernel
def finish(
    y: Array, bias: Array, residual: Array | None, gain: Array | None, top: int, bottom: int, left: int, right: int
) -> None:
    """y ← residual + gain · (y + bias), in one tile: rows top … bottom, columns left … right.

    Each row's piece is cut out first: only then is it known to be contiguous, and can be vectorised.
    """
    shift = bias[left:right]
    for i in range(top, bottom):
        row = y[i, left:right]
        if residual is not None:
            rest = residual[i, left:right]
        for j in range(len(row)):
            value = row[j] + shift[j]
            if gain is not None:
                value *= gain[i]
            if residual is not None:
                value += rest[j]
            row[j] = value


@kernel
def scaled(dy: Array, gain: Array, out: Array) -> None:
    """out ← gain · dy, row by row."""
    for i in range(dy.shape[0]):
        for j in range(dy.shape[1]):
            out[i, j] = gain[i] * dy[i, j]


@kernel
def column_sums(x: Array, out: Array) -> None:
    """out[j] = Σ_i x[i, j], in blocks of 64 rows so that rounding does not pile up."""
    n, D = x.shape
    block = np.empty(D, x.dtype)
    out[:] = 0
    for start in range(0, n, 64):
        block[:] = 0
        for i in range(start, min(start + 64, n)):
            for j in range(D):
                block[j] += x[i, j]
        for j in range(D):
            out[j] += block[j]
