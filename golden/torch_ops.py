"""All operations in PyTorch, differentiable by autograd and written for reading, not for speed.

The rows of different clips or frames follow one another in flat arrays [tokens, D]; offsets [segments + 1] give the
start and end of each segment. Functions that several operations and the model share (linear, layernorm, attend) accept
any leading dimensions.

``summation`` changes the order of the terms in sums, not the terms. The spread of the float32 results over these orders
shows how much PyTorch's own error depends on the order.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

LAYERNORM_EPSILON = 1e-6
SUMMATIONS = ("plain", "reversed", "rolled", *(f"shuffled-{seed}" for seed in range(1, 6)))
_current_summation = "plain"


@contextmanager
def summation(order: str) -> Iterator[None]:
    """Take sums in another order: "plain", "reversed" (last first), "rolled" (starts in the middle), "shuffled-N"."""
    global _current_summation
    if order not in SUMMATIONS:
        raise ValueError(f"order: expected one of {SUMMATIONS}, got {order!r}")
    before, _current_summation = _current_summation, order
    try:
        yield
    finally:
        _current_summation = before


def _arrange(x: Tensor, *dims: int) -> Tensor:
    """Reorder the given axes (default: all) for the current order of summation."""
    dims = dims or tuple(range(x.ndim))
    if _current_summation == "reversed":
        return x.flip(dims)
    if _current_summation == "rolled":
        return x.roll([x.shape[dim] // 2 for dim in dims], dims)
    if _current_summation.startswith("shuffled"):
        for dim in dims:
            x = x.index_select(dim, _permutation(x.shape[dim]))
    return x


def _restore(x: Tensor, *dims: int) -> Tensor:
    """Undo the reordering of ``_arrange``."""
    dims = dims or tuple(range(x.ndim))
    if _current_summation == "reversed":
        return x.flip(dims)
    if _current_summation == "rolled":
        return x.roll([-(x.shape[dim] // 2) for dim in dims], dims)
    if _current_summation.startswith("shuffled"):
        for dim in dims:
            x = x.index_select(dim, _permutation(x.shape[dim]).argsort())
    return x


def _permutation(size: int) -> Tensor:
    """The permutation of the terms of an axis in the current order of summation."""
    seed = int(_current_summation.removeprefix("shuffled-"))
    return torch.from_numpy(np.random.default_rng([seed, size]).permutation(size))


def embed_tokens(
    clips: Tensor, weight: Tensor, bias: Tensor, cls_token: Tensor, pos_embed: Tensor, time_embed: Tensor
) -> Tensor:
    """Clips [B, C, T, height, width] to tokens [B, 1 + S*T, D]: CLS, then patch s of frame t at 1 + s*T + t.

    CLS = cls_token + pos[0];  patch = W·pixels + b + pos[1 + s] + time[t].
    """
    batch, channels, frames, height, width = clips.shape
    dim, side = weight.shape[0], weight.shape[-1]
    rows, columns = height // side, width // side
    cut = clips.reshape(batch, channels, frames, rows, side, columns, side)
    pixels = cut.permute(0, 3, 5, 2, 1, 4, 6).reshape(batch, rows * columns, frames, channels * side * side)
    patches = linear(pixels, weight.reshape(dim, -1), bias)  # [B, S, T, D]
    patches = patches + pos_embed[:, 1:, None, :] + time_embed[:, None, :, :]
    cls = (cls_token + pos_embed[:, :1]).expand(batch, 1, dim)
    return torch.cat([cls, patches.reshape(batch, -1, dim)], dim=1)


def embed(
    clips: Tensor, weight: Tensor, bias: Tensor, cls_token: Tensor, pos_embed: Tensor, time_embed: Tensor
) -> Tensor:
    """``embed_tokens`` as flat rows [B*N, D]."""
    return embed_tokens(clips, weight, bias, cls_token, pos_embed, time_embed).flatten(0, 1)


def layernorm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """y = (x - mean) / sqrt(variance + 1e-6) · weight + bias over the last axis, biased variance."""
    y = functional.layer_norm(_arrange(x), (x.shape[-1],), _arrange(weight), _arrange(bias), LAYERNORM_EPSILON)
    return _restore(y)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None, gain: Tensor | None = None
) -> Tensor:
    """y = residual + gain · (x Wᵀ + b): x [n, Din], weight [Dout, Din], residual [n, Dout], gain [n]."""
    y = _restore(functional.linear(_arrange(x), _arrange(weight), _arrange(bias)))
    if gain is not None:
        y = gain[..., None] * y
    return y if residual is None else residual + y


def gelu(x: Tensor) -> Tensor:
    """y = x · Φ(x), Φ the normal distribution function (by erf)."""
    return functional.gelu(x, approximate="none")


def mlp(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    residual: Tensor | None = None,
    gain: Tensor | None = None,
) -> Tensor:
    """y = residual + gain · fc2(GELU(fc1(x))): x [n, D], fc1_weight [F, D], fc2_weight [D, F]."""
    return linear(gelu(linear(x, fc1_weight, fc1_bias)), fc2_weight, fc2_bias, residual, gain)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """[..., n, D] to [..., A, n, d]."""
    return x.unflatten(-1, (num_heads, x.shape[-1] // num_heads)).transpose(-3, -2)


def attend(
    q: Tensor, k: Tensor, v: Tensor, num_heads: int, key_bias: Tensor | None = None, sdpa: bool = False
) -> Tensor:
    """softmax(q kᵀ / √d + key_bias) v in each head: q [..., nq, D], k and v [..., nk, D], key_bias [..., nk].

    Where all keys are at -inf, y = 0 and no gradient passes. ``sdpa`` takes PyTorch's fused attention.
    """
    some_key = None
    if key_bias is not None:
        some_key = (key_bias > -math.inf).any(-1)[..., None, None]
        # A row all at -inf would be NaN in softmax and its backward: attend to everything, then discard it.
        key_bias = torch.where(some_key[..., 0], key_bias, 0.0)
        key_bias = _arrange(key_bias, -1)[..., None, None, :]
    q, k, v = (_arrange(split_heads(x, num_heads), -2, -1) for x in (q, k, v))
    if sdpa:
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=key_bias)
    else:
        logits = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        y = torch.softmax(logits if key_bias is None else logits + key_bias, dim=-1) @ v
    y = _restore(y, -2, -1).transpose(-3, -2).flatten(-2)
    return y if some_key is None else torch.where(some_key, y, 0.0)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor,
    num_heads: int,
    key_bias: Tensor | None = None,
) -> Tensor:
    """``attend`` inside each segment: q [nq, D], k and v [nk, D], key_bias [nk] to y [nq, D]."""
    parts = []
    both_ends = zip(pairwise(query_offsets.tolist()), pairwise(key_offsets.tolist()), strict=True)
    for queries, keys in ((slice(*query_ends), slice(*key_ends)) for query_ends, key_ends in both_ends):
        bias = None if key_bias is None else key_bias[keys]
        parts.append(attend(q[queries], k[keys], v[keys], num_heads, bias))
    return torch.cat(parts)


def gather(x: Tensor, index: Tensor) -> Tensor:
    """y[j] = x[index[j]], a zero row where index[j] = -1: x [n, ...] to [m, ...]."""
    zero_row = torch.zeros_like(x[:1])
    return _restore(torch.cat([x, zero_row])[_arrange(index)], 0)  # -1 is the last row: the zero row


def segment_mean(x: Tensor, offsets: Tensor) -> Tensor:
    """Mean of the rows of each segment: x [n, D] to [segments, D]."""
    segments = [x[start:end] for start, end in pairwise(offsets.tolist())]
    return torch.stack([_arrange(rows, 0).sum(0) / len(rows) for rows in segments])


def cls_weights(q: Tensor, k: Tensor, num_heads: int) -> Tensor:
    """Weights of the patches in the CLS row of attention, mean over heads: q, k [..., 1 + S, D] to [..., S].

    The softmax is over all 1 + S keys; the weight of CLS is then dropped, without another normalisation.
    """
    first, keys = (_arrange(split_heads(x, num_heads), -1) for x in (q[..., :1, :], k))
    logits = _arrange(first @ keys.transpose(-2, -1), -1) / math.sqrt(first.shape[-1])
    weights = _restore(torch.softmax(logits, dim=-1), -1)  # [..., A, 1, 1 + S]
    return _arrange(weights, -3).sum(-3)[..., 0, 1:] / num_heads


def cls_scores(q: Tensor, k: Tensor, offsets: Tensor, num_heads: int) -> Tensor:
    """``cls_weights`` of segments of 1 + S rows, CLS first: q and k [n, D] to [segments, S]."""
    segments = len(offsets) - 1
    return cls_weights(q.unflatten(0, (segments, -1)), k.unflatten(0, (segments, -1)), num_heads)


def top_k(scores: Tensor, k: int) -> Tensor:
    """Indices of the k highest scores, in descending order, lower index first if equal: [..., S] to [..., k]."""
    return torch.sort(-scores, dim=-1, stable=True).indices[..., :k]


def weighted_sum_of_dropped(x: Tensor, scores: Tensor, kept: Tensor) -> Tensor:
    """Σ score · x over the patches that are not in kept: x [..., S, D], scores [..., S], kept [..., k] to [..., D]."""
    dropped = torch.ones_like(scores, dtype=torch.bool).scatter(-1, kept, False)
    terms = torch.where(dropped[..., None], scores[..., None] * x, 0.0)
    return _arrange(terms, -2).sum(-2)


def fuse_dropped(x: Tensor, scores: Tensor, kept: Tensor) -> Tensor:
    """``weighted_sum_of_dropped`` of flat rows: x [segments*S, D] to [segments, D]."""
    return weighted_sum_of_dropped(x.unflatten(0, tuple(scores.shape)), scores, kept)


def halt(
    logit: Tensor,
    used: Tensor,
    scale: float,
    center: float,
    epsilon: float,
    last: bool,
    forced: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer of halting for live tokens: (weight, used_next, halted), each of the shape of logit.

    h = σ(scale · logit - center), 1 in the last layer;  halted: used + h > 1 - ε, or given by ``forced``;
    weight = 1 - used where halted, else h;  used_next = used + weight.
    """
    score = torch.ones_like(logit) if last else torch.sigmoid(scale * logit - center)
    halted = used + score > 1 - epsilon if forced is None else forced
    weight = torch.where(halted, 1 - used, score)
    # clone: the gradient at the result ``weight`` must not include the path through used_next
    return weight.clone(), used + weight, halted


