"""The losses on the GPU: one warp per clip, and the mean over clips added in one order. Results stay on the device."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from refvt.array import Array
from refvt.backends.cuda.arguments import Matrix, Real, Vector
from refvt.backends.cuda.device_array import empty
from refvt.backends.cuda.elementwise import column_sums, fill
from refvt.backends.cuda.kernel import kernel
from refvt.backends.cuda.sizes import WARP
from refvt.backends.cuda.threads import lane_and_row, warp_max, warp_sum
from refvt.backends.cuda.upload import upload


class CrossEntropyCache(NamedTuple):
    probability: Array  # softmax(logits) [B, K]
    target: Array  # smoothed [B, K]


@kernel
def _cross_entropy(logits: Matrix, target: Matrix, probability: Matrix, losses: Vector) -> None:
    """logits, target [B, K] → probability [B, K], losses [B]; a warp per clip."""
    lane, b = lane_and_row()
    B, K = logits.shape
    row = min(b, B - 1)
    number = logits.dtype.type
    # 2. log-softmax
    highest = number(-math.inf)
    for c in range(lane, K, WARP):
        highest = max(highest, logits[row, c])
    highest = warp_max(highest)
    total = number(0)
    for c in range(lane, K, WARP):
        total += math.exp(logits[row, c] - highest)
    lse = math.log(warp_sum(total))
    loss = number(0)
    for c in range(lane, K, WARP):
        log_probability = logits[row, c] - highest - lse
        loss -= target[row, c] * log_probability
        if b < B:
            probability[row, c] = math.exp(log_probability)
    loss = warp_sum(loss)
    if lane == 0 and b < B:
        losses[row] = loss


@kernel
def _divide(total: Vector, count: Real, mean: Vector) -> None:
    """total [1] → mean [1] = total / count; one thread."""
    if cuda.grid(1) == 0:
        mean[0] = total[0] / count


def _mean(values: Array) -> Array:
    """The mean of a contiguous array, as a device array of shape ()."""
    mean = empty(1, values.dtype)
    total = column_sums(values.reshape(-1, 1))
    _divide.each(1, total, values.dtype.type(values.size), mean)
    return mean.reshape(())


def cross_entropy_forward(
    logits: Array, targets: Array, label_smoothing: float = 0.0, keep: bool = True
) -> tuple[Array, CrossEntropyCache | None]:
    """As ``reference``: mean over clips of −Σ target · log softmax(logits).

    logits [B, K]; targets [B] int or [B, K] soft, on the host → a device array of shape ().
    """
    B, K = logits.shape
    # 1. targets as rows, smoothed; labels come from the host
    rows = np.eye(K, dtype=logits.dtype)[targets] if targets.ndim == 1 else np.asarray(targets, dtype=logits.dtype)
    target = upload((1 - label_smoothing) * rows + label_smoothing / K, logits.dtype)  # [B, K]
    probability, losses = empty((B, K), logits.dtype), empty(B, logits.dtype)
    # 2. log-softmax
    _cross_entropy.warps(B, logits, target, probability, losses)
    # 3. mean over clips
    return _mean(losses), CrossEntropyCache(probability, target) if keep else None


@kernel
def _cross_entropy_backward(dmean: Real, probability: Matrix, target: Matrix, dlogits: Matrix) -> None:
    """probability, target [B, K], dmean = dloss / B → dlogits [B, K]; a warp per clip."""
    lane, b = lane_and_row()
    B, K = target.shape
    row = min(b, B - 1)
    total = target.dtype.type(0)
    for c in range(lane, K, WARP):
        total += target[row, c]
    total = warp_sum(total)
    # passes 3–2: the softmax minus the target, for targets of any sum
    if b < B:
        for c in range(lane, K, WARP):
            dlogits[row, c] = dmean * (probability[row, c] * total - target[row, c])


def cross_entropy_backward(dloss: Any, cache: CrossEntropyCache) -> Array:
    """As ``reference``: dlogits. dloss is a number on the host."""
    probability, target = cache
    dlogits = empty(target.shape, target.dtype)
    # passes 3–2
    dmean = target.dtype.type(dloss / target.shape[0])
    _cross_entropy_backward.warps(target.shape[0], dmean, probability, target, dlogits)
    return dlogits


class PonderLossCache(NamedTuple):
    shape: tuple[int, ...]
    dtype: Any
    weights: Array | None  # [B·N]


@kernel
def _weigh(values: Vector, weights: Vector, weighed: Vector) -> None:
    """values, weights [n] → weighed [n] = weights · values; a thread per token."""
    i = cuda.grid(1)
    if i < weighed.size:
        weighed[i] = weights[i] * values[i]


def ponder_loss_forward(
    ponder: Array, weights: Array | None = None, keep: bool = True
) -> tuple[Array, PonderLossCache | None]:
    """As ``reference``: mean of w · ρ. ponder [B, N], weights [B, N] or None → a device array of shape ()."""
    # 1. the weights
    weighed = ponder
    if weights is not None:
        weights = upload(weights, ponder.dtype).reshape(-1)  # [B·N]
        weighed = empty(ponder.size, ponder.dtype)
        _weigh.each(ponder.size, ponder.reshape(-1), weights, weighed)
    # 2. the mean
    return _mean(weighed), PonderLossCache(tuple(ponder.shape), ponder.dtype, weights) if keep else None


def ponder_loss_backward(dloss: Any, cache: PonderLossCache) -> Array:
    """As ``reference``: dponder. dloss is a number on the host."""
    # 2. the mean: every token has the same share
    dweighed = fill(empty(cache.shape, cache.dtype), dloss / math.prod(cache.shape))
    if cache.weights is None:
        return dweighed
    # 1. the weights
    dponder = empty(dweighed.size, cache.dtype)
    _weigh.each(dponder.size, dweighed.reshape(-1), cache.weights, dponder)
    return dponder.reshape(cache.shape)


def motion_loss_forward(logits: Array, moving: Array, keep: bool = True) -> tuple[Array, CrossEntropyCache | None]:
    """As ``reference``: two-class cross-entropy. logits [B, 2], moving [B] int (host) → a device array of shape ()."""
    # 1. the same cross-entropy
    return cross_entropy_forward(logits, moving, 0.0, keep)


def motion_loss_backward(dloss: Any, cache: CrossEntropyCache) -> Array:
    """As ``reference``: dlogits. dloss is a number on the host."""
    # 1. the same cross-entropy
    return cross_entropy_backward(dloss, cache)
