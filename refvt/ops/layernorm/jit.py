"""LayerNorm in Numba: one loop over a row for the mean, one for the variance, one to write."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refvt.array import Array
from refvt.backends.jit.kernel import kernel
from refvt.backends.jit.layouts import contiguous
from refvt.backends.jit.threads import next_tile, run, span
from refvt.ops.layernorm import EPS

ROWS = 128  # rows of a tile: enough to pay for taking it


class LayerNormCache(NamedTuple):
    """What the backward of LayerNorm reads. x̂ is not stored: it is formed again from x, mean and s."""

    x: Array  # [tokens, D]
    mean: Array  # [tokens]
    inverse_std: Array  # s [tokens]
    weight: Array  # [D]


@kernel
def _forward_rows(
    x: Array, weight: Array, bias: Array, eps: Any, top: int, bottom: int, y: Array, mean: Array, inverse_std: Array
) -> None:
    """Rows top … bottom − 1: x [n, D], weight [D], bias [D] → y [n, D], mean [n], inverse_std [n]."""
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
        # 3. weight and bias
        for j in range(D):
            y[i, j] = (x[i, j] - mu) * s * weight[j] + bias[j]
        mean[i], inverse_std[i] = mu, s


@kernel
def _forward(
    ticket: Any, x: Array, weight: Array, bias: Array, eps: Any, parts: int, y: Array, mean: Array, inverse_std: Array
) -> None:
    """x [n, D], weight [D], bias [D] → y [n, D], mean, inverse_std [n]; a tile is one of ``parts`` spans of rows."""
    i = next_tile(ticket)
    while i >= 0:
        top, bottom = span(i, parts, len(x))
        # passes 1–3
        _forward_rows(x, weight, bias, eps, top, bottom, y, mean, inverse_std)
        i = next_tile(ticket)


def layernorm_forward(x: Array, weight: Array, bias: Array, keep: bool = True) -> tuple[Array, LayerNormCache | None]:
    """LayerNorm: y = (x − mean) / √(variance + 1e-6) · weight + bias, over the last axis.

    x [n, D], weight [D], bias [D] → y [n, D]. Source: Ba, Kiros, Hinton 2016.
    """
    x, weight, bias = contiguous(x), contiguous(weight), contiguous(bias)
    y, mean, inverse_std = (np.empty(shape, x.dtype) for shape in (x.shape, len(x), len(x)))
    parts = -(-len(x) // ROWS)
    # passes 1–3
    run(_forward, parts, x, weight, bias, x.dtype.type(EPS), parts, y, mean, inverse_std)
    return y, LayerNormCache(x, mean, inverse_std, weight) if keep else None


@kernel
def _backward_rows(
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
    """Rows top to bottom − 1: dy, x [n, D], mean, inverse_std, weight [D] → dx [n, D], adds to dweight, dbias [D]."""
    D = x.shape[1]
    for i in range(top, bottom):
        mu, s = mean[i], inverse_std[i]
        dnorm_mean, dnorm_norm_mean = x.dtype.type(0), x.dtype.type(0)
        # 3. weight and bias
        for j in range(D):
            normed = (x[i, j] - mu) * s
            dweight[j] += dy[i, j] * normed
            dbias[j] += dy[i, j]
            dnormed = dy[i, j] * weight[j]
            dnorm_mean += dnormed
            dnorm_norm_mean += dnormed * normed
        dnorm_mean /= x.dtype.type(D)
        dnorm_norm_mean /= x.dtype.type(D)
        # passes 2–1: what would only move the mean or the variance does not pass
        for j in range(D):
            normed = (x[i, j] - mu) * s
            dx[i, j] = s * (dy[i, j] * weight[j] - dnorm_mean - normed * dnorm_norm_mean)


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
    """dy, x [n, D], mean, inverse_std [n], weight [D] → dx [n, D], dweight, dbias [parts, D].

    A tile is one of ``parts`` spans of the rows, and has a row of dweight and dbias to itself.
    """
    i = next_tile(ticket)
    while i >= 0:
        top, bottom = span(i, parts, len(x))
        # passes 3–1
        _backward_rows(dy, x, mean, inverse_std, weight, top, bottom, dx, dweight[i], dbias[i])
        i = next_tile(ticket)


def layernorm_backward(dy: Array, cache: LayerNormCache) -> tuple[Array, Array, Array]:
    """Returns dx, dweight, dbias."""
    x, mean, inverse_std, weight = cache
    dy = contiguous(dy)
    parts = -(-len(x) // ROWS)
    dx = np.empty(x.shape, x.dtype)
    dweight, dbias = (np.zeros((parts, x.shape[1]), x.dtype) for _ in range(2))  # one row per tile
    # passes 3–1
    run(_backward, parts, dy, x, mean, inverse_std, weight, parts, dx, dweight, dbias)
    return dx, dweight.sum(axis=0), dbias.sum(axis=0)
