"""Segmented attention in tiles: one head, some query rows, all keys of their segment at a time.

No N×N array exists for all heads at once: a thread holds one tile of logits and uses it again for the next. Short
segments (a patch's path through time) are taken several at a time.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from refvt.backends.blas import gemm
from refvt.backends.jit import exp, exp_within, kernel
from refvt.backends.pool import num_threads
from refvt.backends.team import run, take
from refvt.ops import Array

ROWS = 400  # query rows of a tile, at most: BLAS wants many, the cache few
FEW = 24  # tiles per thread beyond which several are taken at a time
LONG = 32  # keys from which looking for the largest logit costs more than bounding it
SMALL = 40.0  # e^±40, and a sum of thousands of them, are far from the limits of float32


class AttentionCache(NamedTuple):
    q: Array
    k: Array
    v: Array
    query_offsets: Array
    key_offsets: Array
    num_heads: int
    key_bias: Array | None
    y: Array


@kernel
def _largest_norm(rows: Array) -> Any:
    """The largest length of a row."""
    largest = rows.dtype.type(0)
    for i in range(rows.shape[0]):
        square = rows.dtype.type(0)
        for j in range(rows.shape[1]):
            square += rows[i, j] * rows[i, j]
        largest = max(largest, square)
    return np.sqrt(largest)


@kernel
def _softmax(logits: Array, scale: Any, bias: Array | None, small: bool, total: Array) -> None:
    """Each row of ``logits`` ← e^(scale · logits + bias − max), its sum in ``total``.

    ``small``: no logit can be beyond ±40, so nothing overflows or vanishes without the maximum: it is left out.
    """
    n, m = logits.shape
    for i in range(n):
        row = logits[i]
        summed = logits.dtype.type(0)
        if small:
            for j in range(m):
                logit = row[j] * scale
                if bias is not None:
                    logit += bias[j]
                weight = exp_within(logit)
                row[j] = weight
                summed += weight
        else:
            # 1. logits
            highest = logits.dtype.type(-np.inf)
            for j in range(m):
                logit = row[j] * scale
                if bias is not None:
                    logit += bias[j]
                row[j] = logit
                highest = logit if logit > highest else highest
            if highest == -np.inf:  # no key at all
                highest = logits.dtype.type(0)
            # 2. softmax
            for j in range(m):
                weight = exp(row[j] - highest)
                row[j] = weight
                summed += weight
        total[i] = summed


@kernel
def _divide(rows: Array, total: Array) -> None:
    """Each row by its sum; a row of no weight at all stays zero."""
    for i in range(rows.shape[0]):
        inverse = rows.dtype.type(0)
        if total[i] > 0:
            inverse = rows.dtype.type(1) / total[i]
        for j in range(rows.shape[1]):
            rows[i, j] *= inverse


@kernel
def _weights(q: Array, k: Array, scale: Any, bias: Array | None, raised: Any, weights: Array, total: Array) -> None:
    """One head of one tile: e^(logits − max), not yet divided by their sums; no bias is larger than ``raised``."""
    # 1. logits
    gemm(q, k.T, weights, 0)
    # passes 1–2
    small = len(k) >= LONG and scale * _largest_norm(q) * _largest_norm(k) + raised < SMALL
    _softmax(weights, scale, bias, small, total)


@kernel
def _edges(parts: Array, part: int) -> tuple[int, int, int, int]:
    return parts[part, 0], parts[part, 1], parts[part, 2], parts[part, 3]


@kernel
def _attend(
    share: Any,
    space: Array,
    q: Array,
    k: Array,
    v: Array,
    parts: Array,
    group: int,
    num_heads: int,
    scale: Any,
    key_bias: Array | None,
    raised: Any,
    y: Array,
) -> None:
    d = q.shape[1] // num_heads
    i = take(share)
    while i >= 0:
        for job in range(i * group, min((i + 1) * group, len(parts) * num_heads)):
            top, bottom, first, last = _edges(parts, job // num_heads)
            left, right = job % num_heads * d, (job % num_heads + 1) * d
            n, m = bottom - top, last - first
            weights, total = space[: n * m].reshape(n, m), space[n * m : n * m + n]
            bias = None if key_bias is None else key_bias[first:last]
            # passes 1–2
            _weights(q[top:bottom, left:right], k[first:last, left:right], scale, bias, raised, weights, total)
            # 3. the weighted mean of the values; the division waits until the row is short
            gemm(weights, v[first:last, left:right], y[top:bottom, left:right], 0)
            _divide(y[top:bottom, left:right], total)
        i = take(share)


def _parts(query_offsets: Array, key_offsets: Array) -> tuple[Array, Array]:
    """The tiles of at most ROWS query rows, and where those of each segment that asks start and end among them.

    parts [parts, 4] int64: query rows from, to, key rows from, to; starts [asking segments + 1] int64.
    """
    lengths = np.diff(query_offsets)
    pieces = -(-lengths // ROWS)  # of each segment, 0 for one that asks nothing
    segment = np.repeat(np.arange(len(lengths)), pieces)
    nth = np.arange(len(segment)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    start, length, count = query_offsets[:-1][segment], lengths[segment], pieces[segment]
    top, bottom = start + length * nth // count, start + length * (nth + 1) // count
    parts = np.stack([top, bottom, key_offsets[:-1][segment], key_offsets[1:][segment]], axis=1)
    return parts.astype(np.int64), np.concatenate([[0], np.cumsum(pieces[pieces > 0])]).astype(np.int64)


def _raised(key_bias: Array | None, dtype: Any) -> Any:
    """The largest size of a key bias, infinite if there is a −∞."""
    return dtype.type(0 if key_bias is None else np.abs(key_bias).max(initial=0))


def _largest(parts: Array, copies: int, beside: int) -> int:
    """Room for the logits of the largest tile, so many times, and beside each row for so many numbers."""
    return int(np.max((parts[:, 1] - parts[:, 0]) * (copies * (parts[:, 3] - parts[:, 2]) + beside), initial=1))


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
    """y = softmax(q kᵀ/√d + key_bias) v inside each segment.

    q [n, D], k and v [m, D] (may be strided views of one qkv), query_offsets and key_offsets [segments+1] int64,
    key_bias [m] → y [n, D]. Source: Vaswani et al. 2017.
    """
    scale = q.dtype.type(1 / math.sqrt(q.shape[1] // num_heads))
    y = np.empty(q.shape, q.dtype)  # [tokens, D]
    parts, _ = _parts(query_offsets, key_offsets)
    jobs = len(parts) * num_heads
    group = max(1, -(-jobs // (FEW * num_threads())))
    # passes 1–3
    work = (q, k, v, parts, group, num_heads, scale, key_bias, _raised(key_bias, q.dtype), y)
    run(_attend, -(-jobs // group), *work, space=(_largest(parts, 1, 1), q.dtype))
    return y, AttentionCache(q, k, v, query_offsets, key_offsets, num_heads, key_bias, y) if keep else None


@kernel
def _share_out(dy: Array, y: Array, total: Array, shared: Array, mean: Array) -> None:
    """shared ← dy / total, so that the weights need no division; mean ← Σ_keys w · dw = y · dy, row by row."""
    for i in range(dy.shape[0]):
        inverse, product = dy.dtype.type(0), dy.dtype.type(0)
        if total[i] > 0:
            inverse = dy.dtype.type(1) / total[i]
        for j in range(dy.shape[1]):
            shared[i, j] = inverse * dy[i, j]
            product += y[i, j] * shared[i, j]
        mean[i] = product


@kernel
def _softmax_backward(weights: Array, dweights: Array, mean: Array, scale: Any) -> None:
    """dweights ← scale · weights · (dweights − mean), row by row."""
    for i in range(weights.shape[0]):
        row, drow, average = weights[i], dweights[i], mean[i]
        for j in range(len(row)):
            drow[j] = scale * row[j] * (drow[j] - average)


@kernel
def _attend_backward(
    share: Any,
    space: Array,
    dy: Array,
    y: Array,
    q: Array,
    k: Array,
    v: Array,
    parts: Array,
    starts: Array,
    group: int,
    num_heads: int,
    scale: Any,
    key_bias: Array | None,
    raised: Any,
    dq: Array,
    dk: Array,
    dv: Array,
) -> None:
    """A job is one head of a segment: its tiles one after the other, for all of them add to its keys and values."""
    d = q.shape[1] // num_heads
    segments = len(starts) - 1
    i = take(share)
    while i >= 0:
        for job in range(i * group, min((i + 1) * group, segments * num_heads)):
            left, right = job % num_heads * d, (job % num_heads + 1) * d
            for part in range(starts[job // num_heads], starts[job // num_heads + 1]):
                top, bottom, first, last = _edges(parts, part)
                more = 0.0 if part == starts[job // num_heads] else 1.0
                n, m = bottom - top, last - first
                weights, dweights = space[: n * m].reshape(n, m), space[n * m : 2 * n * m].reshape(n, m)
                rest = space[2 * n * m : 2 * n * m + n * (d + 2)]
                total, mean, shared = rest[:n], rest[n : 2 * n], rest[2 * n :].reshape(n, d)
                bias = None if key_bias is None else key_bias[first:last]
                q_part, k_part, v_part = q[top:bottom, left:right], k[first:last, left:right], v[first:last, left:right]
                # passes 1–2, once more
                _weights(q_part, k_part, scale, bias, raised, weights, total)
                _share_out(dy[top:bottom, left:right], y[top:bottom, left:right], total, shared, mean)
                # 3. the weighted mean
                gemm(weights.T, shared, dv[first:last, left:right], more)
                gemm(shared, v_part.T, dweights, 0)
                # 2. softmax: only differences from the mean gradient pass
                _softmax_backward(weights, dweights, mean, scale)
                # 1. logits
                gemm(dweights, k_part, dq[top:bottom, left:right], 0)
                gemm(dweights.T, q_part, dk[first:last, left:right], more)
        i = take(share)


def attention_backward(dy: Array, cache: AttentionCache) -> tuple[Array, Array, Array]:
    """Returns dq, dk, dv. The weights are formed again: storing A·n·m of them costs more than it saves."""
    q, k, v, query_offsets, key_offsets, num_heads, key_bias, y = cache
    D, dtype = q.shape[1], q.dtype
    scale = dtype.type(1 / math.sqrt(D // num_heads))
    parts, starts = _parts(query_offsets, key_offsets)
    everyone_asks = len(starts) == len(query_offsets)
    make = np.empty if everyone_asks else np.zeros  # keys nobody asks get no gradient
    if len(q) == len(k):  # side by side, as the gradient of one qkv
        together = make((len(q), 3 * D), dtype)
        dq, dk, dv = (together[:, i * D : (i + 1) * D] for i in range(3))
    else:
        dq, together = np.empty(q.shape, dtype), make((len(k), 2 * D), dtype)
        dk, dv = together[:, :D], together[:, D:]
    jobs = (len(starts) - 1) * num_heads
    group = max(1, -(-jobs // (FEW * num_threads())))
    work = (dy, y, q, k, v, parts, starts, group, num_heads, scale, key_bias, _raised(key_bias, dtype))
    run(_attend_backward, -(-jobs // group), *work, dq, dk, dv, space=(_largest(parts, 2, D // num_heads + 2), dtype))
    return dq, dk, dv
