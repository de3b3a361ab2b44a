"""Segmented attention on the GPU: tiles of queries against tiles of keys, the softmax corrected as it goes.

No N×N array exists anywhere. A block of threads holds some queries of one segment and one head in shared memory and
walks the keys of the segment, a tile at a time. Softmax needs the largest logit before the first exponential; here the
largest *so far* is used, and whenever a larger one turns up, what was summed before is multiplied by
e^(old largest − new largest): the *online softmax*. The sums themselves stay in registers.

The backward forms the weights again, from each row's log Σ e^logit, the one number kept of its softmax. It runs twice:
blocks of queries give dq, blocks of keys give dk and dv. Twice the products, but every sum has one owner, who adds in
one order: no atomic additions.

Source: online softmax, Milakov and Gimelshein 2018 (arXiv 1805.02867); tiles, Dao et al. 2022 (arXiv 2205.14135).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import cuda

from refvt.backends.cuda import SIMULATED, WARP, Kernel, absent, empty, kernel, lane_and_row, upload, warp_sum
from refvt.ops import Array

ACROSS, DOWN = (2, 2) if SIMULATED else (16, 8)  # threads of a block: along the keys or channels, and down the rows
SHARED = 48 * 1024  # bytes of shared memory a block may have without asking for more


class AttentionCache(NamedTuple):
    q: Array
    k: Array
    v: Array
    query_offsets: Array  # on the host, as are key_offsets
    key_offsets: Array
    num_heads: int
    key_bias: Array
    y: Array
    log_total: Array  # log Σ e^logit [n, A], 0 for a row without keys


class _Kernels(NamedTuple):
    queries: int  # rows of a tile, forward
    rows: int  # rows of a tile, backward
    forward: Kernel
    backward_queries: Kernel
    backward_keys: Kernel


def _tile(d: int, bytes_of: Callable[[int], int], largest: int, smallest: int) -> int:
    """The largest power of two from ``largest`` down to ``smallest`` for which bytes_of(rows) of shared memory fit."""
    rows = largest
    while bytes_of(rows) > SHARED:
        rows //= 2
        if rows < smallest:
            raise ValueError(f"num_heads: heads of width {d} do not fit the tiles of the cuda backend; take more heads")
    return rows


@lru_cache(maxsize=16)
def kernels(d: int, itemsize: int) -> _Kernels:
    """The three kernels for heads of width d: register arrays need sizes known to the compiler."""
    pitch = d + 1  # neighbouring rows start in neighbouring memory banks
    # forward: queries, keys, values, logits (half as many keys as queries), two numbers per row
    queries = (
        4 if SIMULATED else _tile(d, lambda r: itemsize * (2 * r * pitch + r * (r // 2 + 1) + 2 * r), 64, 2 * ACROSS)
    )
    keys = queries // 2
    # backward: q, dy, k, v, two matrices of weights
    rows = 4 if SIMULATED else _tile(d, lambda r: itemsize * (4 * r * pitch + 2 * r * (r + 1)), 32, ACROSS)
    threads = ACROSS * DOWN
    per_row, per_key = queries // DOWN, keys // ACROSS
    channels = -(-d // ACROSS)  # of a thread
    keys_apart, rows_apart = keys + 1, rows + 1
    back_row, back_key = rows // DOWN, rows // ACROSS

    @kernel("F F F I x f F F", f"attention.forward_{d}", threads)
    def forward(q, k, v, parts, scale, key_bias, y, log_total):  # type: ignore[no-untyped-def]
        """A block holds some queries and walks their keys. parts [parts, 4]: query rows from, to, key rows from, to."""
        x, z = cuda.threadIdx.x, cuda.threadIdx.y
        thread = z * ACROSS + x
        part, head = cuda.blockIdx.x, cuda.blockIdx.y
        top, bottom, first, last = parts[part, 0], parts[part, 1], parts[part, 2], parts[part, 3]
        column = head * d
        number = q.dtype.type
        zero, lowest = number(0), number(-math.inf)
        q_tile = cuda.shared.array((queries, pitch), q.dtype)
        k_tile = cuda.shared.array((keys, pitch), q.dtype)
        v_tile = cuda.shared.array((keys, pitch), q.dtype)
        weights = cuda.shared.array((queries, keys_apart), q.dtype)
        highest = cuda.shared.array(queries, q.dtype)  # the largest logit of each row so far
        factor = cuda.shared.array(queries, q.dtype)  # what earlier sums are multiplied by
        sums = cuda.local.array((per_row, channels), q.dtype)
        totals = cuda.local.array(per_row, q.dtype)
        logits = cuda.local.array((per_row, per_key), q.dtype)
        for r in range(per_row):
            totals[r] = zero
            for c in range(channels):
                sums[r, c] = zero
        for e in range(thread, queries, threads):
            highest[e] = lowest
        for e in range(thread, queries * d, threads):
            i, c = e // d, e % d
            q_tile[i, c] = q[top + i, column + c] if top + i < bottom else zero
        for start in range(first, last, keys):
            cuda.syncthreads()  # the tiles of the keys before are no longer read
            for e in range(thread, keys * d, threads):
                j, c = e // d, e % d
                inside = start + j < last
                k_tile[j, c] = k[start + j, column + c] if inside else zero
                v_tile[j, c] = v[start + j, column + c] if inside else zero
            cuda.syncthreads()
            # 1. logits
            for r in range(per_row):
                for c in range(per_key):
                    logits[r, c] = zero
            for e in range(d):
                for c in range(per_key):
                    value = k_tile[x + c * ACROSS, e]
                    for r in range(per_row):
                        logits[r, c] += q_tile[z + r * DOWN, e] * value
            for c in range(per_key):
                j = start + x + c * ACROSS
                for r in range(per_row):
                    logit = lowest
                    if j < last:
                        logit = logits[r, c] * scale
                        if key_bias.shape[0] > 0:
                            logit += key_bias[j]
                    logits[r, c] = logit
                    weights[z + r * DOWN, x + c * ACROSS] = logit
            cuda.syncthreads()
            # 2. softmax: one thread per row looks for a larger logit than the largest so far
            for i in range(thread, queries, threads):
                largest = highest[i]
                for j in range(keys):
                    largest = max(largest, weights[i, j])
                # a row that has met no key yet has nothing to correct
                factor[i] = math.exp(highest[i] - largest) if highest[i] > lowest else zero
                highest[i] = largest
            cuda.syncthreads()
            for r in range(per_row):
                largest = highest[z + r * DOWN]
                shift = largest if largest > lowest else zero
                for c in range(per_key):
                    weights[z + r * DOWN, x + c * ACROSS] = math.exp(logits[r, c] - shift)
            cuda.syncthreads()
            # 3. the weighted mean of the values, not yet divided
            for r in range(per_row):
                correction = factor[z + r * DOWN]
                totals[r] *= correction
                for c in range(channels):
                    sums[r, c] *= correction
            for j in range(keys):
                for r in range(per_row):
                    weight = weights[z + r * DOWN, j]
                    totals[r] += weight
                    for c in range(channels):
                        if x + c * ACROSS < d:
                            sums[r, c] += weight * v_tile[j, x + c * ACROSS]
        for r in range(per_row):
            i = top + z + r * DOWN
            if i < bottom:
                total = totals[r]
                inverse = number(1) / total if total > zero else zero
                for c in range(channels):
                    if x + c * ACROSS < d:
                        y[i, column + x + c * ACROSS] = sums[r, c] * inverse
                if x == 0:
                    log_total[i, head] = highest[z + r * DOWN] + math.log(total) if total > zero else zero

    @kernel("F F F F F F I x f F", f"attention.backward_queries_{d}", threads)
    def backward_queries(dy, q, k, v, log_total, mean, parts, scale, key_bias, dq):  # type: ignore[no-untyped-def]
        """A block holds some queries and walks their keys: dq."""
        x, z = cuda.threadIdx.x, cuda.threadIdx.y
        thread = z * ACROSS + x
        part, head = cuda.blockIdx.x, cuda.blockIdx.y
        top, bottom, first, last = parts[part, 0], parts[part, 1], parts[part, 2], parts[part, 3]
        column = head * d
        zero = q.dtype.type(0)
        q_tile = cuda.shared.array((rows, pitch), q.dtype)
        dy_tile = cuda.shared.array((rows, pitch), q.dtype)
        k_tile = cuda.shared.array((rows, pitch), q.dtype)
        v_tile = cuda.shared.array((rows, pitch), q.dtype)
        dlogits = cuda.shared.array((rows, rows_apart), q.dtype)
        sums = cuda.local.array((back_row, channels), q.dtype)
        logits = cuda.local.array((back_row, back_key), q.dtype)
        dweights = cuda.local.array((back_row, back_key), q.dtype)
        for r in range(back_row):
            for c in range(channels):
                sums[r, c] = zero
        for e in range(thread, rows * d, threads):
            i, c = e // d, e % d
            inside = top + i < bottom
            q_tile[i, c] = q[top + i, column + c] if inside else zero
            dy_tile[i, c] = dy[top + i, column + c] if inside else zero
        for start in range(first, last, rows):
            cuda.syncthreads()
            for e in range(thread, rows * d, threads):
                j, c = e // d, e % d
                inside = start + j < last
                k_tile[j, c] = k[start + j, column + c] if inside else zero
                v_tile[j, c] = v[start + j, column + c] if inside else zero
            cuda.syncthreads()
            # passes 1–2, once more, and 3. dweights = dy vᵀ
            for r in range(back_row):
                for c in range(back_key):
                    logits[r, c] = zero
                    dweights[r, c] = zero
            for e in range(d):
                for c in range(back_key):
                    key, value = k_tile[x + c * ACROSS, e], v_tile[x + c * ACROSS, e]
                    for r in range(back_row):
                        logits[r, c] += q_tile[z + r * DOWN, e] * key
                        dweights[r, c] += dy_tile[z + r * DOWN, e] * value
            for r in range(back_row):
                i = top + z + r * DOWN
                for c in range(back_key):
                    j = start + x + c * ACROSS
                    dlogit = zero
                    if i < bottom and j < last:
                        logit = logits[r, c] * scale
                        if key_bias.shape[0] > 0:
                            logit += key_bias[j]
                        # 2. softmax: only differences from the mean gradient pass
                        dlogit = math.exp(logit - log_total[i, head]) * (dweights[r, c] - mean[i, head]) * scale
                    dlogits[z + r * DOWN, x + c * ACROSS] = dlogit
            cuda.syncthreads()
            # 1. logits
            for j in range(rows):
                for r in range(back_row):
                    dlogit = dlogits[z + r * DOWN, j]
                    for c in range(channels):
                        if x + c * ACROSS < d:
                            sums[r, c] += dlogit * k_tile[j, x + c * ACROSS]
        for r in range(back_row):
            i = top + z + r * DOWN
            for c in range(channels):
                if i < bottom and x + c * ACROSS < d:
                    dq[i, column + x + c * ACROSS] = sums[r, c]

    @kernel("F F F F F F I x f F F", f"attention.backward_keys_{d}", threads)
    def backward_keys(dy, q, k, v, log_total, mean, parts, scale, key_bias, dk, dv):  # type: ignore[no-untyped-def]
        """A block holds some keys and walks the queries that ask them: dk and dv. parts: key rows, query rows."""
        x, z = cuda.threadIdx.x, cuda.threadIdx.y
        thread = z * ACROSS + x
        part, head = cuda.blockIdx.x, cuda.blockIdx.y
        top, bottom, first, last = parts[part, 0], parts[part, 1], parts[part, 2], parts[part, 3]
        column = head * d
        zero = q.dtype.type(0)
        k_tile = cuda.shared.array((rows, pitch), q.dtype)
        v_tile = cuda.shared.array((rows, pitch), q.dtype)
        q_tile = cuda.shared.array((rows, pitch), q.dtype)
        dy_tile = cuda.shared.array((rows, pitch), q.dtype)
        weights = cuda.shared.array((rows, rows_apart), q.dtype)
        dlogits = cuda.shared.array((rows, rows_apart), q.dtype)
        dk_sums = cuda.local.array((back_row, channels), q.dtype)
        dv_sums = cuda.local.array((back_row, channels), q.dtype)
        logits = cuda.local.array((back_row, back_key), q.dtype)
        dweights = cuda.local.array((back_row, back_key), q.dtype)
        for r in range(back_row):
            for c in range(channels):
                dk_sums[r, c] = zero
                dv_sums[r, c] = zero
        for e in range(thread, rows * d, threads):
            j, c = e // d, e % d
            inside = top + j < bottom
            k_tile[j, c] = k[top + j, column + c] if inside else zero
            v_tile[j, c] = v[top + j, column + c] if inside else zero
        for start in range(first, last, rows):
            cuda.syncthreads()
            for e in range(thread, rows * d, threads):
                i, c = e // d, e % d
                inside = start + i < last
                q_tile[i, c] = q[start + i, column + c] if inside else zero
                dy_tile[i, c] = dy[start + i, column + c] if inside else zero
            cuda.syncthreads()
            # passes 1–2, once more, and 3. dweights = dy vᵀ; a row is a key here, a column a query
            for r in range(back_row):
                for c in range(back_key):
                    logits[r, c] = zero
                    dweights[r, c] = zero
            for e in range(d):
                for c in range(back_key):
                    query, gradient = q_tile[x + c * ACROSS, e], dy_tile[x + c * ACROSS, e]
                    for r in range(back_row):
                        logits[r, c] += query * k_tile[z + r * DOWN, e]
                        dweights[r, c] += gradient * v_tile[z + r * DOWN, e]
            for r in range(back_row):
                j = top + z + r * DOWN
                for c in range(back_key):
                    i = start + x + c * ACROSS
                    weight, dlogit = zero, zero
                    if j < bottom and i < last:
                        logit = logits[r, c] * scale
                        if key_bias.shape[0] > 0:
                            logit += key_bias[j]
                        weight = math.exp(logit - log_total[i, head])
                        # 2. softmax
                        dlogit = weight * (dweights[r, c] - mean[i, head]) * scale
                    weights[z + r * DOWN, x + c * ACROSS] = weight
                    dlogits[z + r * DOWN, x + c * ACROSS] = dlogit
            cuda.syncthreads()
            # 3. the weighted mean; 1. logits
            for i in range(rows):
                for r in range(back_row):
                    weight, dlogit = weights[z + r * DOWN, i], dlogits[z + r * DOWN, i]
                    for c in range(channels):
                        if x + c * ACROSS < d:
                            dv_sums[r, c] += weight * dy_tile[i, x + c * ACROSS]
                            dk_sums[r, c] += dlogit * q_tile[i, x + c * ACROSS]
        for r in range(back_row):
            j = top + z + r * DOWN
            for c in range(channels):
                if j < bottom and x + c * ACROSS < d:
                    dk[j, column + x + c * ACROSS] = dk_sums[r, c]
                    dv[j, column + x + c * ACROSS] = dv_sums[r, c]

    return _Kernels(queries, rows, forward, backward_queries, backward_keys)


def _parts(offsets: Array, others: Array, rows: int) -> Array:
    """Each segment's rows in tiles of at most ``rows``: [parts, 4] rows from, to, and the other side's from, to."""
    lengths = np.diff(offsets)
    pieces = -(-lengths // rows)
    segment = np.repeat(np.arange(len(lengths)), pieces)
    nth = np.arange(len(segment)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    top = offsets[:-1][segment] + nth * rows
    bottom = np.minimum(top + rows, offsets[1:][segment])
    parts: Array = np.stack([top, bottom, others[:-1][segment], others[1:][segment]], axis=1)
    return parts


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

    q [n, D], k and v [m, D] (may be strided views of one qkv), query_offsets and key_offsets [segments+1] int64 (host),
    key_bias [m] → y [n, D]. Source: Vaswani et al. 2017.
    """
    n, D = q.shape
    d = D // num_heads
    run = kernels(d, q.dtype.itemsize)
    bias = absent(q.dtype, 1) if key_bias is None else upload(key_bias, q.dtype)
    parts = _parts(query_offsets, key_offsets, run.queries)
    y, log_total = empty((n, D), q.dtype), empty((n, num_heads), q.dtype)
    work = (upload(parts, np.int64), q.dtype.type(1 / math.sqrt(d)), bias)
    # passes 1–3
    run.forward.blocks((len(parts), num_heads), (ACROSS, DOWN), q, k, v, *work, y, log_total)
    if not keep:
        return y, None
    return y, AttentionCache(q, k, v, query_offsets, key_offsets, num_heads, bias, y, log_total)


