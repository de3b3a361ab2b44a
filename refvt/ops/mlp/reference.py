"""GELU and the MLP in NumPy. The maths is in ``__init__.py``."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.special import erfc

from refvt.array import Array


def _normal_cdf(x: Array) -> Array:
    """Φ(x) = ½ erfc(−x/√2), which keeps its relative accuracy far left of zero."""
    return np.asarray(0.5 * erfc(x * -math.sqrt(0.5)))


class GeluCache(NamedTuple):
    """What the backward of GELU reads."""

    x: Array  # any shape


def gelu_forward(x: Array, keep: bool = True) -> tuple[Array, GeluCache | None]:
    """GELU, y = x · Φ(x), element by element; x of any shape. Source: Hendrycks, Gimpel 2016."""
    # 1. the activation
    return x * _normal_cdf(x), GeluCache(x) if keep else None


def gelu_backward(dy: Array, cache: GeluCache) -> Array:
    """Returns dx = dy · (Φ(x) + x · φ(x))."""
    (x,) = cache
    # 1. the activation; φ underflows to 0 far from zero, as it should
    density = np.exp(-0.5 * np.square(x)) * (1 / math.sqrt(2 * math.pi))
    return dy * (_normal_cdf(x) + x * density)


class MlpCache(NamedTuple):
    """What the backward of the MLP reads."""

    x: Array  # [tokens, D]
    fc1_weight: Array  # [F, D]
    fc2_weight: Array  # [D, F]
    pre_activation: Array  # fc1's output, before GELU [tokens, F]
    hidden: Array  # after GELU [tokens, F]
    gain: Array | None  # [tokens]
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
    """The MLP with its residual addition: y = residual + gain · (gelu(x W₁ᵀ + b₁) W₂ᵀ + b₂).

    x [n, D], fc1_weight [F, D], fc1_bias [F], fc2_weight [D, F], fc2_bias [D], residual [n, D], gain [n] → y [n, D].
    """
    # 1. fc1
    pre_activation = x @ fc1_weight.T + fc1_bias  # [tokens, F]
    # 2. activate
    hidden, _ = gelu_forward(pre_activation, keep=False)  # [tokens, F]
    # 3. fc2
    y = hidden @ fc2_weight.T + fc2_bias  # [tokens, D]
    # 4. the DropPath scale and the skip connection
    if gain is not None:
        y *= gain[:, None]
    if residual is not None:
        y += residual
    if not keep:
        return y, None
    return y, MlpCache(x, fc1_weight, fc2_weight, pre_activation, hidden, gain, residual is not None)


def mlp_backward(dy: Array, cache: MlpCache) -> tuple[Array, Array, Array, Array, Array, Array | None]:
    """Returns dx, dfc1_weight, dfc1_bias, dfc2_weight, dfc2_bias, dresidual (None if there was no residual)."""
    x, fc1_weight, fc2_weight, pre_activation, hidden, gain, has_residual = cache
    # 4. the skip connection and the DropPath scale
    dresidual = dy.copy() if has_residual else None
    dproduct = dy if gain is None else dy * gain[:, None]  # [tokens, D]
    # 3. fc2
    dfc2_weight = dproduct.T @ hidden
    dfc2_bias = dproduct.sum(axis=0)
    dhidden = dproduct @ fc2_weight  # [tokens, F]
    # 2. activate
    dpre_activation = gelu_backward(dhidden, GeluCache(pre_activation))  # [tokens, F]
    # 1. fc1
    dx, dfc1_weight, dfc1_bias = dpre_activation @ fc1_weight, dpre_activation.T @ x, dpre_activation.sum(axis=0)
    return dx, dfc1_weight, dfc1_bias, dfc2_weight, dfc2_bias, dresidual
