"""GELU and the MLP in tiles: each is activated while it is still in cache, and nothing of it is stored twice."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from refvt.array import Array
from refvt.backends.jit.arrays import copied, scaled
from refvt.backends.jit.compile import bell, kernel
from refvt.backends.jit.layouts import packable
from refvt.backends.jit.matmul import Cut, affine, dots, edges, few, grid, multiply, packed, room, weight_gradients
from refvt.backends.jit.microkernel import ROWS, copy_rows
from refvt.backends.jit.threads import next_tile, run
from refvt.backends.jit.workspace import workspace


class GeluCache(NamedTuple):
    x: Array


@kernel
def _gelu(x: Array, y: Array) -> None:
    one, zero = x.dtype.type(1), x.dtype.type(0)
    for i in range(x.size):
        _, tail = bell(x[i])
        y[i] = x[i] * (tail if x[i] < zero else one - tail)


def gelu_forward(x: Array, keep: bool = True) -> tuple[Array, GeluCache | None]:
    """y = x · Φ(x), element by element; any shape."""
    y = np.empty(x.shape, x.dtype)
    # 1. the activation
    _gelu(np.ascontiguousarray(x).reshape(-1), y.reshape(-1))
    return y, GeluCache(x) if keep else None


@kernel
def _gelu_backward(dy: Array, x: Array, dx: Array) -> None:
    one, zero, norm = x.dtype.type(1), x.dtype.type(0), x.dtype.type(1 / math.sqrt(2 * math.pi))
    for i in range(x.size):
        height, tail = bell(x[i])
        dx[i] = dy[i] * ((tail if x[i] < zero else one - tail) + x[i] * norm * height)


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
def _widen(
    ticket: Any, space: Array, x: Array, weight: Array, bias: Array, cut: Cut, hidden: Array, before: Array
) -> None:
    """What stands before GELU goes to ``before`` too, unless that is empty."""
    one, zero, nothing = x.dtype.type(1), x.dtype.type(0), space[:0]
    i, column = next_tile(ticket), -1
    while i >= 0:
        top, bottom, left, right = edges(i, cut, *hidden.shape)
        part, shift = weight[left:right], bias[left:right]
        unpacked = few(x, weight)
        panels, column = packed(part[: 0 if unpacked else right - left].T, cut, space, left != column), left
        for a in range(top, bottom, ROWS):
            b = min(a + ROWS, bottom)
            corner = hidden[a:b, left:right]
            # 1. widen
            if unpacked:
                dots(x[a:b], part, corner, shift, nothing, corner[:0])
            else:
                multiply(x[a:b], panels, corner, shift, None, None)
            if len(before) > 0:
                copy_rows(corner, before[a:b, left:right])
            # 2. activate; of a piece of a row of ``hidden`` it is known that it is contiguous, of one of ``corner`` not
            for r in range(a, b):
                row = hidden[r, left:right]
                for j in range(len(row)):
                    _, tail = bell(row[j])
                    row[j] *= tail if row[j] < zero else one - tail
        i = next_tile(ticket)


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
    fc1_weight, fc2_weight = packable(fc1_weight), packable(fc2_weight)
    fc1_bias = np.ascontiguousarray(fc1_bias, x.dtype)
    n, F = len(x), len(fc1_bias)
    before = np.empty((n if keep else 0, F), x.dtype)
    hidden = workspace("mlp.hidden", (n, F), x.dtype)
    cut = grid(n, F, x.shape[1], x.itemsize)
    # passes 1–2
    space = (room(cut, *fc1_weight.shape), x.dtype)
    run(_widen, cut.tasks, x, fc1_weight, fc1_bias, cut, hidden, before, space=space)
    # passes 3–4
    y = affine(hidden, fc2_weight, fc2_bias, residual, gain)  # [tokens, D]
    return y, MlpCache(x, fc1_weight, fc2_weight, before, gain, residual is not None) if keep else None


@kernel
def _gelu_again(before: Array, dbefore: Array, hidden: Array, top: int, bottom: int, left: int, right: int) -> None:
    """hidden ← gelu(before), and dbefore (dhidden until now) ← dhidden · gelu'(before), in one tile."""
    one, zero, norm = before.dtype.type(1), before.dtype.type(0), before.dtype.type(1 / math.sqrt(2 * math.pi))
    for i in range(top, bottom):
        stored, gradient, row = before[i, left:right], dbefore[i, left:right], hidden[i, left:right]
        for j in range(len(row)):
            a = stored[j]
            height, tail = bell(a)
            cdf = tail if a < zero else one - tail
            row[j] = a * cdf
            gradient[j] *= cdf + a * norm * height


@kernel
def _narrow_backward(
    ticket: Any, space: Array, dy: Array, weight: Array, before: Array, cut: Cut, dbefore: Array, hidden: Array
) -> None:
    i, column = next_tile(ticket), -1
    while i >= 0:
        top, bottom, left, right = edges(i, cut, *before.shape)
        panels, column = packed(weight[:, left:right], cut, space, left != column), left
        for a in range(top, bottom, ROWS):
            b = min(a + ROWS, bottom)
            # 3. narrow
            multiply(dy[a:b], panels, dbefore[a:b, left:right], None, None, None)
            # 2. activate: hidden once more, and its derivative
            _gelu_again(before, dbefore, hidden, a, b, left, right)
        i = next_tile(ticket)


def mlp_backward(dy: Array, cache: MlpCache) -> tuple[Array, Array, Array, Array, Array, Array | None]:
    """Returns dx, dfc1_weight, dfc1_bias, dfc2_weight, dfc2_bias, dresidual (None if there was no residual)."""
    x, fc1_weight, fc2_weight, before, gain, has_residual = cache
    n, F = before.shape
    # 4. skip connection and gain
    dresidual = copied(dy) if has_residual else None
    dproduct = dy
    if gain is not None:
        dproduct = scaled(dy, gain)
    hidden, dbefore = (workspace(f"mlp.{name}", (n, F), x.dtype) for name in ("hidden", "dbefore"))
    cut = grid(n, F, len(fc2_weight), x.itemsize)
    # passes 3–2
    space = (room(cut, F, len(fc2_weight)), x.dtype)
    run(_narrow_backward, cut.tasks, dproduct, fc2_weight, before, cut, dbefore, hidden, space=space)
    dfc2_weight, dfc2_bias = weight_gradients(dproduct, hidden)
    # 1. widen
    dx = affine(dbefore, fc1_weight.T)
    dfc1_weight, dfc1_bias = weight_gradients(dbefore, x)
    return dx, dfc1_weight, dfc1_bias, dfc2_weight, dfc2_bias, dresidual
