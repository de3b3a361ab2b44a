"""GELU and the MLP in tiles of rows: the hidden layer of a tile never leaves the cache in inference."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from refvt.backends.jit import TILE, column_sums, erfc, exp, finish, kernel, scaled
from refvt.backends.pool import row_tiles, run, tiles, workspace
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
def _bias_gelu(hidden: Array, bias: Array, before: Array | None) -> None:
    """hidden ← gelu(hidden + bias); what stood before GELU goes to ``before``, if it is wanted.

    Two arrays that may be one and the same would not vectorise: hence the option.
    """
    half, root = hidden.dtype.type(0.5), hidden.dtype.type(-math.sqrt(0.5))
    n, F = hidden.shape
    for i in range(n):
        for j in range(F):
            a = hidden[i, j] + bias[j]
            if before is not None:
                before[i, j] = a
            hidden[i, j] = a * half * erfc(a * root)


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
    F = len(fc1_bias)
    y = np.empty((len(x), len(fc2_bias)), x.dtype)  # [tokens, D]
    before = np.empty((len(x), F), x.dtype) if keep else None
    parts = row_tiles(len(x))

    def tile(i: int) -> None:
        rows = parts[i]
        hidden = workspace("mlp.hidden", (rows.stop - rows.start, F), x.dtype)
        # 1. widen
        np.matmul(x[rows], fc1_weight.T, out=hidden)
        # passes 1–2: bias, activate
        _bias_gelu(hidden, fc1_bias, None if before is None else before[rows])
        # 3. narrow
        np.matmul(hidden, fc2_weight.T, out=y[rows])
        # passes 3–4: bias, DropPath's gain and the skip connection
        finish(y[rows], fc2_bias, None if residual is None else residual[rows], None if gain is None else gain[rows])

    run(tile, len(parts))
    if before is None:
        return y, None
    return y, MlpCache(x, fc1_weight, fc2_weight, before, gain, residual is not None)


@kernel
def _gelu_again(before: Array, dbefore: Array, hidden: Array) -> None:
    """hidden ← gelu(before), and dbefore (dhidden until now) ← dhidden · gelu'(before)."""
    half, root = before.dtype.type(0.5), before.dtype.type(-math.sqrt(0.5))
    norm = before.dtype.type(1 / math.sqrt(2 * math.pi))
    n, F = before.shape
    for i in range(n):
        for j in range(F):
            a = before[i, j]
            cdf = half * erfc(a * root)
            hidden[i, j] = a * cdf
            dbefore[i, j] *= cdf + a * norm * exp(-half * a * a)


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
    hidden = workspace("mlp.hidden again", (n, F), x.dtype)
    dbefore = workspace("mlp.dbefore", (n, F), x.dtype)
    dx = np.empty_like(x)
    parts = row_tiles(n)

    def rows_tile(i: int) -> None:
        rows = parts[i]
        # 3. narrow
        np.matmul(dproduct[rows], fc2_weight, out=dbefore[rows])
        # 2. activate: hidden once more, and its derivative
        _gelu_again(before[rows], dbefore[rows], hidden[rows])
        # 1. widen
        np.matmul(dbefore[rows], fc1_weight, out=dx[rows])

    run(rows_tile, len(parts))
    # 3, 1. the weights' gradients sum over all rows: tiles of their own rows
    dfc1_weight, dfc1_bias = np.empty_like(fc1_weight), np.empty(F, x.dtype)
    dfc2_weight, dfc2_bias = np.empty_like(fc2_weight), np.empty(len(fc2_weight), x.dtype)
    wide, narrow = tiles(F, TILE), tiles(len(fc2_weight), TILE)

    def weights_tile(i: int) -> None:
        if i < len(wide):
            part = wide[i]
            np.matmul(dbefore[:, part].T, x, out=dfc1_weight[part])
            column_sums(dbefore[:, part], dfc1_bias[part])
        else:
            part = narrow[i - len(wide)]
            np.matmul(dproduct[:, part].T, hidden, out=dfc2_weight[part])
            column_sums(dproduct[:, part], dfc2_bias[part])

    run(weights_tile, len(wide) + len(narrow))
    return dx, dfc1_weight, dfc1_bias, dfc2_weight, dfc2_bias, dresidual
