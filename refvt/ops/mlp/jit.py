"""GELU and the MLP in tiles: each is activated while it is still in cache, and nothing of it is stored twice."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from refvt.backends.blas import gemm
from refvt.backends.jit import erfc, exp, kernel, scaled
from refvt.backends.pool import grid, workspace
from refvt.backends.products import product, weight_gradient
from refvt.backends.team import edges, run, take
from refvt.ops import Array


class GeluCache(NamedTuple):
    x: Array


@kernel
def _gelu(x: Array, y: Array) -> None:
    half, root = x.dtype.type(0.5), x.dtype.type(-math.sqrt(0.5))
    for i in range(x.size):
        y[i] = x[i] * half * erfc(x[i] * root)


def gelu_forward(x: Array, keep: bool = True) -> tuple[Array, GeluCache | None]:
    """y = x · Φ(x), element by element; any shape."""
    y = np.empty(x.shape, x.dtype)
    # 1. the activation
    _gelu(np.ascontiguousarray(x).reshape(-1), y.reshape(-1))
    return y, GeluCache(x) if keep else None


@kernel
def _gelu_backward(dy: Array, x: Array, dx: Array) -> None:
    half, root = x.dtype.type(0.5), x.dtype.type(-math.sqrt(0.5))
    norm = x.dtype.type(1 / math.sqrt(2 * math.pi))
    for i in range(x.size):
        cdf = half * erfc(x[i] * root)
        dx[i] = dy[i] * (cdf + x[i] * norm * exp(-half * x[i] * x[i]))


def gelu_backward(dy: Array, cache: GeluCache) -> Array:
    """Returns dx = dy · (Φ(x) + x · φ(x))."""
    (x,) = cache
    dx = np.empty(x.shape, x.dtype)
    # 1. the activation
    _gelu_backward(np.ascontiguousarray(dy).reshape(-1), np.ascontiguousarray(x).reshape(-1), dx.reshape(-1))
    return dx


class MlpCache(NamedTuple):
    x: Array
    fc1_weight: Array
    fc2_weight: Array
    before: Array  # fc1's output, before GELU [tokens, F]; GELU is cheap to do again, so `hidden` is not stored
    gain: Array | None
    has_residual: bool


@kernel
def _bias_gelu(hidden: Array, bias: Array, before: Array | None, top: int, bottom: int, left: int, right: int) -> None:
    """hidden ← gelu(hidden + bias) in one tile; what stood before GELU goes to ``before``, if it is wanted."""
    half, root = hidden.dtype.type(0.5), hidden.dtype.type(-math.sqrt(0.5))
    shift = bias[left:right]
    for i in range(top, bottom):
        row = hidden[i, left:right]
        if before is not None:
            stored = before[i, left:right]
        for j in range(len(row)):
            a = row[j] + shift[j]
            if before is not None:
                stored[j] = a
            row[j] = a * half * erfc(a * root)


@kernel
def _widen(
    share: Any, x: Array, weight: Array, bias: Array, cut: tuple[int, int], hidden: Array, before: Array | None
) -> None:
    n, F = hidden.shape
    i = take(share)
    while i >= 0:
        a, b, c, d = edges(i, cut, n, F)
        # 1. widen
        gemm(x[a:b], weight[c:d].T, hidden[a:b, c:d], 0)
        # passes 1–2: bias, activate
        _bias_gelu(hidden, bias, before, a, b, c, d)
        i = take(share)


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
    n, F = len(x), len(fc1_bias)
    y = np.empty((n, len(fc2_bias)), x.dtype)  # [tokens, D]
    before = np.empty((n, F), x.dtype) if keep else None
    hidden = workspace("mlp.hidden", (n, F), x.dtype)
    cut = grid(n, F)
    # passes 1–2
    run(_widen, cut[0] * cut[1], x, fc1_weight, fc1_bias, cut, hidden, before)
    cut = grid(*y.shape)
    # passes 3–4
    run(product, cut[0] * cut[1], hidden, fc2_weight, fc2_bias, residual, gain, cut, y)
    if before is None:
        return y, None
    return y, MlpCache(x, fc1_weight, fc2_weight, before, gain, residual is not None)


@kernel
def _gelu_again(before: Array, dbefore: Array, hidden: Array, top: int, bottom: int, left: int, right: int) -> None:
    """hidden ← gelu(before), and dbefore (dhidden until now) ← dhidden · gelu'(before), in one tile."""
    half, root = before.dtype.type(0.5), before.dtype.type(-math.sqrt(0.5))
    norm = before.dtype.type(1 / math.sqrt(2 * math.pi))
    for i in range(top, bottom):
        stored, gradient, row = before[i, left:right], dbefore[i, left:right], hidden[i, left:right]
        for j in range(len(row)):
            a = stored[j]
            cdf = half * erfc(a * root)
            row[j] = a * cdf
            gradient[j] *= cdf + a * norm * exp(-half * a * a)


