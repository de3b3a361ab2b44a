"""Scores, selection and fusion in Numba: one frame at a time."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from refvt.array import Array
from refvt.backends.jit.functions import exp
from refvt.backends.jit.kernel import kernel
from refvt.backends.jit.layouts import columns_of, contiguous
from refvt.backends.jit.threads import next_tile, run
from refvt.ops.glimpser import check_k, equal_lengths


class ClsScoresCache(NamedTuple):
    """What the backward of the scores reads."""

    q: Array  # [segments·(1+S), D]
    k: Array  # [segments·(1+S), D]
    num_heads: int
    weights: Array  # [segments, A, 1+S]


@kernel
def _segment_scores(
    q: Array, k: Array, at: tuple[int, ...], first: int, d: int, scale: Any, weights: Array, scores: Array
) -> None:
    """One segment, whose CLS is row ``first`` → weights [A, 1+S], scores [S].

    q, k [segments·(1+S), …] are matrices that contain q and k as columns, from the columns ``at`` on.
    """
    A, n = weights.shape
    zero = k.dtype.type(0)
    for j in range(n - 1):
        scores[j] = zero
    for a in range(A):
        row, query = weights[a], q[first, at[0] + a * d : at[0] + (a + 1) * d]
        # 1. the logits of the CLS row
        highest = k.dtype.type(-np.inf)
        for j in range(n):
            key, dot = k[first + j, at[1] + a * d : at[1] + (a + 1) * d], zero
            for c in range(d):
                dot += query[c] * key[c]
            row[j] = dot * scale
            highest = max(highest, row[j])
        # 2. softmax over all keys, CLS included
        total = zero
        for j in range(n):
            row[j] = exp(row[j] - highest)
            total += row[j]
        for j in range(n):
            row[j] /= total
        # 3. average over heads, leave CLS out
        for j in range(1, n):
            scores[j - 1] += row[j]
    for j in range(n - 1):
        scores[j] /= k.dtype.type(A)


@kernel
def _scores(
    ticket: Any, q: Array, k: Array, at: tuple[int, ...], d: int, scale: Any, weights: Array, scores: Array
) -> None:
    """weights [segments, A, 1+S], scores [segments, S] ← q, k as in ``_segment_scores``; a tile is a segment."""
    i = next_tile(ticket)
    while i >= 0:
        # passes 1–3
        _segment_scores(q, k, at, i * weights.shape[2], d, scale, weights[i], scores[i])
        i = next_tile(ticket)


def cls_scores_forward(
    q: Array, k: Array, offsets: Array, num_heads: int, keep: bool = True
) -> tuple[Array, ClsScoresCache | None]:
    """Scores: the attention that CLS pays to each patch of its segment, averaged over heads.

    q, k [segments·(1+S), D], the first row of a segment being CLS; offsets [segments+1] int64 → scores [segments, S].
    ValueError if the segments are not of one length. Source: HaltingVT section 3.2, EViT equation 3.
    """
    lengths = equal_lengths(offsets)
    segments, n = len(lengths), int(lengths[0])
    d = k.shape[1] // num_heads
    weights = np.empty((segments, num_heads, n), k.dtype)
    scores = np.empty((segments, n - 1), k.dtype)
    # passes 1–3
    matrices, at = columns_of(q, k)
    run(_scores, segments, *matrices, at, d, k.dtype.type(1 / math.sqrt(d)), weights, scores)
    return scores, ClsScoresCache(q, k, num_heads, weights) if keep else None


@kernel
def _segment_scores_backward(
    dscores: Array, q: Array, k: Array, weights: Array, scale: Any, dq: Array, dk: Array
) -> None:
    """One segment: dq, dk [1+S, D], zero before, ← dscores [S], q [D] of CLS, k [1+S, D], weights [A, 1+S]."""
    n, D = k.shape
    A = weights.shape[0]
    d = D // A
    for a in range(A):
        # 3. each head gave 1/A of the score; the weight on CLS itself was not read
        mean = k.dtype.type(0)
        for j in range(1, n):
            mean += weights[a, j] * dscores[j - 1] / k.dtype.type(A)
        for j in range(n):
            dweight = k.dtype.type(0)
            if j > 0:
                dweight = dscores[j - 1] / k.dtype.type(A)
            # 2. softmax
            dlogit = scale * weights[a, j] * (dweight - mean)
            # 1. logits
            for c in range(a * d, (a + 1) * d):
                dq[0, c] += dlogit * k[j, c]
                dk[j, c] = dlogit * q[c]


@kernel
def _scores_backward(
    ticket: Any, dscores: Array, q: Array, k: Array, weights: Array, scale: Any, dq: Array, dk: Array
) -> None:
    """dq, dk [segments·(1+S), D] ← dscores [segments, S], q, k, weights [segments, A, 1+S]; a tile is a segment."""
    n = weights.shape[2]
    i = next_tile(ticket)
    while i >= 0:
        a, b = i * n, (i + 1) * n
        # passes 3–1
        _segment_scores_backward(dscores[i], q[a], k[a:b], weights[i], scale, dq[a:b], dk[a:b])
        i = next_tile(ticket)


def cls_scores_backward(dscores: Array, cache: ClsScoresCache) -> tuple[Array, Array]:
    """Returns dq (zero but for the CLS rows) and dk."""
    q, k, num_heads, weights = contiguous(cache.q), contiguous(cache.k), cache.num_heads, cache.weights
    scale = k.dtype.type(1 / math.sqrt(k.shape[1] // num_heads))
    dq, dk = np.zeros(q.shape, q.dtype), np.zeros(k.shape, k.dtype)
    # passes 3–1
    run(_scores_backward, len(weights), contiguous(dscores), q, k, weights, scale, dq, dk)
    return dq, dk


@kernel
def _choose(ticket: Any, scores: Array, kept: Array) -> None:
    """kept [segments, k] int64 ← scores [segments, S]; a tile is a segment."""
    S, k = scores.shape[1], kept.shape[1]
    i = next_tile(ticket)
    while i >= 0:
        taken = np.zeros(S, np.bool_)
        for rank in range(k):
            # 1. the highest score not yet taken; > and not ≥, so that the lower index wins a tie
            best = -1
            for s in range(S):
                if not taken[s] and (best < 0 or scores[i, s] > scores[i, best]):
                    best = s
            taken[best] = True
            kept[i, rank] = best
        i = next_tile(ticket)


def top_k(scores: Array, k: int) -> Array:
    """Indices of the k highest scores of each row, in descending order; equal scores: the lower index first.

    scores [segments, S] → kept [segments, k] int64. A decision: it has no backward. ValueError unless 1 ≤ k ≤ S.
    """
    check_k(scores, k)
    kept = np.empty((len(scores), k), np.int64)
    # pass 1
    run(_choose, len(scores), contiguous(scores), kept)
    return kept


class FuseDroppedCache(NamedTuple):
    """What the backward of the fusion reads."""

    x: Array  # [segments·S, D]
    scores: Array  # [segments, S]
    dropped: Array  # bool [segments, S]


@kernel
def _fuse(ticket: Any, x: Array, scores: Array, kept: Array, dropped: Array, fused: Array) -> None:
    """dropped [segments, S], fused [segments, D] ← x [segments·S, D], scores, kept [segments, k]; a tile: a segment."""
    S = scores.shape[1]
    i = next_tile(ticket)
    while i >= 0:
        # 1. which patches were dropped
        dropped[i] = True
        for rank in range(kept.shape[1]):
            dropped[i, kept[i, rank]] = False
        # 2. the weighted sum
        fused[i] = 0
        for s in range(S):
            if dropped[i, s]:
                for c in range(x.shape[1]):
                    fused[i, c] += scores[i, s] * x[i * S + s, c]
        i = next_tile(ticket)


def fuse_dropped_forward(
    x: Array, scores: Array, kept: Array, keep: bool = True
) -> tuple[Array, FuseDroppedCache | None]:
    """Fuse the dropped patches of each segment: their sum, with their scores as weights (which are not normalised).

    x [segments·S, D], scores [segments, S], kept [segments, k] int64 → fused [segments, D]; zero if none is dropped.
    Source: EViT equation 4.
    """
    x, scores, (segments, S) = contiguous(x), contiguous(scores), scores.shape
    dropped = np.empty((segments, S), np.bool_)
    fused = np.empty((segments, x.shape[1]), x.dtype)
    # passes 1–2
    run(_fuse, segments, x, scores, contiguous(kept), dropped, fused)
    return fused, FuseDroppedCache(x, scores, dropped) if keep else None


@kernel
def _fuse_backward(
    ticket: Any, dfused: Array, x: Array, scores: Array, dropped: Array, dx: Array, dscores: Array
) -> None:
    """dx [segments·S, D], dscores [segments, S] ← dfused [segments, D], x, scores, dropped; a tile is a segment."""
    S = scores.shape[1]
    i = next_tile(ticket)
    while i >= 0:
        for s in range(S):
            # passes 2–1: the weighted sum; the choice itself carries no gradient
            dscores[i, s] = 0
            for c in range(x.shape[1]):
                dx[i * S + s, c] = scores[i, s] * dfused[i, c] if dropped[i, s] else 0
                if dropped[i, s]:
                    dscores[i, s] += dfused[i, c] * x[i * S + s, c]
        i = next_tile(ticket)


def fuse_dropped_backward(dfused: Array, cache: FuseDroppedCache) -> tuple[Array, Array]:
    """Returns dx and dscores."""
    x, scores, dropped = cache
    dx, dscores = np.empty_like(x), np.empty_like(scores)
    # passes 2–1
    run(_fuse_backward, len(scores), contiguous(dfused), x, scores, dropped, dx, dscores)
    return dx, dscores
