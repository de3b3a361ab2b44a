"""LayerNorm in Numba: one pass over the row for the mean, one for the variance, one to write."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refvt.array import Array
from refvt.backends.jit.compile import kernel
from refvt.backends.jit.threads import next_tile, run, span

EPS = 1e-6
ROWS = 128  # rows of a tile: enough to be worth taking


class LayerNormCache(NamedTuple):
    x: Array
    mean: Array  # [tokens]
    inverse_std: Array  # s [tokens]
    weight: Array


@kernel
def _normalise(
    x: Array, weight: Array, bias: Array, eps: Any, top: int, bottom: int, y: Array, mean: Array, inverse_std: Array
) -> None:
    D = x.shape[1]
    one = x.dtype.type(1)
    for i in range(top, bottom):
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


@kernel
def _forward(
    ticket: Any, x: Array, weight: Array, bias: Array, eps: Any, parts: int, y: Array, mean: Array, inverse_std: Array
) -> None:
    i = next_tile(ticket)
    while i >= 0:
        top, bottom = span(i, parts, len(x))
        # passes 1–3
        _normalise(x, weight, bias, eps, top, bottom, y, mean, inverse_std)
        i = next_tile(ticket)


def layernorm_forward(x: Array, weight: Array, bias: Array, keep: bool = True) -> tuple[Array, LayerNormCache | None]:
    """y = (x − mean) / √(variance + 1e-6) · weight + bias, over the last axis. x [n, D] → y [n, D]."""
    y, mean, inverse_std = (np.empty(shape, x.dtype) for shape in (x.shape, len(x), len(x)))
    parts = -(-len(x) // ROWS)
    # passes 1–3
    run(_forward, parts, x, weight, bias, x.dtype.type(EPS), parts, y, mean, inverse_std)
    return y, LayerNormCache(x, mean, inverse_std, weight) if keep else None


@kernel
def _denormalise(
    dy: Array,
    x: Array,
    mean: Array,
    inverse_std: Array,
    weight: Array,
    top: int,
    bottom: int,
    dx: Array,
    dweight: Array,
    dbias: Array,
) -> None:
    D = x.shape[1]
    for i in range(top, bottom):
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


@kernel
def _backward(
    ticket: Any,
    dy: Array,
    x: Array,
    mean: Array,
    inverse_std: Array,
    weight: Array,
    parts: int,
    dx: Array,
    dweight: Array,
    dbias: Array,
) -> None:
    i = next_tile(ticket)
    while i >= 0:
        top, bottom = span(i, parts, len(x))
        # passes 3–1
        _denormalise(dy, x, mean, inverse_std, weight, top, bottom, dx, dweight[i], dbias[i])
        i = next_tile(ticket)


def layernorm_backward(dy: Array, cache: LayerNormCache) -> tuple[Array, Array, Array]:
    """Returns dx, dweight, dbias."""
    x, mean, inverse_std, weight = cache
    parts = -(-len(x) // ROWS)
    dx = np.empty(x.shape, x.dtype)
    dweight, dbias = (np.zeros((parts, x.shape[1]), x.dtype) for _ in range(2))  # one row per tile
    # passes 3–1
    run(_backward, parts, dy, x, mean, inverse_std, weight, parts, dx, dweight, dbias)
    return dx, dweight.sum(axis=0), dbias.sum(axis=0)
