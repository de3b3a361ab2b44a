"""GELU and the MLP on the GPU: GELU and its slope are epilogues of the multiplies on either side of it."""

from __future__ import annotations

import math
from typing import NamedTuple

from numba import cuda

from refvt.array import Array
from refvt.backends.cuda.kernel import as_many, column_sums, copied, device_function, empty, kernel, scaled, upload
from refvt.backends.cuda.matmul import Matmul, plain, products


@device_function
def _normal_cdf(x, number):  # type: ignore[no-untyped-def]
    """Φ(x) = ½ erfc(−x/√2)."""
    return number(0.5) * math.erfc(x * number(-math.sqrt(0.5)))


@device_function
def _slope(x, number):  # type: ignore[no-untyped-def]
    """gelu'(x) = Φ(x) + x · φ(x)."""
    density = math.exp(number(-0.5) * x * x) * number(1 / math.sqrt(2 * math.pi))
    return _normal_cdf(x, number) + x * density


class GeluCache(NamedTuple):
    x: Array


@kernel("f f")
def _gelu(x, y):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < x.shape[0]:
        # 1. the activation
        y[i] = x[i] * _normal_cdf(x[i], x.dtype.type)


def gelu_forward(x: Array, keep: bool = True) -> tuple[Array, GeluCache | None]:
    """y = x · Φ(x), element by element; any shape, contiguous."""
    y = empty(x.shape, x.dtype)
    _gelu.each(x.size, x.reshape(-1), y.reshape(-1))
    return y, GeluCache(x) if keep else None


@kernel("f f f")
def _gelu_backward(dy, x, dx):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < x.shape[0]:
        # 1. the activation
        dx[i] = dy[i] * _slope(x[i], x.dtype.type)


def gelu_backward(dy: Array, cache: GeluCache) -> Array:
    """Returns dx = dy · (Φ(x) + x · φ(x))."""
    (x,) = cache
    dx = empty(x.shape, x.dtype)
    _gelu_backward.each(x.size, dy.reshape(-1), x.reshape(-1), dx.reshape(-1))
    return dx


class MlpCache(NamedTuple):
    x: Array
    fc1_weight: Array
    fc2_weight: Array
    before: Array  # fc1's output, before GELU [tokens, F]
    hidden: Array  # after GELU [tokens, F]
    gain: Array | None
    has_residual: bool


@device_function
def _widened(value, i, j, bias, gain, residual, extra, y):  # type: ignore[no-untyped-def]
    """Passes 1–2 at the end of the multiply: y = before, extra = hidden."""
    value += bias[j]
    y[i, j] = value
    extra[i, j] = value * _normal_cdf(value, y.dtype.type)


@device_function
def _narrowed_backward(value, i, j, bias, gain, residual, extra, y):  # type: ignore[no-untyped-def]
    """Passes 3–2 backward at the end of the multiply: y = dbefore, extra = before."""
    y[i, j] = value * _slope(extra[i, j], y.dtype.type)


_widen = Matmul("mlp.widen", turned_a=False, turned_b=True, finish=_widened)
_narrow = Matmul("mlp.narrow", turned_a=False, turned_b=True)
_narrow_backward = Matmul("mlp.narrow_backward", turned_a=False, turned_b=False, finish=_narrowed_backward)


def mlp_forward(
    x: Array,
    fc1_weight: Array,
    fc1_bias: Array,
    fc2_weight: Array,
    fc2_bias: Array,
    residual: Array | None = None,
    gain: Array | None = None,
    keep: bool = True,
) -> tuple[Array, MlpCache | None]:
    """y = residual + gain · (gelu(x W₁ᵀ + b₁) W₂ᵀ + b₂).

    x [n, D], fc1_weight [F, D], fc1_bias [F], fc2_weight [D, F], fc2_bias [D], residual [n, D], gain [n] → y [n, D].
    """
    gain = None if gain is None else upload(gain, x.dtype)
    hidden = as_many(x, empty((x.shape[0], fc1_weight.shape[0]), x.dtype))  # [tokens, F]
    # passes 1–2
    before = _widen(x, fc1_weight, fc1_bias, extra=hidden)  # [tokens, F]
    # passes 3–4
    y = _narrow(hidden, fc2_weight, fc2_bias, gain, residual)  # [tokens, D]
    if not keep:
        return y, None
    return y, MlpCache(x, fc1_weight, fc2_weight, before, hidden, gain, residual is not None)


def mlp_backward(dy: Array, cache: MlpCache) -> tuple[Array, Array, Array, Array, Array, Array | None]:
    """Returns dx, dfc1_weight, dfc1_bias, dfc2_weight, dfc2_bias, dresidual (None if there was no residual)."""
    x, fc1_weight, fc2_weight, before, hidden, gain, has_residual = cache
    # 4. skip connection and gain
    dresidual = copied(dy) if has_residual else None
    dproduct = dy if gain is None else scaled(dy, gain)  # [tokens, D]
    # 3. narrow
    dfc2_weight, dfc2_bias = products(dproduct, hidden), column_sums(dproduct)
    # passes 3–2
    dbefore = _narrow_backward(dproduct, fc2_weight, extra=before)  # [tokens, F]
    # 1. widen
    dx, dfc1_weight, dfc1_bias = plain(dbefore, fc1_weight), products(dbefore, x), column_sums(dbefore)
    return dx, dfc1_weight, dfc1_bias, dfc2_weight, dfc2_bias, dresidual
