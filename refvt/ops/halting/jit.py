"""Halting in Numba: the formulas of ``__init__.py`` in a loop over tokens."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refvt.array import Array
from refvt.backends.jit.functions import logistic
from refvt.backends.jit.kernel import kernel
from refvt.backends.jit.layouts import contiguous
from refvt.ops.halting import check_states


class HaltCache(NamedTuple):
    """What the backward of one halting step reads."""

    score: Array  # h [tokens]
    halted: Array  # bool [tokens]
    scale: float
    last: bool


@kernel
def _halt(
    logit: Array | None,
    used: Array,
    scale: Any,
    center: Any,
    limit: Any,
    forced: Array | None,
    score: Array,
    weight: Array,
    used_next: Array,
    halted: Array,
) -> None:
    """score, weight, used_next, halted [n] ← logit [n] (None in the last layer), used [n], forced [n] or None."""
    one = used.dtype.type(1)
    for i in range(len(used)):
        # 1. the score
        h = one
        if logit is not None:
            h = logistic(scale * logit[i] - center, one)
        # 2. the decision
        if forced is not None:  # noqa: SIM108 - a branch on None is decided at compile time
            stops = forced[i]
        else:
            stops = used[i] + h > limit
        # 3. a token that halts gives the remainder
        score[i], halted[i] = h, stops
        weight[i] = one - used[i] if stops else h
        used_next[i] = one if stops else used[i] + h


def halt_forward(
    logit: Array,
    used: Array,
    scale: float,
    center: float,
    epsilon: float,
    last: bool,
    forced: Array | None = None,
    keep: bool = True,
) -> tuple[tuple[Array, Array, Array], HaltCache | None]:
    """One layer's halting step for the tokens that entered it: returns weight, used_next and halted, all [n].

    logit [n] (channel 0 of the states leaving the layer; not read in the last layer), used [n] (weight used so far),
    scale γ, center β, epsilon ε, last: is this layer L; forced [n] bool replaces the comparison.
    Source: HaltingVT equations 4–6, in the local form.
    """
    used, number = contiguous(used), used.dtype.type
    score, weight, used_next = (np.empty_like(used) for _ in range(3))
    halted = np.empty(len(used), dtype=np.bool_)
    # passes 1–3
    _halt(
        None if last else contiguous(logit),
        used,
        number(scale),
        number(center),
        number(1 - epsilon),
        None if forced is None else contiguous(forced),
        score,
        weight,
        used_next,
        halted,
    )
    return (weight, used_next, halted), HaltCache(score, halted, scale, last) if keep else None


@kernel
def _halt_backward(
    dweight: Array, dused_next: Array, score: Array, halted: Array, scale: Any, dlogit: Array, dused: Array
) -> None:
    """dlogit, dused [n] ← dweight, dused_next, score, halted [n]."""
    one, zero = score.dtype.type(1), score.dtype.type(0)
    for i in range(len(score)):
        # 3. remainder or score
        dused[i] = -dweight[i] if halted[i] else dused_next[i]
        dscore = zero if halted[i] else dweight[i] + dused_next[i]
        # 2. nothing passes through the comparison
        # 1. σ' = σ (1 − σ); scale is 0 in the last layer, whose score is constant
        dlogit[i] = scale * score[i] * (one - score[i]) * dscore


def halt_backward(dweight: Array, dused_next: Array, cache: HaltCache) -> tuple[Array, Array]:
    """Returns dlogit, dused."""
    score, halted, scale, last = cache
    dweight, dused_next = contiguous(dweight), contiguous(dused_next)
    dlogit, dused = np.empty_like(score), np.empty_like(score)
    # passes 3–1
    _halt_backward(dweight, dused_next, score, halted, score.dtype.type(0 if last else scale), dlogit, dused)
    return dlogit, dused


class AccumulateCache(NamedTuple):
    """What the backward of the accumulation reads."""

    x: Array  # [tokens, D]
    weight: Array  # [tokens]


@kernel
def _accumulate(y: Array, x: Array, weight: Array, y_next: Array) -> None:
    """y_next [n, D] ← y, x [n, D], weight [n]."""
    # 1. one term of the mean state
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            y_next[i, j] = y[i, j] + weight[i] * x[i, j]


def accumulate_forward(y: Array, x: Array, weight: Array, keep: bool = True) -> tuple[Array, AccumulateCache | None]:
    """One term of the mean state: y_next = y + weight · x, row by row. y, x [n, D], weight [n] → y_next [n, D]."""
    y, x, weight = contiguous(y), contiguous(x), contiguous(weight)
    y_next = np.empty_like(y)
    # pass 1
    _accumulate(y, x, weight, y_next)
    return y_next, AccumulateCache(x, weight) if keep else None


@kernel
def _accumulate_backward(dy_next: Array, x: Array, weight: Array, dy: Array, dx: Array, dweight: Array) -> None:
    """dy, dx [n, D], dweight [n] ← dy_next, x [n, D], weight [n]."""
    # 1. one term of the mean state
    for i in range(x.shape[0]):
        product = x.dtype.type(0)
        for j in range(x.shape[1]):
            dy[i, j] = dy_next[i, j]
            dx[i, j] = weight[i] * dy_next[i, j]
            product += dy_next[i, j] * x[i, j]
        dweight[i] = product


def accumulate_backward(dy_next: Array, cache: AccumulateCache) -> tuple[Array, Array, Array]:
    """Returns dy, dx, dweight."""
    dy_next, (x, weight) = contiguous(dy_next), cache
    dy, dx, dweight = np.empty_like(dy_next), np.empty_like(x), np.empty_like(weight)
    # pass 1
    _accumulate_backward(dy_next, x, weight, dy, dx, dweight)
    return dy, dx, dweight


class HaltTokensCache(NamedTuple):
    """What the backward of the textbook loop reads."""

    states: Array  # [L, N, D]
    halting_layer: Array  # [N]
    score: Array  # [L, N]; 0 after a token has halted
    scale: float


@kernel
def _halt_tokens(
    states: Array,
    scale: Any,
    center: Any,
    limit: Any,
    forced: Array | None,
    y: Array,
    ponder: Array,
    halting_layer: Array,
    score: Array,
) -> None:
    """y [N, D], ponder, halting_layer [N], score [L, N] ← states [L, N, D], forced [N] or None."""
    L, N, D = states.shape
    one = states.dtype.type(1)
    for k in range(N):  # all layers of one token, then the next token: tokens do not depend on one another
        used = states.dtype.type(0)
        for c in range(D):
            y[k, c] = 0
        for layer in range(1, L + 1):
            # 1. score, decide, weigh
            h = one
            if layer < L:
                h = logistic(scale * states[layer - 1, k, 0] - center, one)
            score[layer - 1, k] = h
            if forced is not None:  # noqa: SIM108
                stops = forced[k] == layer
            else:
                stops = layer == L or used + h > limit
            weight = one - used if stops else h
            # 2. one more term of the output
            for c in range(D):
                y[k, c] += weight * states[layer - 1, k, c]
            # 3. a token that halts here has pondered N_k layers and its remainder
            if stops:
                ponder[k], halting_layer[k] = layer + weight, layer
                break
            # 4. the others go on
            used += h


def halt_tokens_forward(
    states: Array,
    scale: float,
    center: float,
    epsilon: float,
    forced: Array | None = None,
    keep: bool = True,
) -> tuple[tuple[Array, Array, Array], HaltTokensCache | None]:
    """Halting of N tokens whose states after each of L layers are given: returns y, ponder and halting_layer.

    states [L, N, D]; scale γ, center β, epsilon ε; forced [N] int64 gives each token's halting layer (1 … L) instead of
    the comparison → y [N, D], ponder ρ [N], halting_layer N_k [N] int64, counted from 1.
    ValueError for states that are not [L, N, D], ε outside (0, 1), or a layer outside 1 … L. Source: HaltingVT
    equations 4–8.
    """
    check_states(states, epsilon, forced)
    states, (L, N, D) = contiguous(states), states.shape
    number = states.dtype.type
    y, ponder, score = (np.zeros(shape, states.dtype) for shape in ((N, D), N, (L, N)))
    halting_layer = np.zeros(N, dtype=np.int64)
    # passes 1–4
    limit = number(1 - epsilon)
    forced = None if forced is None else contiguous(forced)
    _halt_tokens(states, number(scale), number(center), limit, forced, y, ponder, halting_layer, score)
    cache = HaltTokensCache(states, halting_layer, score, scale) if keep else None
    return (y, ponder, halting_layer), cache


@kernel
def _halt_tokens_backward(
    dy: Array, dponder: Array, states: Array, halting_layer: Array, score: Array, scale: Any, dstates: Array
) -> None:
    """dstates [L, N, D], zero when it comes in, ← dy [N, D], dponder, halting_layer [N], states, score [L, N]."""
    _, N, D = states.shape
    one = states.dtype.type(1)
    for k in range(N):
        stop = halting_layer[k] - 1
        remainder = one
        for layer in range(stop):
            remainder -= score[layer, k]
        # passes 4–1 in the layer in which the token halted: it gave the remainder, and du = −dweight
        dweight = dponder[k]
        for c in range(D):
            dstates[stop, k, c] = remainder * dy[k, c]
            dweight += dy[k, c] * states[stop, k, c]
        dused = -dweight
        # passes 4–1 in the layers before, the last one first: du = dused in all of them
        for layer in range(stop - 1, -1, -1):
            h = score[layer, k]
            dweight = states.dtype.type(0)
            for c in range(D):
                dstates[layer, k, c] = h * dy[k, c]
                dweight += dy[k, c] * states[layer, k, c]
            dstates[layer, k, 0] += scale * h * (one - h) * (dweight + dused)


def halt_tokens_backward(dy: Array, dponder: Array, cache: HaltTokensCache) -> Array:
    """Returns dstates [L, N, D]; zero where a token had already halted."""
    states, halting_layer, score, scale = cache
    dy, dponder = contiguous(dy), contiguous(dponder)
    dstates = np.zeros(states.shape, dtype=dy.dtype)
    # passes 4–1
    _halt_tokens_backward(dy, dponder, states, halting_layer, score, dy.dtype.type(scale), dstates)
    return dstates
