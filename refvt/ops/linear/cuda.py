"""The linear layer on the GPU: one tiled multiply; bias, gain and skip connection are its epilogue."""

from __future__ import annotations

from typing import NamedTuple

from refvt.array import Array
from refvt.backends.cuda.arguments import Matrix, Vector
from refvt.backends.cuda.device_array import absent, empty
from refvt.backends.cuda.elementwise import column_sums, copy, scale_rows
from refvt.backends.cuda.kernel import kernel
from refvt.backends.cuda.matmul import Matmul, matmul_nn, matmul_tn
from refvt.backends.cuda.threads import cell
from refvt.backends.cuda.upload import read_only, upload


class LinearCache(NamedTuple):
    x: Array  # [n, E]
    weight: Array  # [D, E]
    gain: Array | None  # [n]
    has_residual: bool


_forward = Matmul("linear.forward", transpose_a=False, transpose_b=True)  # x Wᵀ


def linear_forward(
    x: Array,
    weight: Array,
    bias: Array,
    residual: Array | None = None,
    gain: Array | None = None,
    keep: bool = True,
) -> tuple[Array, LinearCache | None]:
    """As ``reference``: y = residual + gain · (x Wᵀ + b).

    x [n, E], weight [D, E], bias [D], residual [n, D], gain [n] (host or device) → y [n, D].
    """
    gain = None if gain is None else read_only(gain, x.dtype)
    # passes 1–3
    y = _forward(x, weight, bias, gain, residual)  # [tokens, D]
    return y, LinearCache(x, weight, gain, residual is not None) if keep else None


def linear_backward(dy: Array, cache: LinearCache) -> tuple[Array, Array, Array, Array | None]:
    """As ``reference``: dx, dweight, dbias, dresidual (None if there was no residual)."""
    x, weight, gain, has_residual = cache
    # 3. the skip connection passes the gradient unchanged
    dresidual = copy(dy) if has_residual else None
    # 2. the gain
    dproduct = dy if gain is None else scale_rows(dy, gain)
    # 1. the multiply
    return matmul_nn(dproduct, weight), matmul_tn(dproduct, x), column_sums(dproduct), dresidual


@kernel
def _naive(x: Matrix, weight: Matrix, bias: Vector, residual: Matrix, gain: Vector, y: Matrix) -> None:
    """x [n, E], weight [D, E], bias [D], residual [n, D] or empty, gain [n] or empty → y [n, D].

    A thread per element.
    """
    i, j = cell()
    if i < y.shape[0] and j < y.shape[1]:
        # 1. multiply, add the bias
        total = x.dtype.type(0)
        for k in range(x.shape[1]):
            total += x[i, k] * weight[j, k]
        total += bias[j]
        # 2. DropPath's gain
        if gain.shape[0] > 0:
            total *= gain[i]
        # 3. the skip connection
        if residual.shape[0] > 0:
            total += residual[i, j]
        y[i, j] = total


def linear_naive(
    x: Array, weight: Array, bias: Array, residual: Array | None = None, gain: Array | None = None
) -> Array:
    """The simplest kernel: a thread per result, which computes one dot product.

    Correct, and slow: each multiply-add reads two numbers from device memory, and neighbouring threads read distant
    rows of W. The tiled kernel reads each number once per tile, and computes 64 results per thread.
    """
    y = empty((x.shape[0], weight.shape[0]), x.dtype)
    residual = absent(x.dtype, 2) if residual is None else residual
    gain = absent(x.dtype, 1) if gain is None else upload(gain, x.dtype)
    _naive.cells(y.shape[0], y.shape[1], x, weight, bias, residual, gain, y)
    return y
