"""Segmented attention in tiles: one head, 48 queries (three vectors), all keys of their segment.

Logits are stored with a column for each query, [keys, queries]: softmax runs down the columns, a vector of them at a
time, and the product with the values reads the weights transposed, since a left factor may have any strides. No N×N
array exists: a thread holds the logits of one tile and a few hundred keys.

A *part* is a segment's queries, or some tiles of them, with all its keys; a *job* is one head of a part; a tile of the
work queue is a group of jobs.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from refvt.array import Array
from refvt.backends.jit.functions import exp2
from refvt.backends.jit.kernel import kernel
from refvt.backends.jit.layouts import columns_of, contiguous
from refvt.backends.jit.microkernel import ROWS, tile
from refvt.backends.jit.threads import next_tile, run
from refvt.backends.jit.vectors import VECTOR, VECTORS, add_rows, copy_rows, fill_rows, max_rows, transpose, view
from refvt.backends.jit.workspace import num_threads
from refvt.ops.attention import LOG2_E

TILES = 16  # tiles of queries in one part of the forward pass, at most
ALL = 1 << 40  # the same in the backward: all tiles of a segment
KEYS = 256  # keys at a time: their rows, and the logits of a tile, stay in the L2 cache
FEW = 24  # jobs per thread beyond which several are grouped
LARGE = 80.0  # 2^±80, and a sum of thousands of them, are far from the limits of float32
LINE = 16  # numbers in a cache line of float32


class AttentionCache(NamedTuple):
    """What the backward reads again: the arguments, the result, and shift and lse, which form the weights again.

    They are kept apart: the weights are 2^((logit − shift) − lse). Their sum would be rounded to the spacing of float32
    at a large logit, and all weights of the query with it.
    """

    q: Array  # [n, D]
    k: Array  # [m, D]
    v: Array  # [m, D]
    query_offsets: Array  # [segments+1]
    key_offsets: Array  # [segments+1]
    num_heads: int
    key_bias: Array | None  # [m]
    y: Array  # [n, D]
    shift: Array  # what the forward pass subtracted from the logits of a query, in base 2 [A, n]; mostly 0
    lse: Array  # log₂ of the sum over keys of 2^(logit − shift) [A, n]; +∞ for a query without keys


class Qkv(NamedTuple):
    """q, k and v, or their gradients, as columns of contiguous matrices (mostly of one qkv)."""

    q: Array  # [n, …]
    k: Array  # [m, …]
    v: Array  # [m, …]
    at: tuple[int, int, int]  # the columns at which q, k and v begin


class Work(NamedTuple):
    """How the work is divided among threads."""

    parts: Array  # [parts, 4] int64: first query row, end of the query rows, first key row, end of the key rows
    group: int  # jobs of a tile of the work queue
    num_heads: int
    scale: Any  # 1/√d, of the dtype


@kernel
def _carve(scratch: Array, start: int, rows: int, columns: int) -> tuple[Array, int]:
    """An array [rows, columns] in scratch memory, and where the next one may start: on a cache line."""
    return view(scratch, start, rows, columns), (start + rows * columns + LINE - 1) // LINE * LINE


@kernel
def _scale(x: Array, factor: Any) -> None:
    """x ← factor · x; x [m, n] contiguous."""
    flat = view(x, 0, 1, x.size)[0]
    for i in range(len(flat)):
        flat[i] *= factor


@kernel
def _load_rows(source: Array, target: Array) -> None:
    """target [≥ m, ≥ d] ← source [m, d], zeros in the rows and columns beyond."""
    m, d = source.shape
    if m < len(target) or d < target.shape[1]:
        fill_rows(target, 0.0)
    copy_rows(source, target)


@kernel
def _multiply(a: Array, b: Array, c: Array, add: bool) -> None:
    """c ← a b, or c + a b if ``add``; a [m, k], b [k, n], c [m, n]; rows of b and c are whole vectors.

    Columns are cut evenly: four vectors into two and two.
    """
    lanes = VECTOR // c.itemsize
    vectors = (c.shape[1] + lanes - 1) // lanes
    wide = -(-vectors // max(1, -(-vectors // VECTORS))) * lanes
    for i in range(0, c.shape[0], ROWS):
        for j in range(0, c.shape[1], wide):
            block = c[i : i + ROWS, j : j + wide]
            tile(a[i : i + ROWS], b[:, j : j + wide], block, None, None, block if add else block[:0])


@kernel
def _load_keys(k: Array, bias: Array, shifted: bool, keys: Array) -> None:
    """k [m, d] → keys [m, d + …]: one more coordinate, the bias, with a bias [m], then ones if ``shifted``.

    The product with a query then adds the query's numbers at these coordinates to the logit, in this order.
    """
    d = k.shape[1]
    copy_rows(k, keys)
    raised = k.dtype.type(LOG2_E)
    for j in range(len(bias)):
        keys[j, d] = bias[j] * raised
    if shifted:
        fill_rows(keys[:, d + min(len(bias), 1) :], 1.0)


@kernel
def _load_queries(rows: Array, factor: Any, has_bias: bool, panel: Array) -> None:
    """rows [w, d] → panel [d + …, w]: a column for each query, times a factor, and a 1 for the bias of the key."""
    d = rows.shape[1]
    transpose(rows, panel[:d, :])
    _scale(panel[:d], factor)
    if has_bias:
        fill_rows(panel[d : d + 1], 1.0)


@kernel
def _shift(logits: Array, state: Array, means: Array) -> bool:
    """Choose shifts so that no weight 2^(logit − shift) overflows and not all of a query vanish; whether any is not 0.

    logits [keys, queries]; state [3, queries]: shifts, sums of the weights so far, scratch for the largest logits;
    means [queries, d], the sums of the values so far. Mostly all logits are within ±80 and the shifts remain 0.
    Otherwise the largest logit becomes the shift, and the sums so far are scaled from the old shift to the new (online
    softmax).
    """
    shift, total, highest = state[0], state[1], state[2]
    fill_rows(state[2:3], -np.inf)
    max_rows(logits, highest)
    furthest, moved = logits.dtype.type(0), logits.dtype.type(0)
    for i in range(len(shift)):
        furthest = max(furthest, abs(highest[i]))
        moved += abs(shift[i])
    if furthest <= LARGE and moved == 0:
        return False
    for i in range(len(shift)):
        above = highest[i] - shift[i]
        if above > LARGE or (total[i] == 0 and above < -LARGE and highest[i] > -np.inf):
            factor = exp2(min(-above, shift.dtype.type(0)))  # a shift that falls has nothing to scale
            shift[i] = highest[i]
            total[i] *= factor
            if i < len(means):
                _scale(means[i : i + 1], factor)
    return True


@kernel
def _softmax(logits: Array, state: Array, means: Array) -> None:
    """logits [keys, queries] ← weights 2^(logits − shift), whose sums are added to state[1]; see ``_shift``."""
    m, n = logits.shape
    # 1. logits
    if _shift(logits, state, means):
        for j in range(m):
            for i in range(n):
                logits[j, i] -= state[0, i]
    # 2. softmax
    flat = view(logits, 0, 1, m * n)[0]
    for i in range(m * n):
        flat[i] = exp2(flat[i])
    add_rows(logits, state[1])


@kernel
def _job(parts: Array, job: int, num_heads: int, lanes: int) -> tuple[int, int, int, int, int, int, int]:
    """A job: first query row and end, first key row and end, the head, queries of a tile, number of tiles."""
    part, head = parts[job // num_heads], job % num_heads
    n = part[1] - part[0]
    wide = min(VECTORS * lanes, (n + lanes - 1) // lanes * lanes)
    return part[0], part[1], part[2], part[3], head, wide, (n + wide - 1) // wide


@kernel
def _tile(t: int, n: int, wide: int, lanes: int) -> tuple[int, int, int]:
    """Tile t of n queries: its first query, its end, and their number rounded up to whole vectors."""
    a, b = t * wide, min((t + 1) * wide, n)
    return a, b, (b - a + lanes - 1) // lanes * lanes


@kernel
def _attend(ticket: Any, scratch: Array, qkv: Qkv, work: Work, key_bias: Array, y: Array, lse: Array) -> None:
    """y [n, D] ← attention of qkv [n, …], [m, …]; a tile is a group of jobs.

    key_bias [m] and lse [2, A, n], the shifts and lse of ``AttentionCache``, are empty where there is no bias, and no
    lse is wanted: one kernel is compiled for all.
    """
    q, k, v, at = qkv
    parts, group, num_heads, scale = work
    lanes = VECTOR // q.itemsize
    d = y.shape[1] // num_heads
    padded = (d + lanes - 1) // lanes * lanes
    biased, wants_lse = len(key_bias) > 0, len(lse) > 0
    e = d + 1 if biased else d
    one, zero, raised = q.dtype.type(1), q.dtype.type(0), q.dtype.type(LOG2_E)
    i = next_tile(ticket)
    no = (
        i < -1
    )  # not a constant, and slices of both axes where they could be left out: kernels are compiled once for all
    while i >= 0:
        for job in range(i * group, min((i + 1) * group, len(parts) * num_heads)):
            top, bottom, first, last, head, wide, tiles = _job(parts, job, num_heads, lanes)
            left, right = head * d, (head + 1) * d
            n, m = bottom - top, last - first
            bias = key_bias[first:last]
            keys, start = _carve(scratch, 0, m, e)
            values, start = _carve(scratch, start, m, padded)
            rows, start = _carve(scratch, start, wide, d)
            panels, start = _carve(scratch, start, tiles, e * wide)
            means, start = _carve(scratch, start, tiles * wide, padded)
            states, start = _carve(scratch, start, tiles, 3 * wide)
            logits, start = _carve(scratch, start, 1, min(KEYS, m) * wide)
            _load_keys(k[first:last, at[1] + left : at[1] + right], bias, no, keys)
            _load_rows(v[first:last, at[2] + left : at[2] + right], values)
            for t in range(tiles):
                a, b, w = _tile(t, n, wide, lanes)
                _load_rows(q[top + a : top + b, at[0] + left : at[0] + right], rows[:w])
                _load_queries(rows[:w, :], scale * raised, biased, view(panels[t], 0, e, w))
                for r in range(3 * wide):
                    states[t, r] = 0
            for from_key in range(0, max(m, 1), KEYS):
                to_key = min(from_key + KEYS, m)
                for t in range(tiles):
                    a, b, w = _tile(t, n, wide, lanes)
                    weights = view(logits[0], 0, to_key - from_key, w)
                    # 1. logits
                    _multiply(keys[from_key:to_key], view(panels[t], 0, e, w), weights, no)
                    # passes 1–2
                    _softmax(weights, view(states[t], 0, 3, w), means[a:b])
                    # 3. the weighted mean of the values; the division waits until all keys are summed
                    _multiply(weights[:, : b - a].T, values[from_key:to_key], means[a:b], from_key > 0)
            for t in range(tiles):
                a, b, w = _tile(t, n, wide, lanes)
                for r in range(b - a):
                    shift, total = states[t, r], states[t, w + r]
                    inverse = one / total if total > zero else zero  # a query without any key gets zero
                    row, target = means[a + r], y[top + a + r, left:right]
                    for c in range(d):
                        target[c] = inverse * row[c]
                    if wants_lse:
                        lse[0, head, top + a + r] = shift
                        lse[1, head, top + a + r] = np.log2(total) if total > zero else np.inf
        i = next_tile(ticket)


@kernel
def _parts(query_offsets: Array, key_offsets: Array, wide: int, most: int) -> Array:
    """The segments that have queries, in parts of at most ``most`` tiles of ``wide`` queries: ``Work.parts``."""
    count = 0
    for s in range(len(query_offsets) - 1):
        tiles = -(-(query_offsets[s + 1] - query_offsets[s]) // wide)
        count += -(-tiles // most)
    parts = np.empty((count, 4), np.int64)
    count = 0
    for s in range(len(query_offsets) - 1):
        start, stop = query_offsets[s], query_offsets[s + 1]
        tiles = -(-(stop - start) // wide)
        pieces = -(-tiles // most)  # 0 for a segment without queries
        for nth in range(pieces):
            parts[count, 0] = start + tiles * nth // pieces * wide
            parts[count, 1] = min(start + tiles * (nth + 1) // pieces * wide, stop)
            parts[count, 2], parts[count, 3] = key_offsets[s], key_offsets[s + 1]
            count += 1
    return parts


@kernel
def _scratch_size(parts: Array, lanes: int, of_key: int, of_tile: int, of_query: int, of_logit: int) -> int:
    """Numbers of scratch memory that the largest part needs.

    of_key: numbers for each key; of_tile: for each query of one tile; of_query: for each query; of_logit: for each
    logit of a tile and KEYS keys.
    """
    most = 1
    for i in range(len(parts)):
        first, last, _, wide, tiles = _job(parts, i, 1, lanes)[2:]
        m = last - first
        most = max(most, m * of_key + wide * of_tile + tiles * wide * of_query + min(m, KEYS) * wide * of_logit)
    return most + 12 * LINE  # every array begins on a line


def _or_empty(key_bias: Array | None, dtype: Any) -> Array:
    """The bias [m] itself, or an empty array if there is none."""
    return np.empty(0, dtype) if key_bias is None else contiguous(key_bias)


def _bytes_of(offsets: Array) -> bytes:
    """Offsets as int64 [segments+1], in a form that can be looked up."""
    return np.asarray(offsets, np.int64).tobytes()


@lru_cache(maxsize=256)  # the segments of Glimpser blocks and of dense execution are always the same
def _work(
    offsets: tuple[bytes, bytes],
    most: int,
    sizes: tuple[int, int, int, int],
    num_heads: int,
    d: int,
    dtype: Any,
    threads: int,
) -> tuple[Work, int, int]:
    """The jobs in groups, the number of groups, and the scratch memory for one; most: as in ``_parts``.

    offsets: of queries and keys, as ``_bytes_of`` gives them; sizes: the last four arguments of ``_scratch_size``.
    """
    lanes = VECTOR // dtype.itemsize
    queries, keys = (np.array(np.frombuffer(each, np.int64)) for each in offsets)
    parts = _parts(queries, keys, VECTORS * lanes, most)
    jobs = len(parts) * num_heads
    group = max(1, -(-jobs // (FEW * threads)))
    work = Work(parts, group, num_heads, dtype.type(1 / math.sqrt(d)))
    return work, -(-jobs // group), _scratch_size(parts, lanes, *sizes)


def _qkv(q: Array, k: Array, v: Array) -> Qkv:
    """q [n, D], k and v [m, D] as columns of contiguous matrices, copied if they are not."""
    matrices, at = columns_of(q, k, v)
    return Qkv(matrices[0], matrices[1], matrices[2], (at[0], at[1], at[2]))


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
    d, lanes = q.shape[1] // num_heads, VECTOR // q.itemsize
    padded = -(-d // lanes) * lanes
    y = np.empty(q.shape, q.dtype)  # [tokens, D]
    lse = np.empty((2 if keep else 0, num_heads, len(q)), q.dtype)
    sizes = (d + 1 + padded, d, d + 4 + padded, 1)
    offsets = _bytes_of(query_offsets), _bytes_of(key_offsets)
    work, tiles, numbers = _work(offsets, TILES, sizes, num_heads, d, q.dtype, num_threads())
    bias = _or_empty(key_bias, q.dtype)
    # passes 1–3
    run(_attend, tiles, _qkv(q, k, v), work, bias, y, lse, scratch=(numbers, q.dtype))
    if not keep:
        return y, None
    return y, AttentionCache(q, k, v, query_offsets, key_offsets, num_heads, key_bias, y, lse[0], lse[1])


@kernel
def _softmax_backward(logits: Array, dweights: Array) -> None:
    """logits − shift − lse ← weights, dweights − mean ← dlogits = weights · (dweights − mean); all [keys, queries]."""
    m, n = logits.shape
    flat, dflat = view(logits, 0, 1, m * n)[0], view(dweights, 0, 1, m * n)[0]
    for i in range(m * n):
        flat[i] = exp2(flat[i])
        dflat[i] *= flat[i]


@kernel
def _load_tile(
    y: Array,
    shift: Array,
    lse: Array,
    top: int,
    left: int,
    scale: Any,
    rows: Array,
    drows: Array,
    panel: Array,
    dpanel: Array,
    columns: Array,
) -> None:
    """One tile of queries for the backward: rows, drows [w, …], panel, dpanel [d + …, w].

    rows hold the queries and become queries · scale, drows hold their dy. The panels are made of both as columns, with
    −shift and −lse as two more coordinates, and −Σ_keys w · dw as one more; y [n, D] is read from row ``top`` and
    column ``left`` on, and shift and lse [queries]. columns [d, w] is scratch.

    The mean Σ_keys w · dw is the dot product of y and dy, summed in the order in which the tile's product forms dw:
    where one key has all the weight, y is its value, and dw less the mean is 0 to the bit, not the rounding of either.
    """
    n, d = len(lse), len(dpanel) - 1
    e = len(panel) - 2
    # the same numbers, added in the same order, as in the forward pass: logit − shift is then exact near the largest
    _load_queries(rows[:, :d], scale * rows.dtype.type(LOG2_E), e > d, panel)
    _scale(rows, scale)
    transpose(drows[:, :d], dpanel[:d, :])
    fill_rows(panel[e:], 0.0)
    fill_rows(dpanel[d:], 0.0)
    transpose(y[top : top + n, left : left + d], columns[:, :n])
    for c in range(d):
        for r in range(n):
            dpanel[d, r] += columns[c, r] * dpanel[c, r]
    for r in range(n):
        panel[e, r], panel[e + 1, r], dpanel[d, r] = -shift[r], -lse[r], -dpanel[d, r]


@kernel
def _attend_backward(
    ticket: Any,
    scratch: Array,
    dy: Array,
    y: Array,
    qkv: Qkv,
    shift: Array,
    lse: Array,
    work: Work,
    key_bias: Array,
    dqkv: Qkv,
) -> None:
    """dqkv [n, …], [m, …] ← the gradients of qkv; dy, y [n, D], shift and lse [A, n], key_bias [m] or empty.

    A tile is a group of jobs. A job is one head of a segment: all its queries add to the gradients of its keys and
    values, in turn.
    """
    (q, k, v, at), (dq, dk, dv, dat), (parts, group, num_heads, scale) = qkv, dqkv, work
    lanes = VECTOR // q.itemsize
    d = y.shape[1] // num_heads
    padded = (d + lanes - 1) // lanes * lanes
    e = d + 3 if len(key_bias) > 0 else d + 2
    i = next_tile(ticket)
    no, yes = i < -1, i >= -1  # not constants, as in _attend
    while i >= 0:
        for job in range(i * group, min((i + 1) * group, len(parts) * num_heads)):
            top, bottom, first, last, head, wide, tiles = _job(parts, job, num_heads, lanes)
            left, right = head * d, (head + 1) * d
            n, m = bottom - top, last - first
            keys, start = _carve(scratch, 0, m, e)
            values, start = _carve(scratch, start, m, d + 1)
            dkeys, start = _carve(scratch, start, m, padded)
            dvalues, start = _carve(scratch, start, m, padded)
            rows, start = _carve(scratch, start, tiles * wide, padded)
            drows, start = _carve(scratch, start, tiles * wide, padded)
            panels, start = _carve(scratch, start, tiles, e * wide)
            dpanels, start = _carve(scratch, start, tiles, (d + 1) * wide)
            dqueries, start = _carve(scratch, start, tiles, d * wide)
            logits, start = _carve(scratch, start, 1, min(KEYS, m) * wide)
            dlogits, start = _carve(scratch, start, 1, min(KEYS, m) * wide)
            _load_keys(k[first:last, at[1] + left : at[1] + right], key_bias[first:last], yes, keys)
            _load_keys(v[first:last, at[2] + left : at[2] + right], key_bias[:0], yes, values)
            fill_rows(dkeys, 0.0)
            fill_rows(dvalues, 0.0)
            for t in range(tiles):
                a, b, w = _tile(t, n, wide, lanes)
                mine = slice(top + a, top + b)
                _load_rows(q[mine, at[0] + left : at[0] + right], rows[a : a + w])
                _load_rows(dy[mine, left:right], drows[a : a + w])
                panel, dpanel = view(panels[t], 0, e, w), view(dpanels[t], 0, d + 1, w)
                shifts, lses = shift[head, mine], lse[head, mine]
                mine_rows, mine_drows, columns = rows[a : a + w], drows[a : a + w], view(dqueries[t], 0, d, w)
                _load_tile(y, shifts, lses, top + a, left, scale, mine_rows, mine_drows, panel, dpanel, columns)
            for from_key in range(0, max(m, 1), KEYS):
                some = slice(from_key, min(from_key + KEYS, m))
                ks, vs, dks, dvs = keys[some], values[some], dkeys[some], dvalues[some]
                for t in range(tiles):
                    a, b, w = _tile(t, n, wide, lanes)
                    weights, dweights = view(logits[0], 0, len(ks), w), view(dlogits[0], 0, len(ks), w)
                    # passes 1–2, again: logits less the shift and the lse of their query
                    _multiply(ks, view(panels[t], 0, e, w), weights, no)
                    # 3a. the weighted mean: dweights, less Σ_keys w · dw, as only differences pass the softmax
                    _multiply(vs, view(dpanels[t], 0, d + 1, w), dweights, no)
                    # 2. softmax, again and backward
                    _softmax_backward(weights, dweights)
                    # 3b. the weighted mean: dv, which needed the weights
                    _multiply(weights[:, : b - a], drows[a:b], dvs, yes)
                    # 1. logits
                    _multiply(dweights[:, : b - a], rows[a:b], dks, yes)
                    _multiply(ks[:, :d].T, dweights, view(dqueries[t], 0, d, w), from_key > 0)
            for t in range(tiles):
                a, b, w = _tile(t, n, wide, lanes)
                _scale(view(dqueries[t], 0, d, w), scale)
                transpose(view(dqueries[t], 0, d, w)[:, :], rows[a : a + w, :d])
                copy_rows(rows[a:b, :d], dq[top + a : top + b, dat[0] + left : dat[0] + right])
            copy_rows(dkeys[:, :d], dk[first:last, dat[1] + left : dat[1] + right])
            copy_rows(dvalues[:, :d], dv[first:last, dat[2] + left : dat[2] + right])
        i = next_tile(ticket)


def attention_backward(dy: Array, cache: AttentionCache) -> tuple[Array, Array, Array]:
    """Returns dq, dk, dv: side by side in one array where n = m. The weights are formed again, as in reference.py."""
    q, k, v, query_offsets, key_offsets, num_heads, key_bias, y, shift, lse = cache
    dy, D, dtype = contiguous(dy), q.shape[1], q.dtype
    d, lanes = D // num_heads, VECTOR // q.itemsize
    padded = -(-d // lanes) * lanes
    sizes = (2 * d + 4 + 2 * padded, 0, 2 * padded + 3 * d + 4, 2)
    offsets = _bytes_of(query_offsets), _bytes_of(key_offsets)
    work, tiles, numbers = _work(offsets, ALL, sizes, num_heads, d, dtype, num_threads())
    all_have_queries = len(work.parts) == len(query_offsets) - 1
    make = np.empty if all_have_queries else np.zeros  # keys of a segment without queries get no gradient
    if len(q) == len(k):  # side by side, as the gradient of one qkv: join_columns then copies nothing
        dqkv = make((len(q), 3 * D), dtype)
        dq, dk, dv = (dqkv[:, i * D : (i + 1) * D] for i in range(3))
    else:
        dq, dkv = np.empty(q.shape, dtype), make((len(k), 2 * D), dtype)
        dk, dv = dkv[:, :D], dkv[:, D:]
    bias, gradients = _or_empty(key_bias, dtype), _qkv(dq, dk, dv)
    # passes 3–1
    run(_attend_backward, tiles, dy, y, _qkv(q, k, v), shift, lse, work, bias, gradients, scratch=(numbers, dtype))
    return dq, dk, dv
