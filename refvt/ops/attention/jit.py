"""Segmented attention in tiles: one head, 48 queries (three vectors), all keys of their segment.

Logits lie with a column for each query, [keys, queries]: softmax runs down columns, a vector of them at a time, and the
product with the values reads its weights across, as a left factor may lie as it likes. No N×N array exists: a thread
holds the logits of one tile and a few hundred keys.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from refvt.array import Array
from refvt.backends.jit.compile import exp2, kernel
from refvt.backends.jit.layouts import columns_of
from refvt.backends.jit.microkernel import ROWS, VECTOR, VECTORS, add_rows, copy_rows, max_rows, tile, turn, view
from refvt.backends.jit.threads import next_tile, run
from refvt.backends.jit.workspace import num_threads

TILES = 16  # of queries in one task of the forward pass, at most
KEYS = 256  # at a time: their rows, and the logits of a tile, stay in the second cache
FEW = 24  # tasks per thread beyond which several heads or segments are taken at a time
LARGE = 80.0  # 2^±80, and a sum of thousands of them, are far from the limits of float32
LOG2E = 1 / math.log(2)  # logits are kept in powers of two: 2^(x · log₂ e) = e^x

LINE = 16  # numbers: a cache line of float32

Starts = tuple[int, ...]  # the columns at which q, k and v begin


class AttentionCache(NamedTuple):
    q: Array
    k: Array
    v: Array
    query_offsets: Array
    key_offsets: Array
    num_heads: int
    key_bias: Array | None
    y: Array
    level: Array  # [A, n], log₂ of the sum over keys of 2^logit


@kernel
def _carve(space: Array, start: int, rows: int, columns: int) -> tuple[Array, int]:
    """An array out of a thread's memory, and where the next one may start: on a cache line."""
    return view(space, start, rows, columns), (start + rows * columns + LINE - 1) // LINE * LINE


@kernel
def _scale(x: Array, factor: Any) -> None:
    flat = view(x, 0, 1, x.size)[0]
    for i in range(len(flat)):
        flat[i] *= factor


@kernel
def _load_rows(source: Array, target: Array) -> None:
    """target ← source, zero in the rows and columns that it has beyond those."""
    m, d = source.shape
    if m < len(target) or d < target.shape[1]:
        flat = view(target, 0, 1, target.size)[0]
        for i in range(len(flat)):
            flat[i] = 0
    copy_rows(source, target)


