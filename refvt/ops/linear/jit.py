"""The linear layer in tiles of rows and columns: multiply, and finish the tile while it is still in cache."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refvt.backends.blas import gemm
from refvt.backends.jit import kernel, scaled
from refvt.backends.pool import grid
from refvt.backends.products import product, weight_gradient
from refvt.backends.team import edges, run, take
from refvt.ops import Array


class LinearCache(NamedTuple):
    x: Array
    weight: Array
    gain: Array | None
    has_residual: bool


def linear_forward(
    x: Array,
    weight: Array,
    bias: Array,
    residual: Array | None = None,
    gain: Array | None = None,
    keep: bool = True,
) -> tuple[Array, LinearCache | None]:
    """y = residual + gain · (x Wᵀ + b). x [n, E], weight [D, E], bias [D], residual [n, D], gain [n] → y [n, D]."""
    y = np.empty((len(x), len(bias)), x.dtype)  # [tokens, D]
    cut = grid(*y.shape)
    # passes 1–3
    run(product, cut[0] * cut[1], x, weight, bias, residual, gain, cut, y)
    return y, LinearCache(x, weight, gain, residual is not None) if keep else None


@kernel
def _backward(
    share: Any,
    dy: Array,
    x: Array,
    weight: Array,
    cut: tuple[int, int],
    weight_cut: tuple[int, int],
    dx: Array,
    dweight: Array,
    dbias: Array,
) -> None:
    n, E = x.shape
    i = take(share)
    while i >= 0:
        if i < cut[0] * cut[1]:
            a, b, c, d = edges(i, cut, n, E)
            # 1. the multiply: the rows of dx
            gemm(dy[a:b], weight[:, c:d], dx[a:b, c:d], 0)
        else:
            # 1. the multiply: dweight and dbias
            weight_gradient(i - cut[0] * cut[1], weight_cut, dy, x, dweight, dbias)
        i = take(share)


def linear_backward(dy: Array, cache: LinearCache) -> tuple[Array, Array, Array, Array | None]:
    """Returns dx, dweight, dbias, dresidual (None if there was no residual)."""
    x, weight, gain, has_residual = cache
    # 3. the skip connection hands the gradient on as it is
    dresidual = dy.copy() if has_residual else None
    # 2. the gain
    dproduct = dy
    if gain is not None:
        dproduct = np.empty_like(dy)
        scaled(dy, gain, dproduct)
    # 1. the multiply
    dx, dweight, dbias = np.empty_like(x), np.empty_like(weight), np.empty(len(weight), x.dtype)
    cut, weight_cut = grid(*x.shape), grid(*weight.shape)
    count = cut[0] * cut[1] + weight_cut[0] * weight_cut[1]
    run(_backward, count, dproduct, x, weight, cut, weight_cut, dx, dweight, dbias)
    return dx, dweight, dbias, dresidual
