"""LayerNorm on the GPU: one warp per token, its lanes sharing the channels and exchanging their sums by shuffles."""

from __future__ import annotations

import math
from typing import NamedTuple

from numba import cuda

from refvt.array import Array
from refvt.backends.cuda.kernel import (
    WARP,
    as_many,
    column_sums,
    empty,
    kernel,
    lane_and_row,
    rows_there,
    there,
    warp_sum,
)

EPS = 1e-6


class LayerNormCache(NamedTuple):
    normed: Array  # x̂ [tokens, D]
    inverse_std: Array  # s [tokens]
    weight: Array


@kernel("F f f x i F f F")
def _forward(x, weight, bias, eps, there, normed, inverse_std, y):  # type: ignore[no-untyped-def]
    lane, i = lane_and_row()
    n, D = rows_there(there, x.shape[0]), x.shape[1]
    if i - cuda.threadIdx.x // WARP >= n:  # so for all warps of the block
        return
    row = min(i, n - 1)  # a warp beyond the last row repeats it and writes nothing
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
    """y = (x − mean) / √(variance + 1e-6) · weight + bias, over the last axis. x [n, D] → y [n, D]."""
    n, D = x.shape
    y = empty((n, D), x.dtype)
    kept = n if keep else 0
    normed, inverse_std = empty((kept, D), x.dtype), empty(kept, x.dtype)
    # passes 1–3
    _forward.warps(n, x, weight, bias, x.dtype.type(EPS), there(x), normed, inverse_std, y)
    return as_many(x, y), LayerNormCache(normed, inverse_std, weight) if keep else None


@kernel("F F f f F")
def _backward(dy, normed, inverse_std, weight, dx):  # type: ignore[no-untyped-def]
    lane, i = lane_and_row()
    n, D = dy.shape
    row = min(i, n - 1)
    number = dy.dtype.type
    # 3. gain and shift
    mean, product = number(0), number(0)
    for c in range(lane, D, WARP):
        dnormed = dy[row, c] * weight[c]
        mean += dnormed
        product += dnormed * normed[row, c]
    mean = warp_sum(mean) / number(D)
    product = warp_sum(product) / number(D)
    # 2, 1. what would only move the mean or the variance does not pass
    if i < n:
        for c in range(lane, D, WARP):
            dx[row, c] = inverse_std[row] * (dy[row, c] * weight[c] - mean - normed[row, c] * product)


def layernorm_backward(dy: Array, cache: LayerNormCache) -> tuple[Array, Array, Array]:
    """Returns dx, dweight, dbias."""
    normed, inverse_std, weight = cache
    dx = empty(dy.shape, dy.dtype)
    # passes 3–1
    _backward.warps(dy.shape[0], dy, normed, inverse_std, weight, dx)
    # 3. gain and shift: sums over all tokens
    sums = column_sums(dy, normed)
    return dx, sums[weight.shape[0] :], sums[: weight.shape[0]]


@kernel("F f f x F")
def _naive(x, weight, bias, eps, y):  # type: ignore[no-untyped-def]
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
    """The first kernel one would write: a thread per token.

    Its neighbours read numbers D apart, so that every read of the device's memory fetches 32 rows for one number of
    each, and 1569 tokens occupy a fraction of the GPU. With a warp per token neighbours read neighbours.
    """
    y = empty(x.shape, x.dtype)
    _naive.each(x.shape[0], x, weight, bias, x.dtype.type(EPS), y)
    return y
