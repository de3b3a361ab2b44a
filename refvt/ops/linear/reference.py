"""The linear layer in NumPy. The maths is in ``__init__.py``."""

from __future__ import annotations

from typing import NamedTuple

from refvt.array import Array


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
    # 1. multiply, add the bias
    y = x @ weight.T  # [tokens, D]
    y += bias
    # 2. the DropPath scale, one number per row
    if gain is not None:
        y *= gain[:, None]
    # 3. the skip connection
    if residual is not None:
        y += residual
    return y, LinearCache(x, weight, gain, residual is not None) if keep else None


def linear_backward(dy: Array, cache: LinearCache) -> tuple[Array, Array, Array, Array | None]:
    """Returns dx, dweight, dbias, dresidual (None if there was no residual)."""
    x, weight, gain, has_residual = cache
    # 3. the skip connection passes the gradient on unchanged
    dresidual = dy.copy() if has_residual else None
    # 2. the DropPath scale
    dproduct = dy if gain is None else dy * gain[:, None]  # [tokens, D]
    # 1. the multiply
    return dproduct @ weight, dproduct.T @ x, dproduct.sum(axis=0), dresidual
