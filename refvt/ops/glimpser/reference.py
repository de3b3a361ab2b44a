"""Scores, selection and fusion in NumPy. The maths is in ``__init__.py``."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from refvt.array import Array
from refvt.ops.glimpser import check_k, equal_lengths


class ClsScoresCache(NamedTuple):
    """What the backward of the scores reads."""

    q_cls: Array  # [segments, A, d]
    keys: Array  # [segments, 1+S, A, d]
    weights: Array  # [segments, A, 1+S]


def cls_scores_forward(
    q: Array, k: Array, offsets: Array, num_heads: int, keep: bool = True
) -> tuple[Array, ClsScoresCache | None]:
    """Scores: the attention that CLS pays to each patch of its segment, averaged over heads.

    q, k [segments·(1+S), D], the first row of a segment being CLS; offsets [segments+1] int64 → scores [segments, S].
    ValueError if the segments are not of one length. Source: HaltingVT section 3.2, EViT equation 3.
    """
    lengths = equal_lengths(offsets)
    keys = k.reshape(len(lengths), lengths[0], num_heads, -1)  # [segments, 1+S, A, d]
    q_cls = q[offsets[:-1]].reshape(len(lengths), num_heads, -1)  # [segments, A, d]
    # 1. the logits of the CLS row
    logits = np.einsum("fad,fnad->fan", q_cls, keys) * (1 / math.sqrt(q_cls.shape[-1]))  # [segments, A, 1+S]
    # 2. softmax over all keys, CLS included
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    # 3. average over heads, leave CLS out
    scores = weights.mean(axis=1)[:, 1:].copy()  # [segments, S]
    return scores, ClsScoresCache(q_cls, keys, weights) if keep else None


def cls_scores_backward(dscores: Array, cache: ClsScoresCache) -> tuple[Array, Array]:
    """Returns dq (zero but for the CLS rows) and dk."""
    q_cls, keys, weights = cache
    segments, n, A, d = keys.shape
    # 3. each head gave 1/A of the score; the weight on CLS itself was not read
    dweights = np.zeros((segments, 1, n), dtype=dscores.dtype)
    dweights[:, 0, 1:] = dscores / A
    # 2. softmax
    dlogits = weights * (dweights - (weights * dweights).sum(axis=-1, keepdims=True))  # [segments, A, 1+S]
    # 1. logits
    dlogits *= 1 / math.sqrt(d)
    dq = np.zeros((segments, n, A * d), dtype=dscores.dtype)
    dq[:, 0] = np.einsum("fan,fnad->fad", dlogits, keys).reshape(segments, A * d)
    dk = np.einsum("fan,fad->fnad", dlogits, q_cls)
    return dq.reshape(-1, A * d), dk.reshape(-1, A * d)


def top_k(scores: Array, k: int) -> Array:
    """Indices of the k highest scores of each row, in descending order; equal scores: the lower index first.

    scores [segments, S] → kept [segments, k] int64. A decision: it has no backward. ValueError unless 1 ≤ k ≤ S.
    """
    check_k(scores, k)
    # 1. a stable ascending sort of −score is a descending sort that keeps ties in index order
    return np.argsort(-scores, axis=1, kind="stable")[:, :k].astype(np.int64)


class FuseDroppedCache(NamedTuple):
    """What the backward of the fusion reads."""

    patches: Array  # [segments, S, D]
    scores: Array  # [segments, S]
    dropped: Array  # bool [segments, S]


def fuse_dropped_forward(
    x: Array, scores: Array, kept: Array, keep: bool = True
) -> tuple[Array, FuseDroppedCache | None]:
    """Fuse the dropped patches of each segment: their sum, with their scores as weights (which are not normalised).

    x [segments·S, D], scores [segments, S], kept [segments, k] int64 → fused [segments, D]; zero if none is dropped.
    Source: EViT equation 4.
    """
    patches = x.reshape(*scores.shape, -1)  # [segments, S, D]
    # 1. which patches were dropped
    dropped = np.ones(scores.shape, dtype=bool)
    np.put_along_axis(dropped, kept, False, axis=1)
    # 2. the weighted sum
    fused = np.einsum("fs,fsd->fd", scores * dropped, patches)
    return fused, FuseDroppedCache(patches, scores, dropped) if keep else None


def fuse_dropped_backward(dfused: Array, cache: FuseDroppedCache) -> tuple[Array, Array]:
    """Returns dx and dscores."""
    patches, scores, dropped = cache
    # passes 2–1: the weighted sum; the choice itself carries no gradient
    dx = (scores * dropped)[:, :, None] * dfused[:, None, :]
    dscores = np.einsum("fsd,fd->fs", patches, dfused) * dropped
    return dx.reshape(-1, dfused.shape[1]), dscores
