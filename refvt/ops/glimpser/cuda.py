"""Scores, selection and fusion on the GPU. Selection needs no sort: every patch computes its own rank."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from refvt.array import Array
from refvt.backends.cuda.arguments import IndexMatrix, Int, Matrix, Real
from refvt.backends.cuda.device_array import empty
from refvt.backends.cuda.kernel import kernel
from refvt.backends.cuda.sizes import WARP
from refvt.backends.cuda.threads import cell, lane_and_row, warp_max, warp_sum
from refvt.backends.cuda.upload import upload
from refvt.ops.glimpser import check_k, equal_lengths


class ClsScoresCache(NamedTuple):
    q: Array  # [segments·(1+S), D]
    k: Array  # [segments·(1+S), D]
    weights: Array  # [segments*A, 1+S]
    num_heads: int


@kernel
def _weights(q: Matrix, k: Matrix, num_heads: Int, scale: Real, weights: Matrix) -> None:
    """q, k [segments·n, D] → weights [segments·A, n], the CLS rows of the softmax; a warp per segment and head."""
    lane, row = lane_and_row()
    rows, n = weights.shape
    d = q.shape[1] // num_heads
    row_read = min(row, rows - 1)
    first, left = row_read // num_heads * n, row_read % num_heads * d
    number = q.dtype.type
    # 1. the logits of the CLS row
    highest = number(-math.inf)
    for j in range(lane, n, WARP):
        logit = number(0)
        for c in range(d):
            logit += q[first, left + c] * k[first + j, left + c]
        logit *= scale
        if row < rows:
            weights[row, j] = logit
        highest = max(highest, logit)
    # 2. softmax over all keys, CLS included
    highest = warp_max(highest)
    total = number(0)
    if row < rows:
        for j in range(lane, n, WARP):
            weight = math.exp(weights[row, j] - highest)
            weights[row, j] = weight
            total += weight
    total = warp_sum(total)
    if row < rows:
        for j in range(lane, n, WARP):
            weights[row, j] /= total


@kernel
def _mean_of_heads(weights: Matrix, num_heads: Int, scores: Matrix) -> None:
    """weights [segments·A, 1+S] → scores [segments, S]; one thread per element."""
    f, s = cell()
    if f < scores.shape[0] and s < scores.shape[1]:
        # 3. average over heads, leave CLS out
        total = weights.dtype.type(0)
        for a in range(num_heads):
            total += weights[f * num_heads + a, 1 + s]
        scores[f, s] = total / weights.dtype.type(num_heads)


def cls_scores_forward(
    q: Array, k: Array, offsets: Array, num_heads: int, keep: bool = True
) -> tuple[Array, ClsScoresCache | None]:
    """As ``reference``: the attention weights of CLS on the patches of its segment, averaged over heads.

    q, k [segments·(1+S), D], the first row of a segment being CLS; offsets [segments+1] int64 (host) → scores
    [segments, S]. ValueError if the segments are not of one length.
    """
    lengths = equal_lengths(offsets)
    segments, n = len(lengths), int(lengths[0])
    weights = empty((segments * num_heads, n), q.dtype)  # [segments*A, 1+S]
    # passes 1–2
    _weights.warps(segments * num_heads, q, k, num_heads, q.dtype.type(1 / math.sqrt(q.shape[1] // num_heads)), weights)
    # 3. average over heads, leave CLS out
    scores = empty((segments, n - 1), q.dtype)  # [segments, S]
    _mean_of_heads.cells(segments, n - 1, weights, num_heads, scores)
    return scores, ClsScoresCache(q, k, weights, num_heads) if keep else None


@kernel
def _logits_backward(dscores: Matrix, weights: Matrix, num_heads: Int, scale: Real, dlogits: Matrix) -> None:
    """dscores [segments, S], weights [segments·A, 1+S] → dlogits [segments·A, 1+S]; a warp per segment and head."""
    lane, row = lane_and_row()
    rows, n = weights.shape
    row_read = min(row, rows - 1)
    f = row_read // num_heads
    number = weights.dtype.type
    # 3. each head gave 1/A of the score; the weight on CLS itself was not read
    mean = number(0)
    for j in range(lane, n, WARP):
        if j > 0:
            mean += weights[row_read, j] * (dscores[f, j - 1] / number(num_heads))
    mean = warp_sum(mean)
    if row < rows:
        for j in range(lane, n, WARP):
            dweight = dscores[f, j - 1] / number(num_heads) if j > 0 else number(0)
            # 2. softmax
            dlogits[row, j] = scale * weights[row, j] * (dweight - mean)


@kernel
def _rows_backward(dlogits: Matrix, q: Matrix, k: Matrix, num_heads: Int, dq: Matrix, dk: Matrix) -> None:
    """dlogits [segments·A, n], q, k [segments·n, D] → dq, dk [segments·n, D]; one thread per element."""
    r, c = cell()
    if r < q.shape[0] and c < q.shape[1]:
        n, d = dlogits.shape[1], q.shape[1] // num_heads
        first, j = r - r % n, r % n
        row = r // n * num_heads + c // d
        # 1. logits
        dk[r, c] = dlogits[row, j] * q[first, c]
        total = q.dtype.type(0)
        if j == 0:
            for other in range(n):
                total += dlogits[row, other] * k[first + other, c]
        dq[r, c] = total


def cls_scores_backward(dscores: Array, cache: ClsScoresCache) -> tuple[Array, Array]:
    """As ``reference``: dq (zero except for the CLS rows) and dk."""
    q, k, weights, num_heads = cache
    dlogits = empty(weights.shape, weights.dtype)  # [segments*A, 1+S]
    # passes 3–2
    scale = q.dtype.type(1 / math.sqrt(q.shape[1] // num_heads))
    _logits_backward.warps(weights.shape[0], dscores, weights, num_heads, scale, dlogits)
    # 1. logits
    dq, dk = empty(q.shape, q.dtype), empty(k.shape, k.dtype)
    _rows_backward.cells(q.shape[0], q.shape[1], dlogits, q, k, num_heads, dq, dk)
    return dq, dk


@kernel
def _rank(scores: Matrix, kept: IndexMatrix) -> None:
    """scores [segments, S] → kept [segments, k]; one thread per patch."""
    f, s = cell()
    if f < scores.shape[0] and s < scores.shape[1]:
        # 1. the rank of a patch is the number of patches of higher score, or of equal score and lower index; NaN ranks
        # behind all numbers, so that all ranks are distinct even then
        rank, score = 0, scores[f, s]
        for other in range(scores.shape[1]):
            its = scores[f, other]
            higher = its > score or (score != score and its == its)
            equal = its == score or (score != score and its != its)
            if higher or (equal and other < s):
                rank += 1
        if rank < kept.shape[1]:
            kept[f, rank] = s


def top_k(scores: Array, k: int) -> Array:
    """As ``reference``: the k highest scores of each row, in descending order; equal scores: the lower index first.

    scores [segments, S] → kept [segments, k] int64. ValueError unless 1 ≤ k ≤ S. S² comparisons per row, all in
    parallel.
    """
    check_k(scores, k)
    kept = empty((scores.shape[0], k), np.int64)
    # 1. rank the patches
    _rank.cells(scores.shape[0], scores.shape[1], scores, kept)
    return kept


class FuseDroppedCache(NamedTuple):
    x: Array  # [segments·S, D]
    weights: Array  # the scores of the dropped patches, 0 for the kept [segments, S]
    dropped: Array  # 1.0 or 0.0 [segments, S]


@kernel
def _drop_weights(scores: Matrix, kept: IndexMatrix, weights: Matrix, dropped: Matrix) -> None:
    """scores [segments, S], kept [segments, k] → weights, dropped [segments, S]; one thread per patch."""
    f, s = cell()
    if f < scores.shape[0] and s < scores.shape[1]:
        # 1. which patches are dropped
        out = scores.dtype.type(1)
        for rank in range(kept.shape[1]):
            if kept[f, rank] == s:
                out = scores.dtype.type(0)
        dropped[f, s] = out
        weights[f, s] = out * scores[f, s]


@kernel
def _fuse(x: Matrix, weights: Matrix, fused: Matrix) -> None:
    """x [segments·S, D], weights [segments, S] → fused [segments, D]; one thread per element."""
    f, c = cell()
    if f < fused.shape[0] and c < fused.shape[1]:
        # 2. the weighted sum
        S = weights.shape[1]
        total = x.dtype.type(0)
        for s in range(S):
            total += weights[f, s] * x[f * S + s, c]
        fused[f, c] = total


def fuse_dropped_forward(
    x: Array, scores: Array, kept: Array, keep: bool = True
) -> tuple[Array, FuseDroppedCache | None]:
    """As ``reference``: the dropped patches of each segment, summed with their scores as weights (not normalised).

    x [segments·S, D], scores [segments, S], kept [segments, k] int64 (host or device) → fused [segments, D]; zero if
    none is dropped.
    """
    segments, S = scores.shape
    weights, dropped = empty((segments, S), x.dtype), empty((segments, S), x.dtype)
    # 1. which patches are dropped
    _drop_weights.cells(segments, S, scores, upload(kept, np.int64), weights, dropped)
    # 2. the weighted sum
    fused = empty((segments, x.shape[1]), x.dtype)
    _fuse.cells(segments, x.shape[1], x, weights, fused)
    return fused, FuseDroppedCache(x, weights, dropped) if keep else None


@kernel
def _fuse_backward(dfused: Matrix, x: Matrix, weights: Matrix, dropped: Matrix, dx: Matrix, dscores: Matrix) -> None:
    """dfused [segments, D], x [segments·S, D], weights, dropped [segments, S] → dx, dscores; a warp per row of x."""
    lane, r = lane_and_row()
    S = weights.shape[1]
    row = min(r, x.shape[0] - 1)
    f, s = row // S, row % S
    # passes 2–1: the weighted sum; the choice itself has no gradient
    product = x.dtype.type(0)
    for c in range(lane, x.shape[1], WARP):
        product += x[row, c] * dfused[f, c]
        if r < x.shape[0]:
            dx[row, c] = weights[f, s] * dfused[f, c]
    product = warp_sum(product)
    if lane == 0 and r < x.shape[0]:
        dscores[f, s] = product * dropped[f, s]


def fuse_dropped_backward(dfused: Array, cache: FuseDroppedCache) -> tuple[Array, Array]:
    """As ``reference``: dx and dscores."""
    x, weights, dropped = cache
    dx, dscores = empty(x.shape, x.dtype), empty(weights.shape, x.dtype)
    # passes 2–1
    _fuse_backward.warps(x.shape[0], dfused, x, weights, dropped, dx, dscores)
    return dx, dscores
