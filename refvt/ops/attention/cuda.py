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
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from refvt.array import Array
from refvt.backends.cuda.device_array import DeviceArray
from refvt.backends.cuda.intrinsics import ALIGNMENT, at, load4
from refvt.backends.cuda.kernel import (
    SIMULATED,
    WARP,
    Kernel,
    absent,
    as_many,
    device_function,
    empty,
    kernel,
    lane_and_row,
    read_only,
    upload,
    warp_sum,
)

ACROSS = 2 if SIMULATED else 8  # threads that share a row of a tile
HEIGHT = 2 if SIMULATED else 4  # rows of a thread
LINES = WARP // ACROSS  # from one row of a thread to its next; a warp has LINES · HEIGHT rows
# rows of a tile that a block owns, and of those it walks along; the first that fit in shared memory are taken
FORWARD = ((8, 4),) if SIMULATED else ((64, 32), (32, 16), (16, 8))
BACKWARD = ((8, 4),) if SIMULATED else ((32, 32), (16, 16), (16, 8))
SHORT = (4, 4) if SIMULATED else (16, 8)  # where no segment is longer: a tile of 64 would stand nearly empty
SHARED = 48 * 1024  # bytes of shared memory a block may have without asking for more
LOG2_E = 1 / math.log(2)


class AttentionCache(NamedTuple):
    q: Array
    k: Array
    v: Array
    query_offsets: Array  # on the host, as are key_offsets
    key_offsets: Array
    num_heads: int
    key_bias: Array
    y: Array
    log_total: Array  # log₂ Σ e^logit [n, A], 0 for a row without keys


class _Kernels(NamedTuple):
    queries: int  # rows of a tile, forward
    rows: int  # rows of a tile, backward
    forward: Kernel
    backward_queries: Kernel
    backward_keys: Kernel


@device_function
def place() -> tuple[int, int]:
    """The first row of this thread in a tile, and its place among the threads that share its rows.

    A pair of neighbours has neighbouring rows and the same place, so that half a warp, which reads 16 bytes a thread,
    asks for eight different ones at most: what shared memory delivers at once.
    """
    thread = cuda.threadIdx.x & 1023  # which says that it is not negative
    line = thread // (2 * ACROSS) * 2 + thread % 2
    return line // LINES * (LINES * HEIGHT) + line % LINES, thread // 2 % ACROSS


if SIMULATED:  # no shuffles there: the threads meet in shared memory

    def _row_values(value: Any) -> Any:
        values = cuda.shared.array(64, np.float64)
        i = cuda.threadIdx.x
        cuda.syncthreads()
        values[i] = value
        cuda.syncthreads()
        return values[[i ^ (2 * other) for other in range(ACROSS)]]

    @device_function
    def row_max(value: Any) -> Any:
        """The largest value among the threads that share this one's rows, in all of them."""
        return type(value)(_row_values(value).max())

    @device_function
    def row_sum(value: Any) -> Any:
        """The sum of the value over the threads that share this one's rows, in all of them."""
        return type(value)(_row_values(value).sum())

    @device_function
    def warp_waits() -> None:
        """What threads of this warp have written to shared memory can be read by the others."""
        cuda.syncthreads()

else:

    @device_function
    def row_max(value: Any) -> Any:
        """The largest value among the threads that share this one's rows, in all of them."""
        distance = ACROSS
        while distance > 1:
            value = max(value, cuda.shfl_xor_sync(0xFFFFFFFF, value, distance))
            distance //= 2
        return value

    @device_function
    def row_sum(value: Any) -> Any:
        """The sum of the value over the threads that share this one's rows, in all of them."""
        distance = ACROSS
        while distance > 1:
            value += cuda.shfl_xor_sync(0xFFFFFFFF, value, distance)
            distance //= 2
        return value

    @device_function
    def warp_waits() -> None:
        """What threads of this warp have written to shared memory can be read by the others."""
        cuda.syncwarp()


@device_function
def rows_of_block(offsets, others, height):  # type: ignore[no-untyped-def]
    """The rows of its segment that this block owns, from and to (none, if to ≤ from), and those of the other side.

    The grid: segments, heads, tiles of the longest segment. One with fewer has blocks without rows, which leave.
    """
    segment = cuda.blockIdx.x
    top = offsets[segment] + cuda.blockIdx.z * height
    return top, min(top + height, offsets[segment + 1]), others[segment], others[segment + 1]


