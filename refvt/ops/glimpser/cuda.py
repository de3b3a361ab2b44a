"""Scores, selection and fusion on the GPU. The choice needs no sort: every patch counts who stands before it."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from refvt.array import Array
from refvt.backends.cuda.kernel import WARP, cell, empty, kernel, lane_and_row, upload, warp_max, warp_sum
from refvt.ops.glimpser import check_k, equal_lengths


class ClsScoresCache(NamedTuple):
    q: Array
    k: Array
    weights: Array  # [segments*A, 1+S]
    num_heads: int


@kernel("F F n x F")
def _weights(q, k, num_heads, scale, weights):  # type: ignore[no-untyped-def]
    """One warp per segment and head: the CLS row of its softmax."""
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


@kernel("F n F")
def _mean_of_heads(weights, num_heads, scores):  # type: ignore[no-untyped-def]
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
    """How much attention CLS pays to each patch of its segment, averaged over heads.

    q, k [segments·(1+S), D], the first row of a segment being CLS; offsets [segments+1] int64 (host) → scores
    [segments, S]. ValueError if the segments are not of one length. Source: HaltingVT section 3.2, EViT equation 3.
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


@kernel("F F n x F")
def _logits_backward(dscores, weights, num_heads, scale, dlogits):  # type: ignore[no-untyped-def]
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


@kernel("F F F n F F")
def _rows_backward(dlogits, q, k, num_heads, dq, dk):  # type: ignore[no-untyped-def]
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
    """Returns dq (zero but for the CLS rows) and dk."""
    q, k, weights, num_heads = cache
    dlogits = empty(weights.shape, weights.dtype)  # [segments*A, 1+S]
    # passes 3–2
    scale = q.dtype.type(1 / math.sqrt(q.shape[1] // num_heads))
    _logits_backward.warps(weights.shape[0], dscores, weights, num_heads, scale, dlogits)
    # 1. logits
    dq, dk = empty(q.shape, q.dtype), empty(k.shape, k.dtype)
    _rows_backward.cells(q.shape[0], q.shape[1], dlogits, q, k, num_heads, dq, dk)
    return dq, dk


@kernel("F I")
def _choose(scores, kept):  # type: ignore[no-untyped-def]
    f, s = cell()
    if f < scores.shape[0] and s < scores.shape[1]:
        # 1. my place is the number of patches before me: of higher score, or of the same and a lower index; NaN stands
        # behind all scores, so that every place is taken by somebody even then
        place, mine = 0, scores[f, s]
        for other in range(scores.shape[1]):
            its = scores[f, other]
            higher = its > mine or (mine != mine and its == its)
            alike = its == mine or (mine != mine and its != its)
            if higher or (alike and other < s):
                place += 1
        if place < kept.shape[1]:
            kept[f, place] = s


def top_k(scores: Array, k: int) -> Array:
    """The k highest scores of each row, in descending order; equal scores: the lower index first.

    scores [segments, S] → kept [segments, k] int64. A decision: it has no backward. ValueError unless 1 ≤ k ≤ S.
    S² comparisons a frame, all at once: no thread waits for another, and equal scores cannot be told apart by luck.
    """
    check_k(scores, k)
    kept = empty((scores.shape[0], k), np.int64)
    # pass 1
    _choose.cells(scores.shape[0], scores.shape[1], scores, kept)
    return kept


class FuseDroppedCache(NamedTuple):
    x: Array
    shares: Array  # the scores of the dropped, 0 for the kept [segments, S]
    dropped: Array  # 1.0 or 0.0 [segments, S]


@kernel("F I F F")
def _share(scores, kept, shares, dropped):  # type: ignore[no-untyped-def]
    f, s = cell()
    if f < scores.shape[0] and s < scores.shape[1]:
        # 1. who was dropped
        out = scores.dtype.type(1)
        for place in range(kept.shape[1]):
            if kept[f, place] == s:
                out = scores.dtype.type(0)
        dropped[f, s] = out
        shares[f, s] = out * scores[f, s]


@kernel("F F F")
def _fuse(x, shares, fused):  # type: ignore[no-untyped-def]
    f, c = cell()
    if f < fused.shape[0] and c < fused.shape[1]:
        # 2. the weighted sum
        S = shares.shape[1]
        total = x.dtype.type(0)
        for s in range(S):
            total += shares[f, s] * x[f * S + s, c]
        fused[f, c] = total


def fuse_dropped_forward(
    x: Array, scores: Array, kept: Array, keep: bool = True
) -> tuple[Array, FuseDroppedCache | None]:
    """The dropped patches of each segment, summed with their scores as weights (which are not normalised).

    x [segments·S, D], scores [segments, S], kept [segments, k] int64 → fused [segments, D]; zero if none is dropped.
    Source: EViT equation 4.
    """
    segments, S = scores.shape
    shares, dropped = empty((segments, S), x.dtype), empty((segments, S), x.dtype)
    # 1. who was dropped
    _share.cells(segments, S, scores, upload(kept, np.int64), shares, dropped)
    # 2. the weighted sum
    fused = empty((segments, x.shape[1]), x.dtype)
    _fuse.cells(segments, x.shape[1], x, shares, fused)
    return fused, FuseDroppedCache(x, shares, dropped) if keep else None


@kernel("F F F F F F")
def _fuse_backward(dfused, x, shares, dropped, dx, dscores):  # type: ignore[no-untyped-def]
    lane, r = lane_and_row()
    S = shares.shape[1]
    row = min(r, x.shape[0] - 1)
    f, s = row // S, row % S
    # 2. the weighted sum; 1. the choice itself carries no gradient
    product = x.dtype.type(0)
    for c in range(lane, x.shape[1], WARP):
        product += x[row, c] * dfused[f, c]
        if r < x.shape[0]:
            dx[row, c] = shares[f, s] * dfused[f, c]
    product = warp_sum(product)
    if lane == 0 and r < x.shape[0]:
        dscores[f, s] = product * dropped[f, s]


def fuse_dropped_backward(dfused: Array, cache: FuseDroppedCache) -> tuple[Array, Array]:
    """Returns dx and dscores."""
    x, shares, dropped = cache
    dx, dscores = empty(x.shape, x.dtype), empty(shares.shape, x.dtype)
    # passes 2–1
    _fuse_backward.warps(x.shape[0], dfused, x, shares, dropped, dx, dscores)
    return dx, dscores
