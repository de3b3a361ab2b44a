"""Segmented multi-head attention in NumPy. The maths is in ``__init__.py``."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from refvt.array import Array


class AttentionCache(NamedTuple):
    """What the backward of attention reads: the arguments. The weights are formed again."""

    q: Array  # [n, D]
    k: Array  # [m, D]
    v: Array  # [m, D]
    query_offsets: Array  # [segments+1]
    key_offsets: Array  # [segments+1]
    num_heads: int
    key_bias: Array | None  # [m]


def _heads(rows: Array, num_heads: int) -> Array:
    """[tokens, A·d] → [A, tokens, d], as a view."""
    return rows.reshape(len(rows), num_heads, rows.shape[1] // num_heads).transpose(1, 0, 2)


def _softmax_weights(q: Array, k: Array, bias: Array | None) -> Array:
    """Passes 1–2 for one segment: q [A, n, d], k [A, m, d], bias [m] → weights [A, n, m]; zero if every bias is −∞."""
    # 1. logits
    logits = q @ k.transpose(0, 2, 1)  # [A, n, m]
    logits *= 1 / math.sqrt(q.shape[-1])
    if bias is not None:
        logits += bias
    # 2. softmax, shifted by the maximum so that no exponential overflows
    highest = logits.max(axis=-1, keepdims=True, initial=-np.inf)  # [A, n, 1]
    weights = np.exp(logits - np.where(np.isfinite(highest), highest, 0))
    total = weights.sum(axis=-1, keepdims=True)
    return np.asarray(weights / np.where(total > 0, total, 1))


def attention_forward(
    q: Array,
    k: Array,
    v: Array,
    query_offsets: Array,
    key_offsets: Array,
    num_heads: int,
    key_bias: Array | None = None,
    keep: bool = True,
) -> tuple[Array, AttentionCache | None]:
    """Multi-head attention: y = softmax(q kᵀ/√d + key_bias) v inside each segment.

    q [n, D], k and v [m, D] (may be strided views of one qkv), query_offsets and key_offsets [segments+1] int64,
    key_bias [m] → y [n, D]. Source: Vaswani et al. 2017.
    """
    y = np.zeros(q.shape, dtype=q.dtype)  # [tokens, D]
    for i in range(len(query_offsets) - 1):
        queries = slice(query_offsets[i], query_offsets[i + 1])
        keys = slice(key_offsets[i], key_offsets[i + 1])
        # passes 1–2: logits and softmax
        bias = None if key_bias is None else key_bias[keys]
        weights = _softmax_weights(_heads(q[queries], num_heads), _heads(k[keys], num_heads), bias)
        # 3. the weighted mean of the values
        mixed = weights @ _heads(v[keys], num_heads)  # [A, n, d]
        y[queries] = mixed.transpose(1, 0, 2).reshape(-1, q.shape[1])
    return y, AttentionCache(q, k, v, query_offsets, key_offsets, num_heads, key_bias) if keep else None


def attention_backward(dy: Array, cache: AttentionCache) -> tuple[Array, Array, Array]:
    """Returns dq, dk, dv. The weights are formed again: storing A·n·m of them would cost more than it saves."""
    q, k, v, query_offsets, key_offsets, num_heads, key_bias = cache
    D = q.shape[1]
    scale = 1 / math.sqrt(D // num_heads)
    dq, dk, dv = (np.zeros(a.shape, dtype=a.dtype) for a in (q, k, v))
    for i in range(len(query_offsets) - 1):
        queries = slice(query_offsets[i], query_offsets[i + 1])
        keys = slice(key_offsets[i], key_offsets[i + 1])
        q_i, k_i, v_i = _heads(q[queries], num_heads), _heads(k[keys], num_heads), _heads(v[keys], num_heads)
        bias = None if key_bias is None else key_bias[keys]
        # passes 1–2, again
        weights = _softmax_weights(q_i, k_i, bias)  # [A, n, m]
        dmixed = _heads(dy[queries], num_heads)  # [A, n, d]
        # 3. the weighted mean
        dv[keys] = (weights.transpose(0, 2, 1) @ dmixed).transpose(1, 0, 2).reshape(-1, D)
        dweights = dmixed @ v_i.transpose(0, 2, 1)  # [A, n, m]
        # 2. softmax: only differences from the mean gradient pass
        dlogits = weights * (dweights - (weights * dweights).sum(axis=-1, keepdims=True))
        # 1. logits
        dlogits *= scale
        dq[queries] = (dlogits @ k_i).transpose(1, 0, 2).reshape(-1, D)
        dk[keys] = (dlogits.transpose(0, 2, 1) @ q_i).transpose(1, 0, 2).reshape(-1, D)
    return dq, dk, dv
