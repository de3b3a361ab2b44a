"""Other people's forms of single operations, forward and backward, in NumPy.

Each function returns an ``Implementation`` with the contract of ``refvt.ops``; the caches are private. Only what
differs from ``refvt/ops/*/reference.py`` is written here: the rest is the reference itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from refvt.array import Array
from refvt.backends import ForwardOnly, Implementation
from refvt.ops.halting.reference import logistic

__all__ = [
    "Activation",
    "activations",
    "layernorm_like",
    "mlp_like",
    "one_of_segment",
    "ponder_loss_like",
    "restrict_scores",
    "scale_logits",
    "sum_segments",
    "top_k_like",
    "weigh_dropped",
    "with_activation",
    "with_targets",
    "without_score_gradient",
]

Activation = tuple[Callable[[Array], Array], Callable[[Array], Array]]  # f and f′


# ---- the MLP and its activation


def activations() -> dict[str, Activation]:
    """f and f′ of the activations that stand in the place of the exact GELU.

    tanh: ½ x (1 + tanh(√(2/π) (x + 0.044715 x³))); sigmoid: x σ(1.702 x); silu: x σ(x); relu: max(x, 0).
    """

    def logistic_unit(slope: float) -> Activation:
        def derivative(x: Array) -> Array:
            s = logistic(slope * x)
            return np.asarray(s + slope * x * s * (1 - s))

        return lambda x: np.asarray(x * logistic(slope * x)), derivative

    root = math.sqrt(2 / math.pi)

    def gelu_tanh(x: Array) -> Array:
        return np.asarray(0.5 * x * (1 + np.tanh(root * (x + 0.044715 * x**3))))

    def gelu_tanh_derivative(x: Array) -> Array:
        t = np.tanh(root * (x + 0.044715 * x**3))
        return np.asarray(0.5 * (1 + t) + 0.5 * x * (1 - t * t) * root * (1 + 3 * 0.044715 * x**2))

    return {
        "tanh": (gelu_tanh, gelu_tanh_derivative),
        "sigmoid": logistic_unit(1.702),
        "silu": logistic_unit(1.0),
        "relu": (lambda x: np.maximum(x, 0), lambda x: (x > 0).astype(x.dtype)),
    }


def with_activation(gelu: Implementation, activation: Activation) -> Implementation:
    """``gelu`` with another function in its place."""
    function, derivative = activation

    def forward(x: Array, keep: bool = True) -> Any:
        return function(x), x if keep else None

    def backward(dy: Array, x: Array) -> Array:
        return np.asarray(dy * derivative(x))

    return Implementation(gelu.operation, forward, backward)


def mlp_like(mlp: Implementation, activation: Activation) -> Implementation:
    """``mlp`` with another activation: residual + gain · (f(x W₁ᵀ + b₁) W₂ᵀ + b₂)."""
    function, derivative = activation

    def forward(
        x: Array,
        fc1_weight: Array,
        fc1_bias: Array,
        fc2_weight: Array,
        fc2_bias: Array,
        residual: Array | None = None,
        gain: Array | None = None,
        keep: bool = True,
    ) -> Any:
        before = x @ fc1_weight.T + fc1_bias  # [n, F]
        y = function(before) @ fc2_weight.T + fc2_bias  # [n, D]
        y = y if gain is None else y * gain[:, None]
        y = y if residual is None else y + residual
        return y, (x, fc1_weight, fc2_weight, before, gain, residual is not None) if keep else None

    def backward(dy: Array, cache: Any) -> Any:
        x, fc1_weight, fc2_weight, before, gain, has_residual = cache
        dproduct = dy if gain is None else dy * gain[:, None]
        dbefore = (dproduct @ fc2_weight) * derivative(before)  # [n, F]
        return (
            dbefore @ fc1_weight,
            dbefore.T @ x,
            dbefore.sum(axis=0),
            dproduct.T @ function(before),
            dproduct.sum(axis=0),
            dy.copy() if has_residual else None,
        )

    return Implementation(mlp.operation, forward, backward)


# ---- LayerNorm


def layernorm_like(
    layernorm: Implementation, eps: float = 1e-6, ddof: int = 0, eps_inside: bool = True
) -> Implementation:
    """``layernorm`` with another eps, with the variance divided by D − ddof, or with 1 / (deviation + eps)."""

    def forward(x: Array, weight: Array, bias: Array, keep: bool = True) -> Any:
        centred = x - x.mean(axis=-1, keepdims=True)  # [n, D]
        variance = np.square(centred).sum(axis=-1, keepdims=True) / (x.shape[-1] - ddof)  # [n, 1]
        s = 1 / np.sqrt(variance + eps) if eps_inside else 1 / (np.sqrt(variance) + eps)
        return centred * s * weight + bias, (centred, variance, s, weight) if keep else None

    def backward(dy: Array, cache: Any) -> Any:
        centred, variance, s, weight = cache
        g = dy * weight
        # ds / dvariance: −s³/2 with eps inside the root, −s²/(2 · deviation) outside; at a row of zeros centred is 0
        slope = -0.5 * s**3 if eps_inside else -0.5 * s**2 / np.where(variance > 0, np.sqrt(variance), 1)
        dvariance = (g * centred).sum(axis=-1, keepdims=True) * slope
        dcentred = g * s + dvariance * 2 * centred / (centred.shape[-1] - ddof)
        dx = dcentred - dcentred.mean(axis=-1, keepdims=True)
        return dx, (dy * centred * s).sum(axis=0), dy.sum(axis=0)

    return Implementation(layernorm.operation, forward, backward)


# ---- attention


def scale_logits(attention: Implementation, factor: Callable[[int, int], float]) -> Implementation:
    """``attention`` or ``cls_scores`` with logits of another scale: q kᵀ/√d · factor(D, num_heads)."""
    operation = attention.operation
    required = [name for name in operation.arguments if name not in operation.optional]
    order = [*required[1:], "num_heads", *operation.optional]  # of the arguments after q

    def forward(q: Array, *rest: Any, keep: bool = True, **named: Any) -> Any:
        given = dict(zip(order, rest, strict=False)) | named
        f = factor(q.shape[1], given["num_heads"])
        y, cache = attention.forward(q * q.dtype.type(f), **given, keep=keep)
        return y, (f, cache) if keep else None

    def backward(dy: Array, cache: Any) -> Any:
        f, inner = cache
        dq, *others = attention.backward(dy, inner)
        return (dq * dq.dtype.type(f), *others)

    return Implementation(operation, forward, backward)


# ---- the Glimpser


def restrict_scores(
    cls_scores: Implementation, heads: slice = slice(None), patches_alone: bool = False, highest: bool = False
) -> Implementation:
    """``cls_scores`` from some heads only, with a softmax over the patches alone, or by the highest of the heads."""
    first = int(patches_alone)  # the first key of the softmax: CLS, or the first patch

    def forward(q: Array, k: Array, offsets: Array, num_heads: int, keep: bool = True) -> Any:
        frames, n = len(offsets) - 1, int(offsets[1] - offsets[0])
        q_cls = q[offsets[:-1]].reshape(frames, num_heads, -1)[:, heads]  # [frames, heads, d]
        keys = k.reshape(frames, n, num_heads, -1)[:, first:, heads]  # [frames, keys, heads, d]
        logits = np.einsum("fad,fnad->fan", q_cls, keys) / math.sqrt(q_cls.shape[-1])
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        of_patches = weights[..., 1 - first :]  # [frames, heads, S]
        scores = of_patches.max(axis=1) if highest else of_patches.mean(axis=1)
        return scores.copy(), (q_cls, keys, weights, q.shape, num_heads) if keep else None

    def backward(dscores: Array, cache: Any) -> Any:
        q_cls, keys, weights, shape, num_heads = cache
        frames, count, d = q_cls.shape
        share = np.full((frames, count, dscores.shape[1]), 1 / count, dscores.dtype)
        if highest:
            best = weights[..., 1 - first :].argmax(axis=1)[:, None]  # [frames, 1, S]
            share = (np.arange(count)[None, :, None] == best).astype(dscores.dtype)
        dweights = np.zeros_like(weights)
        dweights[..., 1 - first :] = dscores[:, None] * share
        dlogits = weights * (dweights - (weights * dweights).sum(axis=-1, keepdims=True)) / math.sqrt(d)
        dq, dk = np.zeros((2, frames, shape[0] // frames, num_heads, d), dscores.dtype)
        dq[:, 0, heads] = np.einsum("fan,fnad->fad", dlogits, keys)
        dk[:, first:, heads] = np.einsum("fan,fad->fnad", dlogits, q_cls)
        return dq.reshape(shape), dk.reshape(shape)

    return Implementation(cls_scores.operation, forward, backward)


def top_k_like(top_k: ForwardOnly, choose: Callable[[Array, int], Array]) -> ForwardOnly:
    """``top_k`` with another choice: choose(scores [segments, S], k) → [segments, k]."""
    return ForwardOnly(top_k.operation, lambda scores, k: np.asarray(choose(scores, k)).astype(np.int64))


def weigh_dropped(fuse_dropped: Implementation, uniform: bool = False) -> Implementation:
    """``fuse_dropped`` as a weighted mean: the scores of the dropped patches sum to one, or all weigh the same."""

    def forward(x: Array, scores: Array, kept: Array, keep: bool = True) -> Any:
        patches = x.reshape(*scores.shape, -1)  # [frames, S, D]
        dropped = np.ones(scores.shape, dtype=scores.dtype)
        np.put_along_axis(dropped, kept, 0, axis=1)
        weights = dropped * (1 if uniform else scores)
        total = weights.sum(axis=1, keepdims=True)
        weights = weights / np.where(total > 0, total, 1)
        return np.einsum("fs,fsd->fd", weights, patches), (patches, weights, dropped, total) if keep else None

    def backward(dfused: Array, cache: Any) -> Any:
        patches, weights, dropped, total = cache
        dx = weights[:, :, None] * dfused[:, None, :]
        dweights = np.einsum("fsd,fd->fs", patches, dfused)
        dscores = dropped * (dweights - (weights * dweights).sum(axis=1, keepdims=True)) / np.where(total > 0, total, 1)
        return dx.reshape(-1, dfused.shape[1]), np.zeros_like(dscores) if uniform else dscores

    return Implementation(fuse_dropped.operation, forward, backward)


def without_score_gradient(fuse_dropped: Implementation) -> Implementation:
    """``fuse_dropped`` with detached scores."""

    def backward(dfused: Array, cache: Any) -> Any:
        dx, dscores = fuse_dropped.backward(dfused, cache)
        return dx, np.zeros_like(dscores)

    return Implementation(fuse_dropped.operation, fuse_dropped.forward, backward)


def sum_segments(segment_mean: Implementation) -> Implementation:
    """``segment_mean`` without the division: a sum."""

    def forward(x: Array, offsets: Array, keep: bool = True) -> Any:
        y, _ = segment_mean.forward(x, offsets, keep=False)
        lengths = np.diff(offsets)
        return y * lengths.astype(x.dtype)[:, None], lengths if keep else None

    return Implementation(segment_mean.operation, forward, lambda dy, lengths: np.repeat(dy, lengths, axis=0))


def one_of_segment(segment_mean: Implementation, last: bool) -> Implementation:
    """``segment_mean`` that takes the last row of each segment, or the first, in the place of the mean."""

    def forward(x: Array, offsets: Array, keep: bool = True) -> Any:
        rows = offsets[1:] - 1 if last else offsets[:-1]
        return x[rows], (rows, x.shape) if keep else None

    def backward(dy: Array, cache: Any) -> Array:
        rows, shape = cache
        dx = np.zeros(shape, dy.dtype)
        dx[rows] = dy
        return dx

    return Implementation(segment_mean.operation, forward, backward)


# ---- losses


def with_targets(cross_entropy: Implementation, change: Callable[[Array, float], Array]) -> Implementation:
    """``cross_entropy`` or ``motion_loss`` with other targets: change(rows [B, K] before smoothing, s) → [B, K].

    The loss stays −Σ target · log softmax(logits) / B, so that a row times B counts as in a sum over clips.
    """
    named = list(cross_entropy.operation.arguments)[1]

    def forward(
        logits: Array, targets: Any = None, label_smoothing: float = 0.0, keep: bool = True, **more: Any
    ) -> Any:
        targets = more.get(named, targets)
        K = logits.shape[1]
        rows = np.eye(K, dtype=logits.dtype)[targets] if targets.ndim == 1 else targets.astype(logits.dtype)
        rows = change(rows, label_smoothing)
        shifted = logits - logits.max(axis=1, keepdims=True)
        log_probability = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))  # [B, K]
        loss = np.asarray(-(rows * log_probability).sum() / len(rows), dtype=logits.dtype)
        return loss, (np.exp(log_probability), rows) if keep else None

    def backward(dloss: Array, cache: Any) -> Array:
        probability, rows = cache
        return np.asarray((probability * rows.sum(axis=1, keepdims=True) - rows) * (dloss / len(rows)))

    return Implementation(cross_entropy.operation, forward, backward)


def ponder_loss_like(ponder_loss: Implementation, weights: Callable[[int, int], Array]) -> Implementation:
    """``ponder_loss`` as Σ weight · ρ; weights(B, N) gives the weights [B, N] (1/(B·N) each is the mean)."""

    def forward(ponder: Array, keep: bool = True) -> Any:
        w = np.asarray(weights(*ponder.shape), dtype=ponder.dtype)
        return np.asarray((w * ponder).sum(), dtype=ponder.dtype), w if keep else None

    return Implementation(ponder_loss.operation, forward, lambda dloss, w: np.asarray(w * dloss, dtype=w.dtype))
