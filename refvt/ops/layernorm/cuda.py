"""LayerNorm on the GPU: one warp per token; its lanes divide the channels and add their sums by shuffles."""

from __future__ import annotations

import math
from typing import NamedTuple

from numba import cuda

from refvt.array import Array
from refvt.backends.cuda.arguments import Indices, Matrix, Real, Vector
from refvt.backends.cuda.device_array import empty, num_valid_of, with_rows_of
from refvt.backends.cuda.elementwise import column_sums
from refvt.backends.cuda.kernel import kernel
from refvt.backends.cuda.sizes import WARP
from refvt.backends.cuda.threads import lane_and_row, valid_rows, warp_sum
from refvt.ops.layernorm import EPS


class LayerNormCache(NamedTuple):
    normed: Array  # x̂ [tokens, D]
    inverse_std: Array  # s [tokens]
    weight: Array  # [D]


@kernel
def _forward(
    x: Matrix,
    weight: Vector,
    bias: Vector,
    eps: Real,
    num_valid: Indices,
    normed: Matrix,
    inverse_std: Vector,
    y: Matrix,
) -> None:
    """x [n, D], weight, bias [D] → y [n, D]; normed [n, D] and inverse_std [n] unless empty. A warp per row."""
    lane, i = lane_and_row()
    n, D = valid_rows(num_valid, x.shape[0]), x.shape[1]
    if i - cuda.threadIdx.x // WARP >= n:  # true for all warps of the block at once
        return
    row = min(i, n - 1)  # a warp beyond the last row repeats that row, and writes nothing
    number = x.dtype.type
    # 1. centre
    total = number(0)
    for c in range(lane, D, WARP):
        total += x[row, c]
    mean = warp_sum(total) / number(D)
    # 2. scale to unit variance
    total = number(0)
    for c in range(lane, D, WARP):
        centred = x[row, c] - mean
        total += centred * centred
    scale = number(1) / math.sqrt(warp_sum(total) / number(D) + eps)
    if i < n:
        for c in range(lane, D, WARP):
            value = (x[row, c] - mean) * scale
            if normed.shape[0] > 0:
                normed[row, c] = value
            # 3. gain and shift
            y[row, c] = value * weight[c] + bias[c]
        if lane == 0 and normed.shape[0] > 0:
            inverse_std[row] = scale


def layernorm_forward(x: Array, weight: Array, bias: Array, keep: bool = True) -> tuple[Array, LayerNormCache | None]:
    """As ``reference``: y = (x − mean) / √(variance + 1e-6) · weight + bias, over the last axis.

    x [n, D] → y [n, D].
    """
    n, D = x.shape
    y = empty((n, D), x.dtype)
    kept = n if keep else 0
    normed, inverse_std = empty((kept, D), x.dtype), empty(kept, x.dtype)
    # passes 1–3
    _forward.warps(n, x, weight, bias, x.dtype.type(EPS), num_valid_of(x), normed, inverse_std, y)
    return with_rows_of(x, y), LayerNormCache(normed, inverse_std, weight) if keep else None


@kernel
def _backward(dy: Matrix, normed: Matrix, inverse_std: Vector, weight: Vector, dx: Matrix) -> None:
    """dy, normed [n, D], inverse_std [n], weight [D] → dx [n, D]; a warp per row."""
    lane, i = lane_and_row()
    n, D = dy.shape
    row = min(i, n - 1)
    number = dy.dtype.type
    # 3. gain and shift
    dnorm_mean, dnorm_norm_mean = number(0), number(0)
    for c in range(lane, D, WARP):
        dnormed = dy[row, c] * weight[c]
        dnorm_mean += dnormed
        dnorm_norm_mean += dnormed * normed[row, c]
    dnorm_mean = warp_sum(dnorm_mean) / number(D)
    dnorm_norm_mean = warp_sum(dnorm_norm_mean) / number(D)
    # passes 2–1: what changes only the mean or the variance gets no gradient
    if i < n:
        for c in range(lane, D, WARP):
            dx[row, c] = inverse_std[row] * (dy[row, c] * weight[c] - dnorm_mean - normed[row, c] * dnorm_norm_mean)


def layernorm_backward(dy: Array, cache: LayerNormCache) -> tuple[Array, Array, Array]:
    """As ``reference``: dx, dweight, dbias."""
    normed, inverse_std, weight = cache
    dx = empty(dy.shape, dy.dtype)
    # passes 3–1
    _backward.warps(dy.shape[0], dy, normed, inverse_std, weight, dx)
    # 3. gain and shift: sums over all tokens
    sums = column_sums(dy, normed)
    return dx, sums[weight.shape[0] :], sums[: weight.shape[0]]


@kernel
def _naive(x: Matrix, weight: Vector, bias: Vector, eps: Real, y: Matrix) -> None:
    """x [n, D], weight, bias [D] → y [n, D]; a thread per row."""
    i = cuda.grid(1)
    n, D = x.shape
    number = x.dtype.type
    if i < n:
        # 1. centre
        total = number(0)
        for c in range(D):
            total += x[i, c]
        mean = total / number(D)
        # 2. scale to unit variance
        total = number(0)
        for c in range(D):
            total += (x[i, c] - mean) * (x[i, c] - mean)
        scale = number(1) / math.sqrt(total / number(D) + eps)
        # 3. gain and shift
        for c in range(D):
            y[i, c] = (x[i, c] - mean) * scale * weight[c] + bias[c]


def layernorm_naive(x: Array, weight: Array, bias: Array) -> Array:
    """The simplest kernel: a thread per token.

    Neighbouring threads read numbers at distance D, so that every read of device memory fetches 32 rows for one number
    of each, and 1569 tokens occupy a fraction of the GPU. With a warp per token, neighbouring threads read neighbouring
    numbers.
    """
    y = empty(x.shape, x.dtype)
    _naive.each(x.shape[0], x, weight, bias, x.dtype.type(EPS), y)
    return y
