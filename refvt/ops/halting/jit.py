"""Halting in Numba: a loop over tokens that says what the room's first page says, one token at a time."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refvt.array import Array
from refvt.backends.jit.compile import exp, kernel
from refvt.ops.halting import check_states


class HaltCache(NamedTuple):
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
    one = used.dtype.type(1)
    for i in range(len(used)):
        # 1. the score; σ(z) with only e^(−|z|) ≤ 1 formed
        h = one
        if logit is not None:
            z = scale * logit[i] - center
            e = exp(-abs(z))
            h = (one if z >= 0 else e) / (one + e)
        # 2. the decision
        if forced is not None:  # noqa: SIM108 - a branch on None is settled when this is compiled
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
    """One layer's halting step for the tokens that entered it: (weight, used_next, halted).

    logit [n] (channel 0 of the states leaving the layer; not read in the last layer), used [n] (weight used so far),
    scale γ, center β, epsilon ε, last: is this layer L; forced [n] bool replaces the comparison.
    Source: HaltingVT equations 4–6, in the local form.
    """
    number = used.dtype.type
    score, weight, used_next = (np.empty_like(used) for _ in range(3))
    halted = np.empty(len(used), dtype=np.bool_)
    # passes 1–3
    _halt(
        None if last else np.ascontiguousarray(logit),
        used,
        number(scale),
        number(center),
        number(1 - epsilon),
        forced,
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
    dlogit, dused = np.empty_like(score), np.empty_like(score)
    # passes 3–1
    _halt_backward(dweight, dused_next, score, halted, score.dtype.type(0 if last else scale), dlogit, dused)
    return dlogit, dused


class AccumulateCache(NamedTuple):
    x: Array
    weight: Array


@kernel
def _accumulate(y: Array, x: Array, weight: Array, y_next: Array) -> None:
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            y_next[i, j] = y[i, j] + weight[i] * x[i, j]


def accumulate_forward(y: Array, x: Array, weight: Array, keep: bool = True) -> tuple[Array, AccumulateCache | None]:
    """y_next = y + weight · x, row by row. y, x [n, D], weight [n]."""
    y_next = np.empty_like(y)
    # 1. one term of the mean state
    _accumulate(y, x, weight, y_next)
    return y_next, AccumulateCache(x, weight) if keep else None


@kernel
def _accumulate_backward(dy_next: Array, x: Array, weight: Array, dy: Array, dx: Array, dweight: Array) -> None:
    for i in range(x.shape[0]):
        product = x.dtype.type(0)
        for j in range(x.shape[1]):
            dy[i, j] = dy_next[i, j]
            dx[i, j] = weight[i] * dy_next[i, j]
            product += dy_next[i, j] * x[i, j]
        dweight[i] = product


def accumulate_backward(dy_next: Array, cache: AccumulateCache) -> tuple[Array, Array, Array]:
    """Returns dy, dx, dweight."""
    x, weight = cache
    dy, dx, dweight = np.empty_like(dy_next), np.empty_like(x), np.empty_like(weight)
    # 1. one term of the mean state
    _accumulate_backward(dy_next, x, weight, dy, dx, dweight)
    return dy, dx, dweight


class HaltTokensCache(NamedTuple):
    states: Array
    halting_layer: Array
    score: Array  # [L, N], not filled after a token's halting
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
    L, N, D = states.shape
    one = states.dtype.type(1)
    for k in range(N):  # a token's whole life at a time: nobody else is needed
        used = states.dtype.type(0)
        for c in range(D):
            y[k, c] = 0
        for layer in range(1, L + 1):
            # 1. score, decide, weigh
            h = one
            if layer < L:
                z = scale * states[layer - 1, k, 0] - center
                e = exp(-abs(z))
                h = (one if z >= 0 else e) / (one + e)
            score[layer - 1, k] = h
            if forced is not None:  # noqa: SIM108
                stops = forced[k] == layer
            else:
                stops = layer == L or used + h > limit
            weight = one - used if stops else h
            # 2. one more term of the output
            for c in range(D):
                y[k, c] += weight * states[layer - 1, k, c]
            # 3. who halts here has pondered N_k layers and its remainder
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
    """Halting of N tokens whose states after each of L layers are given: (y, ponder, halting_layer).

    states [L, N, D]; scale γ, center β, epsilon ε; forced [N] int64 gives each token's halting layer (1 … L) instead of
    the comparison → y [N, D], ponder ρ [N], halting_layer N_k [N] int64, counted from 1.
    ValueError if states is not [L, N, D] or ε not in (0, 1). Source: HaltingVT equations 4–8.
    """
    check_states(states, epsilon)
    L, N, D = states.shape
    number = states.dtype.type
    y, ponder, score = (np.zeros(shape, states.dtype) for shape in ((N, D), N, (L, N)))
    halting_layer = np.zeros(N, dtype=np.int64)
    # passes 1–4
    limit = number(1 - epsilon)
    _halt_tokens(states, number(scale), number(center), limit, forced, y, ponder, halting_layer, score)
    cache = HaltTokensCache(states, halting_layer, score, scale) if keep else None
    return (y, ponder, halting_layer), cache


@kernel
def _halt_tokens_backward(
    dy: Array, dponder: Array, states: Array, halting_layer: Array, score: Array, scale: Any, dstates: Array
) -> None:
    _, N, D = states.shape
    one = states.dtype.type(1)
    for k in range(N):
        stop = halting_layer[k] - 1
        remainder = one
        for layer in range(stop):
            remainder -= score[layer, k]
        # 4–1, the last layer first: it gave the remainder, and du = −dweight
        dweight = dponder[k]
        for c in range(D):
            dstates[stop, k, c] = remainder * dy[k, c]
            dweight += dy[k, c] * states[stop, k, c]
        dused = -dweight
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
    dstates = np.zeros(states.shape, dtype=dy.dtype)
    # passes 4–1
    _halt_tokens_backward(dy, dponder, states, halting_layer, score, dy.dtype.type(scale), dstates)
    return dstates
