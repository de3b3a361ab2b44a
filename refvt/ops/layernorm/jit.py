"""LayerNorm in Numba: one pass over the row for the mean, one for the variance, one to write."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refvt.backends.jit import kernel
from refvt.backends.pool import run, tiles
from refvt.ops import Array

EPS = 1e-6
ROWS = 512  # rows of a tile: a pass over memory, not worth a thread where there are few


class LayerNormCache(NamedTuple):
    x: Array
    mean: Array  # [tokens]
    inverse_std: Array  # s [tokens]
    weight: Array


@kernel
def _normalise(x: Array, weight: Array, bias: Array, eps: Any, y: Array, mean: Array, inverse_std: Array) -> None:
    n, D = x.shape
    one = x.dtype.type(1)
    for i in range(n):
        # 1. centre
        total = x.dtype.type(0)
        for j in range(D):
            total += x[i, j]
        mu = total / x.dtype.type(D)
        # 2. scale to unit variance
        square = x.dtype.type(0)
        for j in range(D):
            square += (x[i, j] - mu) * (x[i, j] - mu)
        s = one / np.sqrt(square / x.dtype.type(D) + eps)
        # 3. gain and shift
        for j in range(D):
            y[i, j] = (x[i, j] - mu) * s * weight[j] + bias[j]
        mean[i], inverse_std[i] = mu, s


def layernorm_forward(x: Array, weight: Array, bias: Array, keep: bool = True) -> tuple[Array, LayerNormCache | None]:
    """y = (x − mean) / √(variance + 1e-6) · weight + bias, over the last axis. x [n, D] → y [n, D]."""
    y, mean, inverse_std = np.empty_like(x), np.empty(len(x), x.dtype), np.empty(len(x), x.dtype)
    eps = x.dtype.type(EPS)
    parts = tiles(len(x), ROWS)

    def tile(i: int) -> None:
        rows = parts[i]
        # passes 1–3
        _normalise(x[rows], weight, bias, eps, y[rows], mean[rows], inverse_std[rows])

    run(tile, len(parts))
    return y, LayerNormCache(x, mean, inverse_std, weight) if keep else None


@kernel
def _denormalise(
    dy: Array, x: Array, mean: Array, inverse_std: Array, weight: Array, dx: Array, dweight: Array, dbias: Array
) -> None:
    n, D = x.shape
    for i in range(n):
        mu, s = mean[i], inverse_std[i]
        along_one, along_normed = x.dtype.type(0), x.dtype.type(0)
        # 3. gain and shift
        for j in range(D):
            normed = (x[i, j] - mu) * s
            dweight[j] += dy[i, j] * normed
            dbias[j] += dy[i, j]
            dnormed = dy[i, j] * weight[j]
            along_one += dnormed
            along_normed += dnormed * normed
        along_one /= x.dtype.type(D)
        along_normed /= x.dtype.type(D)
        # 2, 1. what would only move the mean or the variance does not pass
        for j in range(D):
            normed = (x[i, j] - mu) * s
            dx[i, j] = s * (dy[i, j] * weight[j] - along_one - normed * along_normed)


def layernorm_backward(dy: Array, cache: LayerNormCache) -> tuple[Array, Array, Array]:
    """Returns dx, dweight, dbias."""
    x, mean, inverse_std, weight = cache
    parts = tiles(len(x), ROWS)
    dx = np.empty_like(x)
    dweight, dbias = (np.zeros((len(parts), x.shape[1]), x.dtype) for _ in range(2))  # one row per tile

    def tile(i: int) -> None:
        rows = parts[i]
        # passes 3–1
        _denormalise(dy[rows], x[rows], mean[rows], inverse_std[rows], weight, dx[rows], dweight[i], dbias[i])

    run(tile, len(parts))
    return dx, dweight.sum(axis=0), dbias.sum(axis=0)