def accumulate(y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """y_next = y + weight · x: y and x [n, D], weight [n]."""
    return y + weight[..., None] * x


def halt_tokens(
    states: Tensor, scale: float, center: float, epsilon: float, forced_layer: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The textbook loop: states [L, N, D] to (y [N, D], ponder [N], halting_layer [N], counted from 1).

    y = Σ_{l<N} h^l x^l + r x^N,  ponder = N + r.  ``forced_layer`` gives the halting layers instead.
    """
    layers, tokens, _ = states.shape
    y, used = torch.zeros_like(states[0]), torch.zeros_like(states[0, :, 0])
    ponder, halting_layer = torch.zeros_like(used), torch.zeros(tokens, dtype=torch.int64)
    alive = torch.ones(tokens, dtype=torch.bool)
    for layer, x in enumerate(states, start=1):
        forced = None if forced_layer is None else forced_layer == layer
        weight, used_next, halted = halt(x[:, 0], used, scale, center, epsilon, layer == layers, forced)
        halted = halted & alive
        y = torch.where(alive[:, None], accumulate(y, x, weight), y)
        ponder = torch.where(halted, layer + weight, ponder)
        halting_layer = torch.where(halted, layer, halting_layer)
        used = torch.where(alive, used_next, used)
        alive = alive & ~halted
    return y, ponder, halting_layer


def cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean over clips of -Σ t · log softmax(logits) with t = (1 - s) · target + s / K: logits [B, K]."""
    classes = logits.shape[-1]
    if not targets.is_floating_point():
        targets = functional.one_hot(targets, classes).to(logits.dtype)
    targets = (1 - label_smoothing) * targets + label_smoothing / classes
    return -(_arrange(targets) * torch.log_softmax(_arrange(logits), dim=-1)).sum() / len(logits)


def ponder_loss(ponder: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean of w · ρ over all tokens that entered the joint blocks: ponder, weights [B, N]; w is 1 if not given."""
    return _arrange(ponder if weights is None else weights * ponder).sum() / ponder.numel()


def motion_loss(logits: Tensor, moving: Tensor) -> Tensor:
    """Two-class cross-entropy, moving 1 against static 0, no smoothing: logits [B, 2]."""
    return cross_entropy(logits, moving)


@dataclass(frozen=True)
class Operation:
    """An operation and the properties that its cases need.

    ``fixed`` arguments have no gradient. For a ``multilinear`` operation, the result for the magnitudes of its
    arguments is Σ|terms|.
    """

    function: Callable[..., Tensor | tuple[Tensor, ...]]
    results: tuple[str, ...]
    fixed: tuple[str, ...] = ()
    multilinear: bool = False


OPERATIONS = {
    "embed": Operation(embed, ("y",), ("clips",), multilinear=True),
    "layernorm": Operation(layernorm, ("y",)),
    "linear": Operation(linear, ("y",), ("gain",), multilinear=True),
    "gelu": Operation(gelu, ("y",)),
    "mlp": Operation(mlp, ("y",), ("gain",)),
    "attention": Operation(attention, ("y",), ("query_offsets", "key_offsets", "key_bias")),
    "gather": Operation(gather, ("y",), ("index",), multilinear=True),
    "segment_mean": Operation(segment_mean, ("y",), ("offsets",), multilinear=True),
    "cls_scores": Operation(cls_scores, ("scores",), ("offsets",)),
    "top_k": Operation(top_k, ("kept",), ("scores",)),
    "fuse_dropped": Operation(fuse_dropped, ("fused",), ("kept",), multilinear=True),
    "halt": Operation(halt, ("weight", "used_next", "halted"), ("forced",)),
    "accumulate": Operation(accumulate, ("y_next",), multilinear=True),
    "halt_tokens": Operation(halt_tokens, ("y", "ponder", "halting_layer")),
    "cross_entropy": Operation(cross_entropy, ("loss",), ("targets",)),
    "ponder_loss": Operation(ponder_loss, ("loss",), ("weights",), multilinear=True),
    "motion_loss": Operation(motion_loss, ("loss",), ("moving",)),
}
