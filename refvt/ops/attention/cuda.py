"""Segmented attention on the GPU: tiles of queries against tiles of keys, with an online softmax.

No N×N array exists anywhere. A block of threads holds some queries of one segment and one head in shared memory and
walks along the keys of the segment, a tile at a time. Softmax needs the largest logit before the first exponential;
here the largest *so far* is used, and whenever a larger one occurs, earlier sums are multiplied by e^(old largest − new
largest): the *online softmax*. The sums themselves stay in registers.

The backward forms the weights again, from two numbers of each row's softmax, its largest logit and the logarithm of its
sum. They are subtracted one after the other: their sum would be rounded to the spacing of float32 at a large logit. It
runs twice: blocks of queries give dq, blocks of keys give dk and dv. This doubles the products, but every sum
belongs to one thread, which adds in one order: no atomic additions. The kernels are in ``cuda_kernels.py``.

Source: online softmax, Milakov and Gimelshein 2018 (arXiv 1805.02867); tiles, Dao et al. 2022 (arXiv 2205.14135).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from refvt.array import Array
from refvt.backends.cuda.arguments import IndexMatrix, Int, Matrix, Real, Vector
from refvt.backends.cuda.device_array import DeviceArray, absent, empty, with_rows_of
from refvt.backends.cuda.kernel import kernel
from refvt.backends.cuda.upload import read_only, upload
from refvt.ops.attention.cuda_kernels import kernels_for
from refvt.ops.attention.cuda_tiles import SHORT


class AttentionCache(NamedTuple):
    q: Array  # [n, D]
    k: Array  # [m, D]
    v: Array  # [m, D]
    query_offsets: Array  # on the host, or on the device if only it knows them; so key_offsets
    key_offsets: Array
    num_heads: int
    key_bias: Array  # [m], or empty
    y: Array  # [n, D]
    lse: Array  # [n, 2A] the largest logit times log₂ e of each head, then log₂ Σ e^(logit − largest); 0 without keys


def _longest(offsets: Array, rows: int) -> int:
    """Length of the longest segment, or an upper bound where the offsets are on the device."""
    if isinstance(offsets, DeviceArray):  # there every segment has the same number of rows at most
        return -(-rows // (len(offsets) - 1))
    if len(offsets) == 2:
        return int(offsets[1] - offsets[0])
    return int((offsets[1:] - offsets[:-1]).max(initial=0))


def _pairs(query_offsets: Array, key_offsets: Array) -> int:
    """Number of (query, key) pairs in all segments."""
    return int(np.dot(np.diff(np.asarray(query_offsets)), np.diff(np.asarray(key_offsets))))


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
    """As ``reference``: y = softmax(q kᵀ/√d + key_bias) v inside each segment.

    q [n, D], k and v [m, D] (may be strided views of one qkv), query_offsets and key_offsets [segments+1] int64 (host
    or device), key_bias [m] (host or device) → y [n, D].
    """
    n, D = q.shape
    d = D // num_heads
    longest = _longest(query_offsets, n)
    kernels = kernels_for(d, q.dtype.itemsize, max(longest, _longest(key_offsets, k.shape[0])) <= SHORT[0])
    bias = absent(q.dtype, 1) if key_bias is None else upload(key_bias, q.dtype)
    segments, tiles = len(query_offsets) - 1, -(-longest // kernels.forward_rows)
    y, lse = with_rows_of(q, empty((n, D), q.dtype)), empty((n, 2 * num_heads), q.dtype)
    offsets = read_only(query_offsets), read_only(key_offsets)
    # passes 1–3
    kernels.forward.blocks(
        (segments, num_heads, tiles),
        (kernels.forward.threads,),
        *(q, k, v, *offsets, q.dtype.type(1 / math.sqrt(d)), bias, y, lse),
        multiply_adds=lambda: 2 * D * _pairs(query_offsets, key_offsets),
    )
    if not keep:
        return y, None
    return y, AttentionCache(q, k, v, query_offsets, key_offsets, num_heads, bias, y, lse)


@kernel
def _means(dy: Matrix, y: Matrix, num_heads: Int, mean: Matrix) -> None:
    """dy, y [n, D] → mean [n, A]: Σ_keys w · dw = y · dy; one thread per row and head.

    The channels are added in the order in which a tile adds those of dw: where one key has all the weight, y is its
    value, and dw less the mean is 0 to the bit.
    """
    thread = cuda.grid(1)
    d = dy.shape[1] // num_heads
    if thread < dy.shape[0] * num_heads:
        i, head = thread // num_heads, thread % num_heads
        total = dy.dtype.type(0)
        for c in range(head * d, (head + 1) * d):
            total += dy[i, c] * y[i, c]
        mean[i, head] = total


def attention_backward(dy: Array, cache: AttentionCache) -> tuple[Array, Array, Array]:
    """As ``reference``: dq, dk, dv. The weights are formed again: storing A·n·m of them would cost more."""
    q, k, v, query_offsets, key_offsets, num_heads, bias, y, lse = cache
    D, dtype = q.shape[1], q.dtype
    segments, longest = len(query_offsets) - 1, (_longest(query_offsets, len(q)), _longest(key_offsets, len(k)))
    kernels = kernels_for(D // num_heads, dtype.itemsize, max(longest) <= SHORT[0])
    scale = dtype.type(1 / math.sqrt(D // num_heads))
    mean = empty((lse.shape[0], num_heads), dtype)
    _means.each(dy.shape[0] * num_heads, dy, y, num_heads, mean)
    # neighbouring columns of one array, so that join_columns need not copy them
    joined: Any = empty((len(k), (3 if len(q) == len(k) else 2) * D), dtype)
    *first, dk, dv = (joined.columns(left, left + D) for left in range(0, joined.shape[1], D))
    dq = first[0] if first else empty(q.shape, dtype)
    inputs = (dy, q, k, v, lse, mean, read_only(query_offsets), read_only(key_offsets))
    # passes 3–1
    tiles = -(-longest[0] // kernels.backward_rows)
    kernels.backward_queries.blocks(
        (segments, num_heads, tiles),
        (kernels.backward_queries.threads,),
        *(*inputs, scale, bias, dq),
        multiply_adds=lambda: 3 * D * _pairs(query_offsets, key_offsets),
    )
    tiles = -(-longest[1] // kernels.backward_rows)
    kernels.backward_keys.blocks(
        (segments, num_heads, tiles),
        (kernels.backward_keys.threads,),
        *(*inputs, scale, bias, dk, dv),
        multiply_adds=lambda: 4 * D * _pairs(query_offsets, key_offsets),
    )
    return dq, dk, dv


@kernel
def _naive(
    q: Matrix, k: Matrix, v: Matrix, keys: IndexMatrix, scale: Real, key_bias: Vector, num_heads: Int, y: Matrix
) -> None:
    """q [n, D], k, v [m, D], keys [n, 2] (from, to), key_bias [m] or empty → y [n, D].

    One thread per query and head.
    """
    thread = cuda.grid(1)
    n, D = q.shape
    d = D // num_heads
    if thread < n * num_heads:
        i, left = thread // num_heads, thread % num_heads * d
        number = q.dtype.type
        # 1. logits: the largest
        highest = number(-math.inf)
        for j in range(keys[i, 0], keys[i, 1]):
            logit = number(0)
            for c in range(left, left + d):
                logit += q[i, c] * k[j, c]
            logit *= scale
            if key_bias.shape[0] > 0:
                logit += key_bias[j]
            highest = max(highest, logit)
        for c in range(left, left + d):
            y[i, c] = number(0)
        if highest > number(-math.inf):
            # passes 1–3: logits again, their weights, and the weighted sum of the values
            total = number(0)
            for j in range(keys[i, 0], keys[i, 1]):
                logit = number(0)
                for c in range(left, left + d):
                    logit += q[i, c] * k[j, c]
                logit *= scale
                if key_bias.shape[0] > 0:
                    logit += key_bias[j]
                weight = math.exp(logit - highest)
                total += weight
                for c in range(left, left + d):
                    y[i, c] += weight * v[j, c]
            for c in range(left, left + d):
                y[i, c] /= total


def attention_naive(
    q: Array,
    k: Array,
    v: Array,
    query_offsets: Array,
    key_offsets: Array,
    num_heads: int,
    key_bias: Array | None = None,
) -> Array:
    """The simplest kernel: a thread per query and head, which reads all its keys twice and all values once.

    Every query reads every key from device memory, and the running sum lies there too. The tiled kernel reads a key
    once per 64 queries, forms each logit once, and keeps its sums in registers. Offsets are on the host.
    """
    lengths = np.diff(query_offsets)
    keys = np.stack([np.repeat(key_offsets[:-1], lengths), np.repeat(key_offsets[1:], lengths)], axis=1)
    y = empty(q.shape, q.dtype)
    bias = absent(q.dtype, 1) if key_bias is None else upload(key_bias, q.dtype)
    scale = q.dtype.type(1 / math.sqrt(q.shape[1] // num_heads))
    _naive.each(q.shape[0] * num_heads, q, k, v, upload(keys, np.int64), scale, bias, num_heads, y)
    return y
