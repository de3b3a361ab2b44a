"""GELU and the MLP in NumPy. The maths is on the room's first page."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.special import erfc

from refvt.array import Array


def _normal_cdf(x: Array) -> Array:
    return np.asarray(0.5 * erfc(x * -math.sqrt(0.5)))


class GeluCache(NamedTuple):
    x: Array


def gelu_forward(x: Array, keep: bool = True) -> tuple[Array, GeluCache | None]:
    """y = x · Φ(x), element by element; any shape."""
    # 1. the activation
    return x * _normal_cdf(x), GeluCache(x) if keep else None


def gelu_backward(dy: Array, cache: GeluCache) -> Array:
    """Returns dx = dy · (Φ(x) + x · φ(x))."""
    (x,) = cache
    # 1. the activation; φ underflows to 0 far from zero, as it should
    density = np.exp(-0.5 * np.square(x)) * (1 / math.sqrt(2 * math.pi))
    return dy * (_normal_cdf(x) + x * density)


class MlpCache(NamedTuple):
    x: Array
    fc1_weight: Array
    fc2_weight: Array
    before: Array  # fc1's output, before GELU [tokens, F]
    hidden: Array  # after GELU [tokens, F]
    gain: Array | None
    has_residual: bool


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
    # 1. widen
    before = x @ fc1_weight.T + fc1_bias  # [tokens, F]
    # 2. activate
    hidden, _ = gelu_forward(before, keep=False)  # [tokens, F]
    # 3. narrow
    y = hidden @ fc2_weight.T + fc2_bias  # [tokens, D]
    # 4. DropPath's gain and the skip connection
    if gain is not None:
        y *= gain[:, None]
    if residual is not None:
        y += residual
    if not keep:
        return y, None
    return y, MlpCache(x, fc1_weight, fc2_weight, before, hidden, gain, residual is not None)


def mlp_backward(dy: Array, cache: MlpCache) -> tuple[Array, Array, Array, Array, Array, Array | None]:
    """Returns dx, dfc1_weight, dfc1_bias, dfc2_weight, dfc2_bias, dresidual (None if there was no residual)."""
    x, fc1_weight, fc2_weight, before, hidden, gain, has_residual = cache
    # 4. skip connection and gain
    dresidual = dy.copy() if has_residual else None
    dproduct = dy if gain is None else dy * gain[:, None]  # [tokens, D]
    # 3. narrow
    dfc2_weight = dproduct.T @ hidden
    dfc2_bias = dproduct.sum(axis=0)
    dhidden = dproduct @ fc2_weight  # [tokens, F]
    # 2. activate
    dbefore = gelu_backward(dhidden, GeluCache(before))  # [tokens, F]
    # 1. widen
    return dbefore @ fc1_weight, dbefore.T @ x, dbefore.sum(axis=0), dfc2_weight, dfc2_bias, dresidual
