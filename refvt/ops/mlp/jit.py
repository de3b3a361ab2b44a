"""GELU and the MLP in tiles: GELU is applied to each tile of fc1 while it is still in cache."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from refvt.array import Array
from refvt.backends.jit.arrays import copy, scale_rows
from refvt.backends.jit.functions import gaussian_and_tail
from refvt.backends.jit.kernel import kernel
from refvt.backends.jit.layouts import contiguous
from refvt.backends.jit.matmul import (
    Cut,
    dots,
    edges,
    grid,
    linear_tiles,
    multiply,
    pack_panels,
    panel_size,
    too_few_to_pack,
    weight_gradients,
)
from refvt.backends.jit.microkernel import ROWS
from refvt.backends.jit.threads import next_tile, run
from refvt.backends.jit.vectors import copy_rows
from refvt.backends.jit.workspace import workspace


class GeluCache(NamedTuple):
    """What the backward of GELU reads."""

    x: Array  # any shape


@kernel
def _gelu(x: Array, y: Array) -> None:
    """y ← x · Φ(x); x, y [numbers]."""
    # 1. the activation
    one, zero = x.dtype.type(1), x.dtype.type(0)
    for i in range(x.size):
        _, tail = gaussian_and_tail(x[i])
        y[i] = x[i] * (tail if x[i] < zero else one - tail)


def gelu_forward(x: Array, keep: bool = True) -> tuple[Array, GeluCache | None]:
    """GELU, y = x · Φ(x), element by element; x of any shape. Source: Hendrycks, Gimpel 2016."""
    x, y = contiguous(x), np.empty(x.shape, x.dtype)
    # pass 1
    _gelu(x.reshape(-1), y.reshape(-1))
    return y, GeluCache(x) if keep else None


@kernel
def _gelu_backward(dy: Array, x: Array, dx: Array) -> None:
    """dx ← dy · (Φ(x) + x · φ(x)); dy, x, dx [numbers]."""
    # 1. the activation
    one, zero, norm = x.dtype.type(1), x.dtype.type(0), x.dtype.type(1 / math.sqrt(2 * math.pi))
    for i in range(x.size):
        height, tail = gaussian_and_tail(x[i])
        dx[i] = dy[i] * ((tail if x[i] < zero else one - tail) + x[i] * norm * height)


def gelu_backward(dy: Array, cache: GeluCache) -> Array:
    """Returns dx = dy · (Φ(x) + x · φ(x))."""
    (x,) = cache
    dx = np.empty(x.shape, x.dtype)
    # pass 1
    _gelu_backward(contiguous(dy).reshape(-1), x.reshape(-1), dx.reshape(-1))
    return dx


class MlpCache(NamedTuple):
    """What the backward of the MLP reads. ``hidden`` is not stored, since GELU is cheap to compute again."""

    x: Array  # [tokens, D]
    fc1_weight: Array  # [F, D]
    fc2_weight: Array  # [D, F]
    pre_activation: Array  # fc1's output, before GELU [tokens, F]
    gain: Array | None  # [tokens]
    has_residual: bool


@kernel
def _fc1(
    ticket: Any, scratch: Array, x: Array, weight: Array, bias: Array, cut: Cut, hidden: Array, pre_activation: Array
) -> None:
    """hidden [n, F] ← gelu(x Wᵀ + bias); x [n, D], weight [F, D], bias [F]; a tile is a task of ``cut``.

    pre_activation [n, F] gets the argument of GELU, unless it is empty.
    """
    one, zero, absent = x.dtype.type(1), x.dtype.type(0), scratch[:0]
    i, before = next_tile(ticket), -1
    while i >= 0:
        top, bottom, left, right = edges(i, cut, *hidden.shape)
        part, shift = weight[left:right], bias[left:right]
        unpacked = too_few_to_pack(x, weight)
        packed = weight[left : left if unpacked else right, :].T  # sliced as in the linear layer, and called like it
        panels, before = pack_panels(packed, cut, scratch, left != before), left
        for a in range(top, bottom, ROWS):
            b = min(a + ROWS, bottom)
            corner = hidden[a:b, left:right]
            # 1. fc1
            if unpacked:
                dots(x[a:b], part, corner, shift, absent, corner[:0])
            else:
                multiply(x[a:b], panels, corner, shift, absent, corner[:0])
            if len(pre_activation) > 0:
                copy_rows(corner, pre_activation[a:b, left:right])
            # 2. activate; a piece of a row of ``hidden`` is known to be contiguous, a row of ``corner`` is not
            for r in range(a, b):
                row = hidden[r, left:right]
                for j in range(len(row)):
                    _, tail = gaussian_and_tail(row[j])
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
    """The MLP with its residual addition: y = residual + gain · (gelu(x W₁ᵀ + b₁) W₂ᵀ + b₂).

    x [n, D], fc1_weight [F, D], fc1_bias [F], fc2_weight [D, F], fc2_bias [D], residual [n, D], gain [n] → y [n, D].
    """
    x, fc1_weight, fc2_weight = contiguous(x), contiguous(fc1_weight), contiguous(fc2_weight)
    fc1_bias = contiguous(fc1_bias, x.dtype)
    n, F = len(x), len(fc1_bias)
    pre_activation = np.empty((n if keep else 0, F), x.dtype)
    hidden = workspace("mlp.hidden", (n, F), x.dtype)
    cut = grid(n, F, x.shape[1], x.itemsize)
    # passes 1–2
    scratch = (panel_size(cut, *fc1_weight.shape), x.dtype)
    run(_fc1, cut.tasks, x, fc1_weight, fc1_bias, cut, hidden, pre_activation, scratch=scratch)
    # passes 3–4
    y = linear_tiles(hidden, fc2_weight, fc2_bias, residual, gain)  # [tokens, D]
    return y, MlpCache(x, fc1_weight, fc2_weight, pre_activation, gain, residual is not None) if keep else None


@kernel
def _gelu_and_gradient(
    pre_activation: Array, dpre_activation: Array, hidden: Array, top: int, bottom: int, left: int, right: int
) -> None:
    """hidden ← gelu(pre_activation), dpre_activation ← dhidden · gelu'(pre_activation); one block of arrays [n, F].

    dpre_activation holds dhidden when it comes in.
    """
    one, zero, norm = (
        pre_activation.dtype.type(1),
        pre_activation.dtype.type(0),
        pre_activation.dtype.type(1 / math.sqrt(2 * math.pi)),
    )
    for i in range(top, bottom):
        stored, gradient, row = pre_activation[i, left:right], dpre_activation[i, left:right], hidden[i, left:right]
        for j in range(len(row)):
            a = stored[j]
            height, tail = gaussian_and_tail(a)
            cdf = tail if a < zero else one - tail
            row[j] = a * cdf
            gradient[j] *= cdf + a * norm * height


@kernel
def _fc2_backward(
    ticket: Any,
    scratch: Array,
    dy: Array,
    weight: Array,
    pre_activation: Array,
    cut: Cut,
    dpre_activation: Array,
    hidden: Array,
) -> None:
    """dpre_activation, hidden [n, F] ← dy [n, D], weight [D, F], pre_activation [n, F]; a tile: a task of ``cut``."""
    i, before = next_tile(ticket), -1
    while i >= 0:
        top, bottom, left, right = edges(i, cut, *pre_activation.shape)
        panels, before = pack_panels(weight[:, left:right], cut, scratch, left != before), left
        for a in range(top, bottom, ROWS):
            b = min(a + ROWS, bottom)
            # 3. fc2
            multiply(dy[a:b], panels, dpre_activation[a:b, left:right], None, None, None)
            # 2. activate: hidden again, and its gradient
            _gelu_and_gradient(pre_activation, dpre_activation, hidden, a, b, left, right)
        i = next_tile(ticket)


def mlp_backward(dy: Array, cache: MlpCache) -> tuple[Array, Array, Array, Array, Array, Array | None]:
    """Returns dx, dfc1_weight, dfc1_bias, dfc2_weight, dfc2_bias, dresidual (None if there was no residual)."""
    x, fc1_weight, fc2_weight, pre_activation, gain, has_residual = cache
    dy, (n, F) = contiguous(dy), pre_activation.shape
    # 4. the skip connection and the DropPath scale
    dresidual = copy(dy) if has_residual else None
    dproduct = dy
    if gain is not None:
        dproduct = scale_rows(dy, gain)
    hidden, dpre_activation = (workspace(f"mlp.{name}", (n, F), x.dtype) for name in ("hidden", "dpre_activation"))
    cut = grid(n, F, len(fc2_weight), x.itemsize)
    # passes 3–2
    scratch = (panel_size(cut, F, len(fc2_weight)), x.dtype)
    run(_fc2_backward, cut.tasks, dproduct, fc2_weight, pre_activation, cut, dpre_activation, hidden, scratch=scratch)
    dfc2_weight, dfc2_bias = weight_gradients(dproduct, hidden)
    # 1. fc1
    dx = linear_tiles(dpre_activation, fc1_weight.T)
    dfc1_weight, dfc1_bias = weight_gradients(dpre_activation, x)
    return dx, dfc1_weight, dfc1_bias, dfc2_weight, dfc2_bias, dresidual
