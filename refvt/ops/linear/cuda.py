"""The linear layer on the GPU: one tiled multiply whose epilogue adds the bias, the gain and the skip connection."""

from __future__ import annotations

from typing import NamedTuple

from refvt.array import Array
from refvt.backends.cuda.kernel import absent, cell, column_sums, copied, empty, kernel, read_only, scaled, upload
from refvt.backends.cuda.matmul import Matmul, plain, products


class LinearCache(NamedTuple):
    x: Array
    weight: Array
    gain: Array | None
    has_residual: bool


_forward = Matmul("linear.forward", turned_a=False, turned_b=True)  # x Wᵀ


def linear_forward(
    x: Array,
    weight: Array,
    bias: Array,
    residual: Array | None = None,
    gain: Array | None = None,
    keep: bool = True,
) -> tuple[Array, LinearCache | None]:
    """y = residual + gain · (x Wᵀ + b). x [n, E], weight [D, E], bias [D], residual [n, D], gain [n] → y [n, D]."""
    gain = None if gain is None else read_only(gain, x.dtype)
    # passes 1–3
    y = _forward(x, weight, bias, gain, residual)  # [tokens, D]
    return y, LinearCache(x, weight, gain, residual is not None) if keep else None


def linear_backward(dy: Array, cache: LinearCache) -> tuple[Array, Array, Array, Array | None]:
    """Returns dx, dweight, dbias, dresidual (None if there was no residual)."""
    x, weight, gain, has_residual = cache
    # 3. the skip connection hands the gradient on as it is
    dresidual = copied(dy) if has_residual else None
    # 2. the gain
    dproduct = dy if gain is None else scaled(dy, gain)
    # 1. the multiply
    return plain(dproduct, weight), products(dproduct, x), column_sums(dproduct), dresidual


@kernel("F F f F f F")
def _naive(x, weight, bias, residual, gain, y):  # type: ignore[no-untyped-def]
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
    """The first kernel one would write: a thread per result, a dot product each.

    Right, and slow: each multiply-add reads two numbers from the device's memory, and neighbouring threads read rows of
    W that lie far apart. The tiled kernel reads each number once per tile, and computes 64 results per thread.
    """
    y = empty((x.shape[0], weight.shape[0]), x.dtype)
    residual = absent(x.dtype, 2) if residual is None else residual
    gain = absent(x.dtype, 1) if gain is None else upload(gain, x.dtype)
    _naive.cells(y.shape[0], y.shape[1], x, weight, bias, residual, gain, y)
    return y