@kernel
def _narrow_backward(
    share: Any, dy: Array, weight: Array, before: Array, cut: tuple[int, int], dbefore: Array, hidden: Array
) -> None:
    n, F = before.shape
    i = take(share)
    while i >= 0:
        a, b, c, d = edges(i, cut, n, F)
        # 3. narrow
        gemm(dy[a:b], weight[:, c:d], dbefore[a:b, c:d], 0)
        # 2. activate: hidden once more, and its derivative
        _gelu_again(before, dbefore, hidden, a, b, c, d)
        i = take(share)


@kernel
def _widen_backward(
    share: Any,
    dy: Array,
    hidden: Array,
    dbefore: Array,
    x: Array,
    fc1_weight: Array,
    cuts: tuple[tuple[int, int], tuple[int, int], tuple[int, int]],
    dx: Array,
    dfc1_weight: Array,
    dfc1_bias: Array,
    dfc2_weight: Array,
    dfc2_bias: Array,
) -> None:
    n, D = x.shape
    first, second = cuts[0][0] * cuts[0][1], cuts[1][0] * cuts[1][1]
    i = take(share)
    while i >= 0:
        if i < first:
            # 1. widen
            a, b, c, d = edges(i, cuts[0], n, D)
            gemm(dbefore[a:b], fc1_weight[:, c:d], dx[a:b, c:d], 0)
        elif i < first + second:
            # 1. its parameters
            weight_gradient(i - first, cuts[1], dbefore, x, dfc1_weight, dfc1_bias)
        else:
            # 3. the parameters of the narrowing
            weight_gradient(i - first - second, cuts[2], dy, hidden, dfc2_weight, dfc2_bias)
        i = take(share)


def mlp_backward(dy: Array, cache: MlpCache) -> tuple[Array, Array, Array, Array, Array, Array | None]:
    """Returns dx, dfc1_weight, dfc1_bias, dfc2_weight, dfc2_bias, dresidual (None if there was no residual)."""
    x, fc1_weight, fc2_weight, before, gain, has_residual = cache
    n, F = before.shape
    # 4. skip connection and gain
    dresidual = dy.copy() if has_residual else None
    dproduct = dy
    if gain is not None:
        dproduct = np.empty_like(dy)
        scaled(dy, gain, dproduct)
    hidden, dbefore = (workspace(f"mlp.{name}", (n, F), x.dtype) for name in ("hidden", "dbefore"))
    cut = grid(n, F)
    # passes 3–2
    run(_narrow_backward, cut[0] * cut[1], dproduct, fc2_weight, before, cut, dbefore, hidden)
    # pass 1, and the parameters of pass 3
    dx = np.empty_like(x)
    dfc1_weight, dfc1_bias = np.empty_like(fc1_weight), np.empty(F, x.dtype)
    dfc2_weight, dfc2_bias = np.empty_like(fc2_weight), np.empty(len(fc2_weight), x.dtype)
    cuts = grid(*x.shape), grid(*fc1_weight.shape), grid(*fc2_weight.shape)
    count = sum(down * across for down, across in cuts)
    gradients = (dx, dfc1_weight, dfc1_bias, dfc2_weight, dfc2_bias)
    run(_widen_backward, count, dproduct, hidden, dbefore, x, fc1_weight, cuts, *gradients)
    return (*gradients, dresidual)
