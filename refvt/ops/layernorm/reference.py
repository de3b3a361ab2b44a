"""LayerNorm in NumPy. The maths is in ``__init__.py``."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refvt.array import Array
from refvt.ops.layernorm import EPS


class LayerNormCache(NamedTuple):
    """What the backward of LayerNorm reads."""

    normed: Array  # x̂ [tokens, D]
    inverse_std: Array  # s [tokens, 1]
    weight: Array  # [D]


def layernorm_forward(x: Array, weight: Array, bias: Array, keep: bool = True) -> tuple[Array, LayerNormCache | None]:
    """LayerNorm: y = (x − mean) / √(variance + 1e-6) · weight + bias, over the last axis.

    x [n, D], weight [D], bias [D] → y [n, D]. Source: Ba, Kiros, Hinton 2016.
    """
    # 1. centre
    centred = x - x.mean(axis=-1, keepdims=True)  # [tokens, D]
    # 2. scale to unit variance
    inverse_std = 1 / np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + EPS)  # [tokens, 1]
    normed = centred * inverse_std  # [tokens, D]
    # 3. weight and bias
    y = normed * weight + bias
    return y, LayerNormCache(normed, inverse_std, weight) if keep else None


def layernorm_backward(dy: Array, cache: LayerNormCache) -> tuple[Array, Array, Array]:
    """Returns dx, dweight, dbias."""
    normed, inverse_std, weight = cache
    # 3. weight and bias
    dweight = (dy * normed).sum(axis=0)
    dbias = dy.sum(axis=0)
    dnormed = dy * weight  # [tokens, D]
    # passes 2–1: what would only move the mean or the variance does not pass
    dnorm_mean = dnormed.mean(axis=-1, keepdims=True)  # [tokens, 1]
    dnorm_norm_mean = (dnormed * normed).mean(axis=-1, keepdims=True)  # [tokens, 1]
    dx = inverse_std * (dnormed - dnorm_mean - normed * dnorm_norm_mean)
    return dx, dweight, dbias
