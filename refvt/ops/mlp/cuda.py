"""GELU and the MLP on the GPU: GELU and its derivative are epilogues of matrix multiplies."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from numba import cuda

from refvt.array import Array
from refvt.backends.cuda.arguments import Int, Matrix, Real, Vector
from refvt.backends.cuda.device_array import empty, with_rows_of
from refvt.backends.cuda.elementwise import column_sums, copy, scale_rows
from refvt.backends.cuda.kernel import device_function, kernel
from refvt.backends.cuda.matmul import Matmul, matmul_nn, matmul_tn
from refvt.backends.cuda.upload import upload


@device_function
def _normal_cdf(x: Real, number: Any) -> Any:
    """Φ(x) = ½ erfc(−x/√2)."""
    return number(0.5) * math.erfc(x * number(-math.sqrt(0.5)))


@device_function
def _gelu_slope(x: Real, number: Any) -> Any:
    """gelu'(x) = Φ(x) + x · φ(x)."""
    density = math.exp(number(-0.5) * x * x) * number(1 / math.sqrt(2 * math.pi))
    return _normal_cdf(x, number) + x * density


class GeluCache(NamedTuple):
    x: Array


@kernel
def _gelu(x: Vector, y: Vector) -> None:
    """x [n] → y [n]; one thread per element."""
    i = cuda.grid(1)
    if i < x.shape[0]:
        # 1. the activation
        y[i] = x[i] * _normal_cdf(x[i], x.dtype.type)


def gelu_forward(x: Array, keep: bool = True) -> tuple[Array, GeluCache | None]:
    """As ``reference``: y = x · Φ(x), element by element; any shape, contiguous."""
    y = empty(x.shape, x.dtype)
    _gelu.each(x.size, x.reshape(-1), y.reshape(-1))
    return y, GeluCache(x) if keep else None


@kernel
def _gelu_backward(dy: Vector, x: Vector, dx: Vector) -> None:
    """dy, x [n] → dx [n]; one thread per element."""
    i = cuda.grid(1)
    if i < x.shape[0]:
        # 1. the activation
        dx[i] = dy[i] * _gelu_slope(x[i], x.dtype.type)


def gelu_backward(dy: Array, cache: GeluCache) -> Array:
    """As ``reference``: dx = dy · (Φ(x) + x · φ(x))."""
    (x,) = cache
    dx = empty(x.shape, x.dtype)
    _gelu_backward.each(x.size, dy.reshape(-1), x.reshape(-1), dx.reshape(-1))
    return dx


class MlpCache(NamedTuple):
    x: Array  # [tokens, D]
    fc1_weight: Array  # [F, D]
    fc2_weight: Array  # [D, F]
    pre_activation: Array  # fc1's output, before GELU [tokens, F]
    hidden: Array  # after GELU [tokens, F]
    gain: Array | None  # [tokens]
    has_residual: bool


@device_function
def _fc1_epilogue(
    value: Real, i: Int, j: Int, bias: Vector, gain: Vector, residual: Matrix, hidden: Matrix, pre_activation: Matrix
) -> None:
    """Passes 1–2: the bias, and GELU into the second result. bias [F] → pre_activation, hidden [n, F]."""
    value += bias[j]
    pre_activation[i, j] = value
    hidden[i, j] = value * _normal_cdf(value, pre_activation.dtype.type)


@device_function
def _fc2_backward_epilogue(
    value: Real, i: Int, j: Int, bias: Vector, gain: Vector, residual: Matrix, pre_activation: Matrix, dx: Matrix
) -> None:
    """Passes 3–2 backward: GELU's derivative. pre_activation [n, F] → dx, the gradient of pre_activation [n, F]."""
    dx[i, j] = value * _gelu_slope(pre_activation[i, j], dx.dtype.type)


_fc1 = Matmul("mlp.fc1", transpose_a=False, transpose_b=True, epilogue=_fc1_epilogue)
_fc2 = Matmul("mlp.fc2", transpose_a=False, transpose_b=True)
_fc2_backward = Matmul("mlp.fc2_backward", transpose_a=False, transpose_b=False, epilogue=_fc2_backward_epilogue)


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
    """As ``reference``: y = residual + gain · (gelu(x W₁ᵀ + b₁) W₂ᵀ + b₂).

    x [n, D], fc1_weight [F, D], fc1_bias [F], fc2_weight [D, F], fc2_bias [D], residual [n, D], gain [n] (host or
    device) → y [n, D].
    """
    gain = None if gain is None else upload(gain, x.dtype)
    hidden = with_rows_of(x, empty((x.shape[0], fc1_weight.shape[0]), x.dtype))  # [tokens, F]
    # passes 1–2
    pre_activation = _fc1(x, fc1_weight, fc1_bias, extra_output=hidden)  # [tokens, F]
    # passes 3–4
    y = _fc2(hidden, fc2_weight, fc2_bias, gain, residual)  # [tokens, D]
    if not keep:
        return y, None
    return y, MlpCache(x, fc1_weight, fc2_weight, pre_activation, hidden, gain, residual is not None)


def mlp_backward(dy: Array, cache: MlpCache) -> tuple[Array, Array, Array, Array, Array, Array | None]:
    """As ``reference``: dx, dfc1_weight, dfc1_bias, dfc2_weight, dfc2_bias, dresidual (None without residual)."""
    x, fc1_weight, fc2_weight, pre_activation, hidden, gain, has_residual = cache
    # 4. skip connection and gain
    dresidual = copy(dy) if has_residual else None
    dproduct = dy if gain is None else scale_rows(dy, gain)  # [tokens, D]
    # 3. fc2
    dfc2_weight, dfc2_bias = matmul_tn(dproduct, hidden), column_sums(dproduct)
    # passes 3–2
    dpre_activation = _fc2_backward(dproduct, fc2_weight, extra_input=pre_activation)  # [tokens, F]
    # 1. fc1
    dx, dfc1_weight, dfc1_bias = (
        matmul_nn(dpre_activation, fc1_weight),
        matmul_tn(dpre_activation, x),
        column_sums(dpre_activation),
    )
    return dx, dfc1_weight, dfc1_bias, dfc2_weight, dfc2_bias, dresidual