@kernel("F F n F")
def _means(dy, y, num_heads, mean):  # type: ignore[no-untyped-def]
    """Σ_keys w · dw = y · dy, row by row and head by head: one warp each."""
    lane, row = lane_and_row()
    count, d = dy.shape[0] * num_heads, dy.shape[1] // num_heads
    read = min(row, count - 1)
    i, head = read // num_heads, read % num_heads
    total = dy.dtype.type(0)
    for c in range(head * d + lane, (head + 1) * d, WARP):
        total += dy[i, c] * y[i, c]
    total = warp_sum(total)
    if lane == 0 and row < count:
        mean[i, head] = total


def attention_backward(dy: Array, cache: AttentionCache) -> tuple[Array, Array, Array]:
    """Returns dq, dk, dv. The weights are formed again: storing A·n·m of them costs more than it saves."""
    q, k, v, query_offsets, key_offsets, num_heads, bias, y, log_total = cache
    D, dtype = q.shape[1], q.dtype
    run = kernels(D // num_heads, dtype.itemsize)
    scale = dtype.type(1 / math.sqrt(D // num_heads))
    mean = empty(log_total.shape, dtype)  # [n, A]
    _means.warps(dy.shape[0] * num_heads, dy, y, num_heads, mean)
    dq, dk, dv = empty(q.shape, dtype), empty(k.shape, dtype), empty(v.shape, dtype)
    given = (dy, q, k, v, log_total, mean)
    # passes 3–1
    parts = _parts(query_offsets, key_offsets, run.rows)
    work = (upload(parts, np.int64), scale, bias)
    run.backward_queries.blocks((len(parts), num_heads), (ACROSS, DOWN), *given, *work, dq)
    parts = _parts(key_offsets, query_offsets, run.rows)
    work = (upload(parts, np.int64), scale, bias)
    run.backward_keys.blocks((len(parts), num_heads), (ACROSS, DOWN), *given, *work, dk, dv)
    return dq, dk, dv


@kernel("F F F I x f n F")
def _naive(q, k, v, keys, scale, key_bias, num_heads, y):  # type: ignore[no-untyped-def]
    """keys [n, 2]: the first and the last key of each query, plus one."""
    thread = cuda.grid(1)
    n, D = q.shape
    d = D // num_heads
    if thread < n * num_heads:
        i, left = thread // num_heads, thread % num_heads * d
        number = q.dtype.type
        # 1. logits, once for the largest …
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
            # … and once more for 2. the weights, which 3. mix the values
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
    """The first kernel one would write: a thread per query and head, which reads all its keys twice, all values once.

    Every query reads every key from the device's memory, and the running sum lives there too. The tiled kernel reads a
    key once per 64 queries, forms each logit once, and keeps its sums in registers.
    """
    lengths = np.diff(query_offsets)
    keys = np.stack([np.repeat(key_offsets[:-1], lengths), np.repeat(key_offsets[1:], lengths)], axis=1)
    y = empty(q.shape, q.dtype)
    bias = absent(q.dtype, 1) if key_bias is None else upload(key_bias, q.dtype)
    scale = q.dtype.type(1 / math.sqrt(q.shape[1] // num_heads))
    _naive.each(q.shape[0] * num_heads, q, k, v, upload(keys, np.int64), scale, bias, num_heads, y)
    return y