@device_function
def clear(sums):  # type: ignore[no-untyped-def]
    for r in range(sums.shape[0]):
        for c in range(sums.shape[1]):
            sums[r, c] = 0


@device_function
def add_products(shared, a, b, pitch, groups, sums):  # type: ignore[no-untyped-def]
    """sums += A Bᵀ, of two tiles that begin at a and b: sums[r, c] of a thread is of its r-th row and its c-th column.

    Four numbers of each row at a time: HEIGHT + columns reads feed 4 · HEIGHT · columns multiply-adds.
    """
    row, x = place()
    left = cuda.local.array((HEIGHT, 4), sums.dtype)
    right = cuda.local.array(4, sums.dtype)
    e = 0
    while e < 4 * groups:  # numba's range with a step would cost as much again as the addresses
        for r in range(HEIGHT):
            left[r, 0], left[r, 1], left[r, 2], left[r, 3] = load4(shared, a + (row + r * LINES) * pitch + e)
        for c in range(sums.shape[1]):
            right[0], right[1], right[2], right[3] = load4(shared, b + (x + c * ACROSS) * pitch + e)
            for u in range(4):
                for r in range(HEIGHT):
                    sums[r, c] += left[r, u] * right[u]
        e += 4


@device_function
def add_mixture(shared, weights, apart, count, tile, pitch, groups, sums):  # type: ignore[no-untyped-def]
    """sums += W X, of weights [rows, count] whose rows are ``apart`` and a tile: a thread has ``groups`` times four
    neighbouring channels of each of its rows. A group beyond the last channel repeats the last and is not written.
    """
    row, x = place()
    left = cuda.local.array((HEIGHT, 4), sums.dtype)
    right = cuda.local.array(4, sums.dtype)
    j = 0
    while j < count:
        for r in range(HEIGHT):
            left[r, 0], left[r, 1], left[r, 2], left[r, 3] = load4(shared, weights + (row + r * LINES) * apart + j)
        for u in range(4):
            for g in range(sums.shape[1] // 4):
                group = min(x + g * ACROSS, groups - 1)
                right[0], right[1], right[2], right[3] = load4(shared, tile + (j + u) * pitch + group * 4)
                for r in range(HEIGHT):
                    for c in range(4):
                        sums[r, g * 4 + c] += left[r, u] * right[c]
        j += 4


def _first_that_fits(
    d: int, tiles: tuple[tuple[int, int], ...], bytes_of: Callable[[int, int], int]
) -> tuple[int, int]:
    """The first (owned, walked) rows for which bytes_of(owned, walked) of shared memory fit."""
    for owned, walked in tiles:
        if bytes_of(owned, walked) <= SHARED:
            return owned, walked
    raise ValueError(f"num_heads: heads of width {d} do not fit the tiles of the cuda backend; take more heads")


@cache
def kernels(d: int, itemsize: int, short: bool = False) -> _Kernels:
    """The three kernels for heads of width d: register arrays need sizes known to the compiler.

    short: for segments that fit in the SHORT tiles.
    """
    groups = -(-d // 4)  # of four channels
    pitch = 4 * (groups | 1)  # an odd number of groups: neighbouring rows start in other memory banks
    channels = 4 * -(-groups // ACROSS)  # of a thread
    edge = max(ACROSS, 4)  # between two rows of weights, for the same reason
    queries, keys = _first_that_fits(
        d,
        (SHORT,) if short else FORWARD,
        lambda own, walk: itemsize * ((own + 2 * walk) * pitch + own * (walk + edge)),
    )
    rows, others = _first_that_fits(
        d,
        (SHORT,) if short else BACKWARD,
        lambda own, walk: itemsize * (2 * (own + walk) * pitch + 2 * own * (walk + edge)),
    )
    name = "attention.short_" if short else "attention."
    per_warp, columns = LINES * HEIGHT, -(-4 * groups // WARP)
    warps, back_warps = queries // per_warp, rows // per_warp
    threads, back_threads = warps * WARP, back_warps * WARP
    # where tiles begin in shared memory: forward q, k, v, weights; backward the two a block owns, the two it walks
    # along (k and v, or q and dy), weights, their gradient
    K = queries * pitch
    V = K + keys * pitch
    W = V + keys * pitch
    apart, per_key = keys + edge, keys // ACROSS
    space = W + queries * apart
    SECOND = rows * pitch
    THIRD = 2 * SECOND
    FOURTH = THIRD + others * pitch
    WEIGHTS = FOURTH + others * pitch
    back_apart, per_other = others + edge, others // ACROSS
    DLOGITS = WEIGHTS + rows * back_apart
    back_space = DLOGITS + rows * back_apart

    @device_function
    def bring(x, top, bottom, left, count, warps, shared, tile):  # type: ignore[no-untyped-def]
        """``count`` rows of a head into shared memory, from ``top`` on, each by one of the block's warps."""
        thread = cuda.threadIdx.x & 1023
        for n in range(count // warps):
            i = thread // WARP + n * warps
            for m in range(columns):
                c = thread % WARP + m * WARP
                if c < d:
                    shared[tile + i * pitch + c] = at(x, top, bottom, left, i, c)
                elif c < 4 * groups:
                    shared[tile + i * pitch + c] = 0

    @device_function
    def write(sums, factor, r, x, i, left, y):  # type: ignore[no-untyped-def]
        """y[i, …] = factor · the r-th row of sums, the channels of this thread."""
        for g in range(channels // 4):
            for c in range(4):
                e = (x + g * ACROSS) * 4 + c
                if e < d:
                    y[i, left + e] = sums[r, g * 4 + c] * factor

    @kernel("F F F i i x f F F", f"{name}forward_{d}", threads)
    def forward(q, k, v, query_offsets, key_offsets, scale, key_bias, y, log_total):  # type: ignore[no-untyped-def]
        """A block holds some queries and walks their keys."""
        top, bottom, first, last = rows_of_block(query_offsets, key_offsets, queries)
        if top >= bottom:
            return
        row, x = place()
        head = cuda.blockIdx.y
        column = head * d
        number = q.dtype.type
        zero, lowest, log2_e = number(0), number(-math.inf), number(LOG2_E)
        shared = cuda.shared.array(space, q.dtype, alignment=ALIGNMENT)
        highest = cuda.local.array(HEIGHT, q.dtype)  # the largest logit of each row so far
        totals = cuda.local.array(HEIGHT, q.dtype)  # Σ of the weights of this thread's keys
        sums = cuda.local.array((HEIGHT, channels), q.dtype)
        logits = cuda.local.array((HEIGHT, per_key), q.dtype)
        clear(sums)
        for r in range(HEIGHT):
            highest[r] = lowest
            totals[r] = zero
        bring(q, top, bottom, column, queries, warps, shared, 0)
        for start in range(first, last, keys):
            cuda.syncthreads()  # the tiles of the keys before are no longer read
            bring(k, start, last, column, keys, warps, shared, K)
            bring(v, start, last, column, keys, warps, shared, V)
            cuda.syncthreads()
            # 1. logits, times log₂ e: powers of two are what the GPU has an instruction for
            clear(logits)
            add_products(shared, 0, K, pitch, groups, logits)
            for c in range(per_key):
                j = start + x + c * ACROSS
                bias = zero
                if key_bias.shape[0] > 0:
                    bias = key_bias[min(j, last - 1)] * log2_e
                if j >= last:
                    bias = lowest
                for r in range(HEIGHT):
                    logits[r, c] = logits[r, c] * (scale * log2_e) + bias
            # 2. softmax: if a logit is larger than the largest so far, what was summed before is corrected
            for r in range(HEIGHT):
                largest = highest[r]
                for c in range(per_key):
                    largest = max(largest, logits[r, c])
                largest = row_max(largest)
                shift = largest if largest > lowest else zero  # a row that has met no key yet
                correction = math.exp2(highest[r] - shift)
                highest[r] = largest
                totals[r] *= correction
                for c in range(channels):
                    sums[r, c] *= correction
                for c in range(per_key):
                    weight = math.exp2(logits[r, c] - shift)
                    totals[r] += weight
                    shared[W + (row + r * LINES) * apart + x + c * ACROSS] = weight
            warp_waits()
            # 3. the weighted mean of the values, not yet divided
            add_mixture(shared, W, apart, keys, V, pitch, groups, sums)
        for r in range(HEIGHT):
            i = top + row + r * LINES
            total = row_sum(totals[r])
            if i < bottom:
                write(sums, number(1) / total if total > zero else zero, r, x, i, column, y)
                if x == 0:
                    log_total[i, head] = highest[r] + math.log2(total) if total > zero else zero

    @kernel("F F F F F F i i x f F", f"{name}backward_queries_{d}", back_threads)
    def backward_queries(dy, q, k, v, log_total, mean, query_offsets, key_offsets, scale, key_bias, dq):  # type: ignore[no-untyped-def]
        """A block holds some queries and walks their keys: dq."""
        top, bottom, first, last = rows_of_block(query_offsets, key_offsets, rows)
        if top >= bottom:
            return
        row, x = place()
        head = cuda.blockIdx.y
        column = head * d
        number = q.dtype.type
        zero, lowest, log2_e = number(0), number(-math.inf), number(LOG2_E)
        shared = cuda.shared.array(back_space, q.dtype, alignment=ALIGNMENT)
        row_totals = cuda.local.array(HEIGHT, q.dtype)
        row_means = cuda.local.array(HEIGHT, q.dtype)
        sums = cuda.local.array((HEIGHT, channels), q.dtype)
        logits = cuda.local.array((HEIGHT, per_other), q.dtype)
        dweights = cuda.local.array((HEIGHT, per_other), q.dtype)
        clear(sums)
        for r in range(HEIGHT):
            i = min(top + row + r * LINES, bottom - 1)
            row_totals[r], row_means[r] = log_total[i, head], mean[i, head]
        bring(q, top, bottom, column, rows, back_warps, shared, 0)
        bring(dy, top, bottom, column, rows, back_warps, shared, SECOND)
        for start in range(first, last, others):
            cuda.syncthreads()
            bring(k, start, last, column, others, back_warps, shared, THIRD)
            bring(v, start, last, column, others, back_warps, shared, FOURTH)
            cuda.syncthreads()
            # passes 1–2, once more, and 3. dweights = dy vᵀ
            clear(logits)
            add_products(shared, 0, THIRD, pitch, groups, logits)
            clear(dweights)
            add_products(shared, SECOND, FOURTH, pitch, groups, dweights)
            for c in range(per_other):
                j = start + x + c * ACROSS
                bias = zero
                if key_bias.shape[0] > 0:
                    bias = key_bias[min(j, last - 1)] * log2_e
                if j >= last:
                    bias = lowest
                for r in range(HEIGHT):
                    weight = math.exp2(logits[r, c] * (scale * log2_e) + bias - row_totals[r])
                    # 2. softmax: only differences from the mean gradient pass
                    dlogit = weight * (dweights[r, c] - row_means[r])
                    shared[DLOGITS + (row + r * LINES) * back_apart + x + c * ACROSS] = dlogit
            warp_waits()
            # 1. logits, their scale at the end
            add_mixture(shared, DLOGITS, back_apart, others, THIRD, pitch, groups, sums)
        for r in range(HEIGHT):
            i = top + row + r * LINES
            if i < bottom:
                write(sums, scale, r, x, i, column, dq)

    @kernel("F F F F F F i i x f F F", f"{name}backward_keys_{d}", back_threads)
    def backward_keys(dy, q, k, v, log_total, mean, query_offsets, key_offsets, scale, key_bias, dk, dv):  # type: ignore[no-untyped-def]
        """A block holds some keys and walks the queries that ask them: dk and dv."""
        top, bottom, first, last = rows_of_block(key_offsets, query_offsets, rows)
        if top >= bottom:
            return
        row, x = place()
        head = cuda.blockIdx.y
        column = head * d
        number = q.dtype.type
        zero, one, log2_e = number(0), number(1), number(LOG2_E)
        shared = cuda.shared.array(back_space, q.dtype, alignment=ALIGNMENT)
        biases = cuda.local.array(HEIGHT, q.dtype)
        dk_sums = cuda.local.array((HEIGHT, channels), q.dtype)
        dv_sums = cuda.local.array((HEIGHT, channels), q.dtype)
        logits = cuda.local.array((HEIGHT, per_other), q.dtype)
        dweights = cuda.local.array((HEIGHT, per_other), q.dtype)
        clear(dk_sums)
        clear(dv_sums)
        for r in range(HEIGHT):
            biases[r] = zero
            if key_bias.shape[0] > 0:
                biases[r] = key_bias[min(top + row + r * LINES, bottom - 1)] * log2_e
        bring(k, top, bottom, column, rows, back_warps, shared, 0)
        bring(v, top, bottom, column, rows, back_warps, shared, SECOND)
        for start in range(first, last, others):
            cuda.syncthreads()
            bring(q, start, last, column, others, back_warps, shared, THIRD)
            bring(dy, start, last, column, others, back_warps, shared, FOURTH)
            cuda.syncthreads()
            # passes 1–2, once more, and 3. dweights = dy vᵀ; a row is a key here, a column a query
            clear(logits)
            add_products(shared, 0, THIRD, pitch, groups, logits)
            clear(dweights)
            add_products(shared, SECOND, FOURTH, pitch, groups, dweights)
            for c in range(per_other):
                i = start + x + c * ACROSS
                read = min(i, last - 1)
                column_total, column_mean = log_total[read, head], mean[read, head]
                if i >= last:
                    column_total = number(math.inf)  # no weight at all
                for r in range(HEIGHT):
                    weight = math.exp2(logits[r, c] * (scale * log2_e) + biases[r] - column_total)
                    # 2. softmax
                    dlogit = weight * (dweights[r, c] - column_mean)
                    shared[WEIGHTS + (row + r * LINES) * back_apart + x + c * ACROSS] = weight
                    shared[DLOGITS + (row + r * LINES) * back_apart + x + c * ACROSS] = dlogit
            warp_waits()
            # 3. the weighted mean; 1. logits
            add_mixture(shared, WEIGHTS, back_apart, others, FOURTH, pitch, groups, dv_sums)
            add_mixture(shared, DLOGITS, back_apart, others, THIRD, pitch, groups, dk_sums)
        for r in range(HEIGHT):
            j = top + row + r * LINES
            if j < bottom:
                write(dk_sums, scale, r, x, j, column, dk)
                write(dv_sums, one, r, x, j, column, dv)

    return _Kernels(queries, rows, forward, backward_queries, backward_keys)


def _longest(offsets: Array, rows: int) -> int:
    """Of the segments."""
    if isinstance(offsets, DeviceArray):  # nobody has told the host: no segment has more than its share of the rows
        return -(-rows // (len(offsets) - 1))
    if len(offsets) == 2:
        return int(offsets[1] - offsets[0])
    return int((offsets[1:] - offsets[:-1]).max(initial=0))


def _pairs(query_offsets: Array, key_offsets: Array) -> int:
    """Of a query and a key that meet."""
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
    """y = softmax(q kᵀ/√d + key_bias) v inside each segment.

    q [n, D], k and v [m, D] (may be strided views of one qkv), query_offsets and key_offsets [segments+1] int64,
    key_bias [m] → y [n, D]. Source: Vaswani et al. 2017.
    """
    n, D = q.shape
    d = D // num_heads
    longest = _longest(query_offsets, n)
    run = kernels(d, q.dtype.itemsize, max(longest, _longest(key_offsets, k.shape[0])) <= SHORT[0])
    bias = absent(q.dtype, 1) if key_bias is None else upload(key_bias, q.dtype)
    segments, tiles = len(query_offsets) - 1, -(-longest // run.queries)
    y, log_total = as_many(q, empty((n, D), q.dtype)), empty((n, num_heads), q.dtype)
    cuts = read_only(query_offsets), read_only(key_offsets)
    # passes 1–3
    run.forward.blocks(
        (segments, num_heads, tiles),
        (run.forward.threads,),
        *(q, k, v, *cuts, q.dtype.type(1 / math.sqrt(d)), bias, y, log_total),
        multiply_adds=lambda: 2 * D * _pairs(query_offsets, key_offsets),
    )
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
    segments, longest = len(query_offsets) - 1, (_longest(query_offsets, len(q)), _longest(key_offsets, len(k)))
    run = kernels(D // num_heads, dtype.itemsize, max(longest) <= SHORT[0])
    scale = dtype.type(1 / math.sqrt(D // num_heads))
    mean = empty(log_total.shape, dtype)  # [n, A]
    _means.warps(dy.shape[0] * num_heads, dy, y, num_heads, mean)
    # side by side, as linear's backward wants them
    whole: Any = empty((len(k), (3 if len(q) == len(k) else 2) * D), dtype)
    *before, dk, dv = (whole.columns(left, left + D) for left in range(0, whole.shape[1], D))
    dq = before[0] if before else empty(q.shape, dtype)
    given = (dy, q, k, v, log_total, mean, read_only(query_offsets), read_only(key_offsets))
    # passes 3–1
    tiles = -(-longest[0] // run.rows)
    run.backward_queries.blocks(
        (segments, num_heads, tiles),
        (run.backward_queries.threads,),
        *(*given, scale, bias, dq),
        multiply_adds=lambda: 3 * D * _pairs(query_offsets, key_offsets),
    )
    tiles = -(-longest[1] // run.rows)
    run.backward_keys.blocks(
        (segments, num_heads, tiles),
        (run.backward_keys.threads,),
        *(*given, scale, bias, dk, dv),
        multiply_adds=lambda: 4 * D * _pairs(query_offsets, key_offsets),
    )
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
