"""Elementary functions that vectorise: powers, the normal distribution, the logistic function.

In float32 each is a polynomial without a branch, so that a loop over an array becomes a loop over vectors; in float64
each is the function of the C library.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from scipy.special import erfcx

from refvt.backends.jit.kernel import function, intrinsic, kernel

__all__ = ["exp", "exp2", "gaussian_and_tail", "logistic"]


@intrinsic
def _as_float32(typing_context: Any, bits: Any) -> Any:
    """The float32 that has the bits of this int32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


# 2^f for |f| ≤ ½, to a relative 2e-9: a least-squares fit of the relative error at Chebyshev nodes
_f = 0.5 * np.cos(np.pi * (np.arange(200) + 0.5) / 200)
_POWER = np.linalg.lstsq(np.vander(_f, 7, increasing=True) / np.exp2(_f)[:, None], np.ones(200), rcond=None)[0]
C0, C1, C2, C3, C4, C5, C6 = (np.float32(c) for c in _POWER)
HALF_WAY = np.float32(127.5)  # BIAS + ½
BIAS, FRACTION = np.int32(127), np.int32(23)  # bias of a float32's exponent, and the number of bits below it


@njit(inline="always")  # type: ignore[untyped-decorator]
def _power(f: Any, biased: Any) -> Any:
    """2^(f + biased − 127) for |f| ≤ ½, in short chains of operations that overlap in the processor."""
    f2 = f * f
    p = (C0 + C1 * f) + f2 * ((C2 + C3 * f) + f2 * ((C4 + C5 * f) + f2 * C6))
    return p * _as_float32(np.int32(biased << FRACTION))


def exp2(x: float) -> float:
    """2^x for x ≤ 127; in float32 to a relative 2e-7, and 0 below −126 (so 2^−∞ = 0)."""
    return math.pow(2, x)


@function(exp2)
def _exp2(x: Any) -> Any:
    if x != types.float32:

        def exp2_64(x: Any) -> Any:  # annotated as _exp2 is: Numba compares the two signatures
            return np.exp2(x)

        return exp2_64
    lowest = np.float32(-127)

    def exp2_32(x: Any) -> Any:
        within = max(x, lowest)
        # the sum is positive, so truncation rounds to the nearest; a biased exponent of 0 gives the power 0
        biased = np.int32(within + HALF_WAY)
        return _power(within - np.float32(np.int32(biased - BIAS)), biased)

    return exp2_32


def exp(x: float) -> float:
    """e^x for x ≤ 88; in float32 to a relative 2e-7, and 0 below −87.4 (so e^−∞ = 0)."""
    return math.exp(x)


@function(exp)
def _exp(x: Any) -> Any:
    if x != types.float32:

        def exp64(x: Any) -> Any:
            return math.exp(x)

        return exp64
    lowest, log2e = np.float32(-127 * math.log(2)), np.float32(1 / math.log(2))
    ln2_high, ln2_low = np.float32(0.693359375), np.float32(-2.12194440e-4)

    def exp32(x: Any) -> Any:
        within = max(x, lowest)
        biased = np.int32(within * log2e + HALF_WAY)
        n = np.float32(np.int32(biased - BIAS))
        # x − n · ln 2 in two steps, so that nothing is lost; it is small, so the rounding of log2e does not matter
        return _power((within - n * ln2_high - n * ln2_low) * log2e, biased)

    return exp32


def gaussian_and_tail(x: float) -> tuple[float, float]:
    """e^(−x²/2), and the tail Φ(−|x|) of the normal distribution; in float32 each to a relative 4e-7 + x² · 6e-8."""
    return math.exp(-x * x / 2), math.erfc(abs(x) * math.sqrt(0.5)) / 2


# Φ(−x) · e^(x²/2) = t · P(t) with t = 1 / (1 + x/√8), to 5e-8 for 0 ≤ x ≤ 13.3 (beyond it e^(−x²/2) is 0)
_t = (1 + 1 / (1 + 13.3 / math.sqrt(8))) / 2 + (1 - 1 / (1 + 13.3 / math.sqrt(8))) / 2 * np.cos(
    np.pi * (np.arange(200) + 0.5) / 200
)
_ratio = erfcx((1 / _t - 1) * 2) / 2
_TAIL = np.linalg.lstsq(np.vander(_t, 9, increasing=True) * (_t / _ratio)[:, None], np.ones(200), rcond=None)[0]


@function(gaussian_and_tail)
def _gaussian_and_tail(x: Any) -> Any:
    if x != types.float32:

        def both64(x: Any) -> Any:
            return math.exp(-x * x / 2), math.erfc(abs(x) * math.sqrt(0.5)) / 2

        return both64
    a0, a1, a2, a3, a4, a5, a6, a7, a8 = (np.float32(a) for a in _TAIL)
    one, eighth, steep = np.float32(1), np.float32(math.sqrt(0.125)), np.float32(-0.5 / math.log(2))

    def both32(x: Any) -> Any:
        t = one / (one + eighth * abs(x))
        t2 = t * t
        t4 = t2 * t2
        low, high = (a0 + a1 * t) + t2 * (a2 + a3 * t), (a4 + a5 * t) + t2 * (a6 + a7 * t)
        height = exp2(steep * x * x)
        return height, height * t * (low + t4 * (high + t4 * a8))

    return both32


@kernel
def logistic(z: Any, one: Any) -> Any:
    """σ(z) = 1 / (1 + e^(−z)); ``one`` is a 1 of the dtype. Only e^(−|z|) ≤ 1 is formed, so nothing overflows."""
    e = exp(-abs(z))
    return (one if z >= 0 else e) / (one + e)
