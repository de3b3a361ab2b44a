"""The losses in NumPy. The maths is in ``__init__.py``."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refvt.array import Array


class CrossEntropyCache(NamedTuple):
    """What the backward of the cross-entropy reads."""

    probability: Array  # softmax(logits) [B, K]
    target: Array  # smoothed [B, K]


def cross_entropy_forward(
    logits: Array, targets: Array, label_smoothing: float = 0.0, keep: bool = True
) -> tuple[Array, CrossEntropyCache | None]:
    """Cross-entropy: the mean over clips of −Σ target · log softmax(logits).

    logits [B, K], targets [B] int or [B, K] soft → scalar.
    """
    B, K = logits.shape
    # 1. targets as rows, smoothed
    target = np.eye(K, dtype=logits.dtype)[targets] if targets.ndim == 1 else targets.astype(logits.dtype)
    target = (1 - label_smoothing) * target + label_smoothing / K  # [B, K]
    # 2. log-softmax
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probability = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))  # [B, K]
    # 3. mean over clips
    loss = np.asarray(-(target * log_probability).sum() / B, dtype=logits.dtype)
    return loss, CrossEntropyCache(np.exp(log_probability), target) if keep else None


def cross_entropy_backward(dloss: Array, cache: CrossEntropyCache) -> Array:
    """Returns dlogits."""
    probability, target = cache
    # passes 3–2: the softmax minus the target, for targets of any sum
    dlogits = probability * target.sum(axis=1, keepdims=True) - target
    return np.asarray(dlogits * (dloss / len(target)))


class PonderLossCache(NamedTuple):
    """What the backward of the ponder loss reads."""

    shape: tuple[int, ...]  # (B, N)
    weights: Array | None  # [B, N]


def ponder_loss_forward(
    ponder: Array, weights: Array | None = None, keep: bool = True
) -> tuple[Array, PonderLossCache | None]:
    """Ponder loss: the mean of w · ρ over tokens and clips. ponder [B, N], weights [B, N] (None: 1) → scalar."""
    # 1. the weights, 2. the mean
    weighed = ponder if weights is None else weights * ponder
    return np.asarray(weighed.mean(), dtype=ponder.dtype), PonderLossCache(ponder.shape, weights) if keep else None


def ponder_loss_backward(dloss: Array, cache: PonderLossCache) -> Array:
    """Returns dponder."""
    # 2. every token has the same share in the mean
    dweighed = np.full(cache.shape, dloss / np.prod(cache.shape), dtype=np.asarray(dloss).dtype)
    # 1. the weights
    return dweighed if cache.weights is None else (cache.weights * dweighed).astype(dweighed.dtype)


def motion_loss_forward(logits: Array, moving: Array, keep: bool = True) -> tuple[Array, CrossEntropyCache | None]:
    """Motion loss: two-class cross-entropy, no smoothing.

    logits [B, 2], moving [B] int (1: moving, 0: static twin) → scalar.
    """
    # 1. the same cross-entropy
    return cross_entropy_forward(logits, moving, 0.0, keep)


def motion_loss_backward(dloss: Array, cache: CrossEntropyCache) -> Array:
    """Returns dlogits."""
    # 1. the same cross-entropy
    return cross_entropy_backward(dloss, cache)
