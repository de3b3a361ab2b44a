"""The linear layer in tiles: multiply, and finish while the sums are still in registers."""

from __future__ import annotations

from typing import NamedTuple

from refvt.array import Array
from refvt.backends.jit.arrays import copied, scaled
from refvt.backends.jit.matmul import affine, weight_gradients


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
    # passes 1–3
    y = affine(x, weight, bias, residual, gain)  # [tokens, D]
    return y, LinearCache(x, weight, gain, residual is not None) if keep else None


def linear_backward(dy: Array, cache: LinearCache) -> tuple[Array, Array, Array, Array | None]:
    """Returns dx, dweight, dbias, dresidual (None if there was no residual)."""
    x, weight, gain, has_residual = cache
    # 3. the skip connection hands the gradient on as it is
    dresidual = copied(dy) if has_residual else None
    # 2. the gain
    dproduct = dy
    if gain is not None:
        dproduct = scaled(dy, gain)
    # 1. the multiply
    dx = affine(dproduct, weight.T)
    dweight, dbias = weight_gradients(dproduct, x)
    return dx, dweight, dbias, dresidual
