"""The losses in Numba, on one thread: they read only a few numbers per clip. The ponder loss, a mean, is NumPy's."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refvt.array import Array
from refvt.backends.jit.functions import exp
from refvt.backends.jit.kernel import kernel
from refvt.backends.jit.layouts import contiguous
from refvt.ops.losses.reference import ponder_loss_backward, ponder_loss_forward

__all__ = [
    "cross_entropy_backward",
    "cross_entropy_forward",
    "motion_loss_backward",
    "motion_loss_forward",
    "ponder_loss_backward",
    "ponder_loss_forward",
]


class CrossEntropyCache(NamedTuple):
    """What the backward of the cross-entropy reads."""

    probability: Array  # softmax(logits) [B, K]
    target: Array  # smoothed [B, K]


@kernel
def _cross_entropy(logits: Array, target: Array, smoothing: Any, probability: Array) -> Any:
    """The loss; logits [B, K], target [B, K], smoothed in place, → probability [B, K]."""
    B, K = logits.shape
    one = logits.dtype.type(1)
    loss = logits.dtype.type(0)
    for b in range(B):
        # 1. smoothed targets
        for c in range(K):
            target[b, c] = (one - smoothing) * target[b, c] + smoothing / logits.dtype.type(K)
        # 2. log-softmax
        highest = logits[b, 0]
        for c in range(1, K):
            highest = max(highest, logits[b, c])
        total = logits.dtype.type(0)
        for c in range(K):
            probability[b, c] = exp(logits[b, c] - highest)
            total += probability[b, c]
        log_total = np.log(total)
        for c in range(K):
            loss -= target[b, c] * (logits[b, c] - highest - log_total)
            probability[b, c] /= total
    # 3. mean over clips
    return loss / B


def cross_entropy_forward(
    logits: Array, targets: Array, label_smoothing: float = 0.0, keep: bool = True
) -> tuple[Array, CrossEntropyCache | None]:
    """Cross-entropy: the mean over clips of −Σ target · log softmax(logits).

    logits [B, K], targets [B] int or [B, K] soft → scalar.
    """
    B, K = logits.shape
    # 1. targets as rows; the kernel smooths them
    target = np.zeros((B, K), dtype=logits.dtype)
    if targets.ndim == 1:
        target[np.arange(B), targets] = 1
    else:
        target[...] = targets
    probability = np.empty_like(target)
    # passes 1–3
    loss = _cross_entropy(contiguous(logits), target, logits.dtype.type(label_smoothing), probability)
    return np.asarray(loss, dtype=logits.dtype), CrossEntropyCache(probability, target) if keep else None


@kernel
def _cross_entropy_backward(dmean: Any, probability: Array, target: Array, dlogits: Array) -> None:
    """dlogits [B, K] ← dmean · (probability · Σ target − target), probability and target [B, K]."""
    B, K = target.shape
    for b in range(B):
        total = target.dtype.type(0)
        for c in range(K):
            total += target[b, c]
        # passes 3–2: the softmax minus the target, for targets of any sum
        for c in range(K):
            dlogits[b, c] = dmean * (probability[b, c] * total - target[b, c])


def cross_entropy_backward(dloss: Array, cache: CrossEntropyCache) -> Array:
    """Returns dlogits."""
    probability, target = cache
    dlogits = np.empty_like(target)
    # passes 3–2
    _cross_entropy_backward(target.dtype.type(dloss / len(target)), probability, target, dlogits)
    return dlogits


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
