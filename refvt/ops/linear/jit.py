"""The linear layer in tiles: everything is added to the sums while they are still in registers."""

from __future__ import annotations

from typing import NamedTuple

from refvt.array import Array
from refvt.backends.jit.arrays import copy, scale_rows
from refvt.backends.jit.layouts import contiguous
from refvt.backends.jit.matmul import linear_tiles, weight_gradients


class LinearCache(NamedTuple):
    """What the backward of the linear layer reads."""

    x: Array  # [tokens, E]
    weight: Array  # [D, E]
    gain: Array | None  # [tokens]
    has_residual: bool


def linear_forward(
    x: Array,
    weight: Array,
    bias: Array,
    residual: Array | None = None,
    gain: Array | None = None,
    keep: bool = True,
) -> tuple[Array, LinearCache | None]:
    """The linear layer with its residual addition: y = residual + gain · (x Wᵀ + b).

    x [n, E], weight [D, E], bias [D], residual [n, D], gain [n] → y [n, D].
    """
    x = contiguous(x)
    # passes 1–3
    y = linear_tiles(x, weight, bias, residual, gain)  # [tokens, D]
    return y, LinearCache(x, weight, gain, residual is not None) if keep else None


def linear_backward(dy: Array, cache: LinearCache) -> tuple[Array, Array, Array, Array | None]:
    """Returns dx, dweight, dbias, dresidual (None if there was no residual)."""
    x, weight, gain, has_residual = cache
    dy = contiguous(dy)
    # 3. the skip connection passes the gradient on unchanged
    dresidual = copy(dy) if has_residual else None
    # 2. the DropPath scale
    dproduct = dy
    if gain is not None:
        dproduct = scale_rows(dy, gain)
    # 1. the multiply
    dx = linear_tiles(dproduct, weight.T)
    dweight, dbias = weight_gradients(dproduct, x)
    return dx, dweight, dbias, dresidual
