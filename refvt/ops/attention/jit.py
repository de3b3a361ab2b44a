"""Segmented attention in tiles: one head, some query rows, all keys of their segment at a time.

No N×N array exists for all heads at once: a thread holds one tile of logits and uses it again for the next. Many short
segments of one length (a patch's path through time) are taken together, as one batch of small products.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from refvt.backends.jit import exp, kernel
from refvt.backends.pool import run, tiles, workspace
from refvt.ops import Array

TILE_LOGITS = 350_000  # logits of a tile: they stay near the core, and the products are large enough
SHORT = 256  # segments up to this length are taken in batches, all heads in one product
BATCH = 512  # rows of such a batch
SMALL = 40.0  # e^±40, and a sum of thousands of them, are far from the limits of float32


class AttentionCache(NamedTuple):
    q: Array
    k: Array
    v: Array
    query_offsets: Array
    key_offsets: Array
    num_heads: int
    key_bias: Array | None


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
def _lay_out(k: Array, v: Array, across: Array, values: Array) -> Any:
    """across ← kᵀ, values ← v, 16 rows at a time; returns the largest length of a key."""
    n, d = k.shape
    largest = k.dtype.type(0)
    for start in range(0, n, 16):
        stop = min(start + 16, n)
        for j in range(d):
            for i in range(start, stop):
                across[j, i] = k[i, j]
        for i in range(start, stop):
            square = k.dtype.type(0)
            for j in range(d):
                values[i, j] = v[i, j]
                square += k[i, j] * k[i, j]
            largest = max(largest, square)
    return np.sqrt(largest)


@kernel
def _softmax(logits: Array, scale: Any, bias: Array | None, small: bool, normalise: bool, total: Array) -> None:
    """Each row of ``logits`` ← e^(scale · logits + bias − max), its sum in ``total``; divided by it if asked.

    ``small``: no logit can be beyond ±40, so nothing overflows or vanishes without the maximum: it is left out.
    """
    n, m = logits.shape
    zero = logits.dtype.type(0)
    for i in range(n):
        row = logits[i]
        # 1. logits
        factor = scale
        if bias is not None:
            for j in range(m):
                row[j] = row[j] * scale + bias[j]
            factor = logits.dtype.type(1)
        highest = zero
        if not small:
            highest = logits.dtype.type(-np.inf)
            for j in range(m):
                highest = row[j] if row[j] > highest else highest
            if highest == -np.inf:  # no key at all
                highest = zero
        # 2. softmax
        summed = zero
        for j in range(m):
            weight = exp((row[j] - highest) * factor)
            row[j] = weight
            summed += weight
        total[i] = summed
        if normalise and summed > zero:
            inverse = logits.dtype.type(1) / summed
            for j in range(m):
                row[j] *= inverse


@kernel
def _divide(mixed: Array, total: Array, y: Array) -> None:
    for i in range(mixed.shape[0]):
        inverse = mixed.dtype.type(0)
        if total[i] > 0:
            inverse = mixed.dtype.type(1) / total[i]
        for j in range(mixed.shape[1]):
            y[i, j] = mixed[i, j] * inverse


@kernel
def _softmax_backward(weights: Array, dweights: Array, scale: Any) -> None:
    """dweights ← scale · weights · (dweights − Σ_keys weights · dweights), row by row."""
    n, m = weights.shape
    for i in range(n):
        mean = weights.dtype.type(0)
        for j in range(m):
            mean += weights[i, j] * dweights[i, j]
        for j in range(m):
            dweights[i, j] = scale * weights[i, j] * (dweights[i, j] - mean)


class _Plan(NamedTuple):
    """How the segments are cut into work."""

    short: list[slice]  # ranges of short segments of one length, taken together; empty if the segments are long
    length: tuple[int, int]  # rows of queries and of keys of a short segment
    long: list[tuple[slice, slice]]  # the rows of queries and of keys of each other segment


def _plan(query_offsets: Array, key_offsets: Array, key_bias: Array | None) -> _Plan:
    queries, keys = np.diff(query_offsets), np.diff(key_offsets)
    n, m = (int(queries[0]), int(keys[0])) if len(queries) else (0, 0)
    alike = bool((queries == n).all() and (keys == m).all())
    if alike and 0 < n <= SHORT and 0 < m <= SHORT and key_bias is None and len(queries) > 1:
        return _Plan(tiles(len(queries), max(1, BATCH // n)), (n, m), [])
    pairs = zip(query_offsets[:-1], query_offsets[1:], key_offsets[:-1], key_offsets[1:], strict=True)
    return _Plan([], (0, 0), [(slice(a, b), slice(c, d)) for a, b, c, d in pairs])


def _raised(key_bias: Array | None) -> float:
    """The largest size of a finite key bias."""
    if key_bias is None:
        return 0.0
    return float(np.abs(key_bias, out=np.zeros_like(key_bias), where=np.isfinite(key_bias)).max(initial=0))


def _batch(rows: Array, segments: slice, length: int, num_heads: int) -> Array:
    """The rows of short segments as [segments, A, length, d], a view."""
    part = rows[segments.start * length : segments.stop * length]
    return part.reshape(-1, length, num_heads, rows.shape[1] // num_heads).transpose(0, 2, 1, 3)


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
    D, dtype = q.shape[1], q.dtype
    d = D // num_heads
    scale = dtype.type(1 / math.sqrt(d))
    y = np.empty(q.shape, dtype)  # [tokens, D]
    plan = _plan(query_offsets, key_offsets, key_bias)
    n, m = plan.length

    def short(i: int) -> None:
        segments = plan.short[i]
        count = segments.stop - segments.start
        weights = workspace("attention.weights", (count, num_heads, n, m), dtype)
        total = workspace("attention.total", (count * num_heads * n,), dtype)
        # 1, 2. logits and softmax
        keys = _batch(k, segments, m, num_heads).transpose(0, 1, 3, 2)
        np.matmul(_batch(q, segments, n, num_heads), keys, out=weights)
        _softmax(weights.reshape(-1, m), scale, None, False, True, total)
        # 3. the weighted mean of the values
        _batch(y, segments, n, num_heads)[...] = weights @ _batch(v, segments, m, num_heads)

    run(short, len(plan.short))
    if not plan.long:
        return y, AttentionCache(q, k, v, query_offsets, key_offsets, num_heads, key_bias) if keep else None

    # keys transposed and values gathered once per head: products with them run faster
    across, values = np.empty((D, len(k)), dtype), np.empty((num_heads, len(v), d), dtype)
    longest = np.zeros(num_heads)  # key of each head
    raised = _raised(key_bias)

    def lay_out(h: int) -> None:
        head = slice(h * d, (h + 1) * d)
        longest[h] = _lay_out(k[:, head], v[:, head], across[head], values[h])

    run(lay_out, num_heads)
    work = []
    for rows, keys in plan.long:
        for part in tiles(rows.stop - rows.start, max(64, TILE_LOGITS // max(keys.stop - keys.start, 1))):
            here = slice(rows.start + part.start, rows.start + part.stop)
            work += [(here, keys, h) for h in range(num_heads)]

    def tile(i: int) -> None:
        rows, keys, h = work[i]
        head = slice(h * d, (h + 1) * d)
        size = rows.stop - rows.start
        weights = workspace("attention.weights", (size, keys.stop - keys.start), dtype)
        total = workspace("attention.total", (size,), dtype)
        # 1, 2. logits and softmax; the division by the sum waits until the row is short
        np.matmul(q[rows, head], across[head, keys], out=weights)
        small = scale * _largest_norm(q[rows, head]) * longest[h] + raised < SMALL
        _softmax(weights, scale, None if key_bias is None else key_bias[keys], small, False, total)
        # 3. the weighted mean of the values
        mixed = workspace("attention.mixed", (size, d), dtype)
        np.matmul(weights, values[h, keys], out=mixed)
        _divide(mixed, total, y[rows, head])

    run(tile, len(work))
    return y, AttentionCache(q, k, v, query_offsets, key_offsets, num_heads, key_bias) if keep else None


def attention_backward(dy: Array, cache: AttentionCache) -> tuple[Array, Array, Array]:
    """Returns dq, dk, dv. The weights are formed again: storing A·n·m of them costs more than it saves."""
    q, k, v, query_offsets, key_offsets, num_heads, key_bias = cache
    D, dtype = q.shape[1], q.dtype
    d = D // num_heads
    scale = dtype.type(1 / math.sqrt(d))
    if len(q) == len(k):  # side by side, as the gradient of one qkv
        together = np.empty((len(q), 3 * D), dtype)
        dq, dk, dv = (together[:, i * D : (i + 1) * D] for i in range(3))
    else:
        dq, together = np.empty(q.shape, dtype), np.empty((len(k), 2 * D), dtype)
        dk, dv = together[:, :D], together[:, D:]
    plan = _plan(query_offsets, key_offsets, key_bias)
    n, m = plan.length

    def short(i: int) -> None:
        segments = plan.short[i]
        count = segments.stop - segments.start
        q_i, dmixed = (_batch(a, segments, n, num_heads) for a in (q, dy))
        k_i, v_i = (_batch(a, segments, m, num_heads) for a in (k, v))
        weights = workspace("attention.weights", (count, num_heads, n, m), dtype)
        dweights = workspace("attention.dweights", (count, num_heads, n, m), dtype)
        total = workspace("attention.total", (count * num_heads * n,), dtype)
        np.matmul(q_i, k_i.transpose(0, 1, 3, 2), out=weights)
        _softmax(weights.reshape(-1, m), scale, None, False, True, total)
        # 3. the weighted mean
        _batch(dv, segments, m, num_heads)[...] = weights.transpose(0, 1, 3, 2) @ dmixed
        np.matmul(dmixed, v_i.transpose(0, 1, 3, 2), out=dweights)
        # 2. softmax
        _softmax_backward(weights.reshape(-1, m), dweights.reshape(-1, m), scale)
        # 1. logits
        _batch(dq, segments, n, num_heads)[...] = dweights @ k_i
        _batch(dk, segments, m, num_heads)[...] = dweights.transpose(0, 1, 3, 2) @ q_i

    run(short, len(plan.short))
    work = [(rows, keys, slice(h * d, (h + 1) * d)) for rows, keys in plan.long for h in range(num_heads)]
    raised = _raised(key_bias)

    def head_of_segment(i: int) -> None:
        rows, keys, head = work[i]
        m = keys.stop - keys.start
        dk[keys, head] = dv[keys, head] = 0
        bias = None if key_bias is None else key_bias[keys]
        across, v_across = (workspace(f"attention.{name}", (d, m), dtype) for name in ("across", "v across"))
        across[...], v_across[...] = k[keys, head].T, v[keys, head].T
        k_here = np.ascontiguousarray(k[keys, head])
        longest = _largest_norm(k_here)
        for part in tiles(rows.stop - rows.start, max(64, TILE_LOGITS // max(m, 1))):
            here = slice(rows.start + part.start, rows.start + part.stop)
            size = here.stop - here.start
            weights, dweights = (workspace(f"attention.{a}", (size, m), dtype) for a in ("weights", "dweights"))
            total = workspace("attention.total", (size,), dtype)
            q_here, dmixed = q[here, head], dy[here, head]
            np.matmul(q_here, across, out=weights)
            small = scale * _largest_norm(q_here) * longest + raised < SMALL
            _softmax(weights, scale, bias, small, True, total)
            # 3. the weighted mean
            dv[keys, head] += weights.T @ dmixed
            np.matmul(dmixed, v_across, out=dweights)
            # 2. softmax: only differences from the mean gradient pass
            _softmax_backward(weights, dweights, scale)
            # 1. logits
            np.matmul(dweights, k_here, out=dq[here, head])
            dk[keys, head] += dweights.T @ q_here

    run(head_of_segment, len(work))
    return dq, dk, dv