@kernel
def _multiply(a: Array, b: Array, c: Array, add: bool) -> None:
    """c ← a b, or c + a b, of any number of rows and columns; rows of b and c are whole vectors.

    Columns are cut evenly: four vectors in two and two.
    """
    lanes = VECTOR // c.itemsize
    vectors = (c.shape[1] + lanes - 1) // lanes
    wide = -(-vectors // max(1, -(-vectors // VECTORS))) * lanes
    for i in range(0, c.shape[0], ROWS):
        for j in range(0, c.shape[1], wide):
            place = c[i : i + ROWS, j : j + wide]
            tile(a[i : i + ROWS], b[:, j : j + wide], place, None, None, place if add else place[:0])


@kernel
def _load_keys(k: Array, bias: Array, shifted: bool, keys: Array) -> None:
    """k [m, d] → keys [m, d + …]: with ``shifted`` one more coordinate, 1, and with a bias [m] one more, the bias.

    What a query has there is then added to its logit by the product itself.
    """
    d = k.shape[1]
    copy_rows(k, keys)
    if shifted:
        keys[:, d] = 1
    raised = k.dtype.type(LOG2E)
    for j in range(len(bias)):
        keys[j, -1] = bias[j] * raised


@kernel
def _load_queries(rows: Array, factor: Any, has_bias: bool, panel: Array) -> None:
    """rows [w, d] → panel [d + …, w]: a column for each query, times a factor, and 1 for the bias of a key."""
    d = rows.shape[1]
    turn(rows, panel[:d])
    _scale(panel[:d], factor)
    if has_bias:
        panel[-1] = 1


@kernel
def _shift(logits: Array, state: Array, means: Array) -> bool:
    """See to it that no weight 2^(logit − shift) overflows, nor all of a query's vanish: must they be shifted at all?

    state [3, queries]: shifts, sums of the weights so far, room for the largest logits. Mostly all logits are within
    ±80 and the shifts remain 0; where they are not, the largest logit becomes the shift, and what has been added up
    under the old one is scaled to the new one (as in online softmax).
    """
    shift, total, highest = state
    highest[:] = -np.inf
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
            factor = exp2(min(-above, shift.dtype.type(0)))  # where the shift comes down there is nothing to scale
            shift[i] = highest[i]
            total[i] *= factor
            if i < len(means):
                means[i] *= factor
    return True


@kernel
def _softmax(logits: Array, state: Array, means: Array) -> None:
    """logits [keys, queries] ← weights 2^(logits − shift); their sums are added to state[1]. means [queries, d]."""
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
    """One head of one part: query rows from, to, key rows from, to, the head, queries of a tile, and how many tiles."""
    part, head = parts[job // num_heads], job % num_heads
    n = part[1] - part[0]
    wide = min(VECTORS * lanes, (n + lanes - 1) // lanes * lanes)
    return part[0], part[1], part[2], part[3], head, wide, (n + wide - 1) // wide


@kernel
def _tile(t: int, n: int, wide: int, lanes: int) -> tuple[int, int, int]:
    """Tile t of n queries: its first, the one after its last, and their number in whole vectors."""
    a, b = t * wide, min((t + 1) * wide, n)
    return a, b, (b - a + lanes - 1) // lanes * lanes


@kernel
def _attend(
    ticket: Any,
    space: Array,
    q: Array,
    k: Array,
    v: Array,
    at: Starts,
    parts: Array,
    group: int,
    num_heads: int,
    scale: Any,
    key_bias: Array,
    y: Array,
    level: Array,
) -> None:
    """q, k and v begin at these columns; key_bias and level are empty where there is no bias, and no level wanted: one
    kernel is compiled for all.
    """
    lanes = VECTOR // q.itemsize
    d = y.shape[1] // num_heads
    padded = (d + lanes - 1) // lanes * lanes
    biased, wanted = len(key_bias) > 0, len(level) > 0
    e = d + 1 if biased else d
    one, zero, raised = q.dtype.type(1), q.dtype.type(0), q.dtype.type(LOG2E)
    i = next_tile(ticket)
    while i >= 0:
        for job in range(i * group, min((i + 1) * group, len(parts) * num_heads)):
            top, bottom, first, last, head, wide, tiles = _job(parts, job, num_heads, lanes)
            left, right = head * d, (head + 1) * d
            n, m = bottom - top, last - first
            bias = key_bias[first:last]
            keys, start = _carve(space, 0, m, e)
            values, start = _carve(space, start, m, padded)
            rows, start = _carve(space, start, wide, d)
            panels, start = _carve(space, start, tiles, e * wide)
            means, start = _carve(space, start, tiles * wide, padded)
            states, start = _carve(space, start, tiles, 3 * wide)
            logits, start = _carve(space, start, 1, min(KEYS, m) * wide)
            _load_keys(k[first:last, at[1] + left : at[1] + right], bias, False, keys)
            _load_rows(v[first:last, at[2] + left : at[2] + right], values)
            for t in range(tiles):
                a, b, w = _tile(t, n, wide, lanes)
                _load_rows(q[top + a : top + b, at[0] + left : at[0] + right], rows[:w])
                _load_queries(rows[:w], scale * raised, biased, view(panels[t], 0, e, w))
                for r in range(3 * wide):
                    states[t, r] = 0
            for from_key in range(0, max(m, 1), KEYS):
                to_key = min(from_key + KEYS, m)
                for t in range(tiles):
                    a, b, w = _tile(t, n, wide, lanes)
                    weights = view(logits[0], 0, to_key - from_key, w)
                    # 1. logits
                    _multiply(keys[from_key:to_key], view(panels[t], 0, e, w), weights, False)
                    # passes 1–2
                    _softmax(weights, view(states[t], 0, 3, w), means[a:b])
                    # 3. the weighted mean of the values; the division waits until all keys are there
                    _multiply(weights[:, : b - a].T, values[from_key:to_key], means[a:b], from_key > 0)
            for t in range(tiles):
                a, b, w = _tile(t, n, wide, lanes)
                for r in range(b - a):
                    shift, total = states[t, r], states[t, w + r]
                    inverse = one / total if total > zero else zero  # a query without any key gets zero
                    row, place = means[a + r], y[top + a + r, left:right]
                    for c in range(d):
                        place[c] = inverse * row[c]
                    if wanted:
                        level[head, top + a + r] = shift + np.log2(total) if total > zero else np.inf
        i = next_tile(ticket)


@kernel
def _parts(query_offsets: Array, key_offsets: Array, wide: int, most: int) -> Array:
    """The segments that ask, in parts of at most so many tiles of so many queries.

    parts [parts, 4] int64: query rows from, to, key rows from, to.
    """
    count = 0
    for s in range(len(query_offsets) - 1):
        tiles = -(-(query_offsets[s + 1] - query_offsets[s]) // wide)
        count += -(-tiles // most)
    parts = np.empty((count, 4), np.int64)
    count = 0
    for s in range(len(query_offsets) - 1):
        start, stop = query_offsets[s], query_offsets[s + 1]
        tiles = -(-(stop - start) // wide)
        pieces = -(-tiles // most)  # 0 of a segment that asks nothing
        for nth in range(pieces):
            parts[count, 0] = start + tiles * nth // pieces * wide
            parts[count, 1] = min(start + tiles * (nth + 1) // pieces * wide, stop)
            parts[count, 2], parts[count, 3] = key_offsets[s], key_offsets[s + 1]
            count += 1
    return parts


@kernel
def _room(parts: Array, lanes: int, of_key: int, of_tile: int, of_query: int, of_logit: int) -> int:
    """How many numbers a part needs at most, if every key needs so many, every query of one tile, of all, and every
    logit of a tile and KEYS keys.
    """
    most = 1
    for i in range(len(parts)):
        first, last, _, wide, tiles = _job(parts, i, 1, lanes)[2:]
        m = last - first
        most = max(most, m * of_key + wide * of_tile + tiles * wide * of_query + min(m, KEYS) * wide * of_logit)
    return most + 12 * LINE  # every array begins on a line


def _or_empty(key_bias: Array | None, dtype: Any) -> Array:
    """An empty array for no bias."""
    return np.empty(0, dtype) if key_bias is None else key_bias


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
    d, lanes = q.shape[1] // num_heads, VECTOR // q.itemsize
    padded = -(-d // lanes) * lanes
    scale = q.dtype.type(1 / math.sqrt(d))
    y = np.empty(q.shape, q.dtype)  # [tokens, D]
    level = np.empty((num_heads if keep else 0, len(q)), q.dtype)
    parts = _parts(query_offsets, key_offsets, VECTORS * lanes, TILES)
    numbers = _room(parts, lanes, d + 1 + padded, d, d + 4 + padded, 1)
    jobs = len(parts) * num_heads
    group = max(1, -(-jobs // (FEW * num_threads())))
    # passes 1–3
    matrices, at = columns_of(q, k, v)
    work = (*matrices, at, parts, group, num_heads, scale, _or_empty(key_bias, q.dtype), y, level)
    run(_attend, -(-jobs // group), *work, space=(numbers, q.dtype))
    if not keep:
        return y, None
    return y, AttentionCache(q, k, v, query_offsets, key_offsets, num_heads, key_bias, y, level)


@kernel
def _softmax_backward(logits: Array, dweights: Array) -> None:
    """logits − level ← weights, dweights − mean ← dlogits = weights · (dweights − mean)."""
    m, n = logits.shape
    flat, dflat = view(logits, 0, 1, m * n)[0], view(dweights, 0, 1, m * n)[0]
    for i in range(m * n):
        flat[i] = exp2(flat[i])
        dflat[i] *= flat[i]


@kernel
def _attend_backward(
    ticket: Any,
    space: Array,
    dy: Array,
    y: Array,
    q: Array,
    k: Array,
    v: Array,
    at: Starts,
    level: Array,
    parts: Array,
    group: int,
    num_heads: int,
    scale: Any,
    key_bias: Array,
    dq: Array,
    dk: Array,
    dv: Array,
    dat: Starts,
) -> None:
    """A job is one head of a segment: all its queries add to the gradients of its keys and values, in turn.

    q, k and v begin at the columns ``at``, their gradients at ``dat``.
    """
    lanes = VECTOR // q.itemsize
    d = y.shape[1] // num_heads
    padded = (d + lanes - 1) // lanes * lanes
    biased = len(key_bias) > 0
    e = d + 2 if biased else d + 1
    raised = q.dtype.type(LOG2E)
    i = next_tile(ticket)
    while i >= 0:
        for job in range(i * group, min((i + 1) * group, len(parts) * num_heads)):
            top, bottom, first, last, head, wide, tiles = _job(parts, job, num_heads, lanes)
            left, right = head * d, (head + 1) * d
            n, m = bottom - top, last - first
            bias = key_bias[first:last]
            keys, start = _carve(space, 0, m, e)
            values, start = _carve(space, start, m, d + 1)
            dkeys, start = _carve(space, start, m, padded)
            dvalues, start = _carve(space, start, m, padded)
            rows, start = _carve(space, start, tiles * wide, padded)
            drows, start = _carve(space, start, tiles * wide, padded)
            panels, start = _carve(space, start, tiles, e * wide)
            dpanels, start = _carve(space, start, tiles, (d + 1) * wide)
            dqueries, start = _carve(space, start, tiles, d * wide)
            logits, start = _carve(space, start, 1, min(KEYS, m) * wide)
            dlogits, start = _carve(space, start, 1, min(KEYS, m) * wide)
            _load_keys(k[first:last, at[1] + left : at[1] + right], bias, True, keys)
            _load_keys(v[first:last, at[2] + left : at[2] + right], key_bias[:0], True, values)
            dkeys[:] = 0
            dvalues[:] = 0
            for t in range(tiles):
                a, b, w = _tile(t, n, wide, lanes)
                _load_rows(q[top + a : top + b, at[0] + left : at[0] + right], rows[a : a + w])
                _load_rows(dy[top + a : top + b, left:right], drows[a : a + w])
                panel, dpanel = view(panels[t], 0, e, w), view(dpanels[t], 0, d + 1, w)
                # the very numbers of the forward pass: large logits would else miss their level by their own rounding
                _load_queries(rows[a : a + w, :d], scale * raised, biased, panel)
                _scale(rows[a : a + w], scale)
                turn(drows[a : a + w, :d], dpanel[:d])
                panel[d], dpanel[d] = 0, 0
                for r in range(b - a):
                    panel[d, r] = -level[head, top + a + r]
                    # Σ_keys w · dw = y · dy
                    row, drow, mean = y[top + a + r, left:right], dy[top + a + r, left:right], q.dtype.type(0)
                    for c in range(d):
                        mean += row[c] * drow[c]
                    dpanel[d, r] = -mean
            for from_key in range(0, max(m, 1), KEYS):
                to_key = min(from_key + KEYS, m)
                count = to_key - from_key
                for t in range(tiles):
                    a, b, w = _tile(t, n, wide, lanes)
                    weights, dweights = view(logits[0], 0, count, w), view(dlogits[0], 0, count, w)
                    # 1. logits once more, less the level of their query
                    _multiply(keys[from_key:to_key], view(panels[t], 0, e, w), weights, False)
                    # 3. the weighted mean; less Σ w · dw, for only differences from it pass the softmax
                    dpanel = view(dpanels[t], 0, d + 1, w)
                    _multiply(values[from_key:to_key], dpanel, dweights, False)
                    # 2. softmax, once more and back
                    _softmax_backward(weights, dweights)
                    # 3. the values
                    _multiply(weights[:, : b - a], drows[a:b], dvalues[from_key:to_key], True)
                    # 1. logits
                    _multiply(dweights[:, : b - a], rows[a:b], dkeys[from_key:to_key], True)
                    dquery = view(dqueries[t], 0, d, w)
                    _multiply(keys[from_key:to_key, :d].T, dweights, dquery, from_key > 0)
            for t in range(tiles):
                a, b, w = _tile(t, n, wide, lanes)
                _scale(view(dqueries[t], 0, d, w), scale)
                turn(view(dqueries[t], 0, d, w), rows[a : a + w, :d])
                copy_rows(rows[a:b, :d], dq[top + a : top + b, dat[0] + left : dat[0] + right])
            copy_rows(dkeys[:, :d], dk[first:last, dat[1] + left : dat[1] + right])
            copy_rows(dvalues[:, :d], dv[first:last, dat[2] + left : dat[2] + right])
        i = next_tile(ticket)


def attention_backward(dy: Array, cache: AttentionCache) -> tuple[Array, Array, Array]:
    """Returns dq, dk, dv. The weights are formed again: storing A·n·m of them costs more than it saves."""
    q, k, v, query_offsets, key_offsets, num_heads, key_bias, y, level = cache
    dy, D, dtype = np.ascontiguousarray(dy), q.shape[1], q.dtype
    d, lanes = D // num_heads, VECTOR // q.itemsize
    scale = dtype.type(1 / math.sqrt(d))
    parts = _parts(query_offsets, key_offsets, VECTORS * lanes, max(1, len(q)))
    everyone_asks = len(parts) == len(query_offsets) - 1
    make = np.empty if everyone_asks else np.zeros  # keys nobody asks get no gradient
    if len(q) == len(k):  # side by side, as the gradient of one qkv
        together = make((len(q), 3 * D), dtype)
        dq, dk, dv = (together[:, i * D : (i + 1) * D] for i in range(3))
    else:
        dq, together = np.empty(q.shape, dtype), make((len(k), 2 * D), dtype)
        dk, dv = together[:, :D], together[:, D:]
    padded = -(-d // lanes) * lanes
    numbers = _room(parts, lanes, 2 * d + 3 + 2 * padded, 0, 2 * padded + 3 * d + 3, 2)
    jobs = len(parts) * num_heads
    group = max(1, -(-jobs // (FEW * num_threads())))
    (matrices, at), (dmatrices, dat) = columns_of(q, k, v), columns_of(dq, dk, dv)
    work = (dy, y, *matrices, at, level, parts, group, num_heads, scale, _or_empty(key_bias, dtype))
    run(_attend_backward, -(-jobs // group), *work, *dmatrices, dat, space=(numbers, dtype))
    return dq, dk, dv
