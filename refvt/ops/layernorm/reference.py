"""LayerNorm in NumPy. The maths is on the room's first page."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refvt.array import Array

EPS = 1e-6


class LayerNormCache(NamedTuple):
    normed: Array  # x̂ [tokens, D]
    inverse_std: Array  # s [tokens, 1]
    weight: Array


def layernorm_forward(x: Array, weight: Array, bias: Array, keep: bool = True) -> tuple[Array, LayerNormCache | None]:
    """y = (x − mean) / √(variance + 1e-6) · weight + bias, over the last axis. x [n, D] → y [n, D]."""
    # 1. centre
    centred = x - x.mean(axis=-1, keepdims=True)  # [tokens, D]
    # 2. scale to unit variance
    inverse_std = 1 / np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + EPS)  # [tokens, 1]
    normed = centred * inverse_std  # [tokens, D]
    # 3. gain and shift
    y = normed * weight + bias
    return y, LayerNormCache(normed, inverse_std, weight) if keep else None


def layernorm_backward(dy: Array, cache: LayerNormCache) -> tuple[Array, Array, Array]:
    """Returns dx, dweight, dbias."""
    normed, inverse_std, weight = cache
    # 3. gain and shift
    dweight = (dy * normed).sum(axis=0)
    dbias = dy.sum(axis=0)
    dnormed = dy * weight  # [tokens, D]
    # 2, 1. what would only move the mean or the variance does not pass
    dx = dnormed - dnormed.mean(axis=-1, keepdims=True)
    dx -= normed * (dnormed * normed).mean(axis=-1, keepdims=True)
    dx *= inverse_std
    return dx, dweight, dbias
