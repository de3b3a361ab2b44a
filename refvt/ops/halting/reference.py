"""Halting in NumPy: one layer's step, the weighted sum, the textbook loop. The maths is in ``__init__.py``."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refvt.array import Array
from refvt.ops.halting import check_states


def logistic(z: Array) -> Array:
    """σ(z) = 1 / (1 + e^(−z)), written so that only e^(−|z|) ≤ 1 is formed: nothing overflows."""
    e = np.exp(-np.abs(z))
    return np.asarray(np.where(z >= 0, 1, e) / (1 + e))


class HaltCache(NamedTuple):
    """What the backward of one halting step reads."""

    score: Array  # h [tokens]
    halted: Array  # bool [tokens]
    scale: float
    last: bool


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
    # 1. the score
    score = np.ones_like(used) if last else logistic(scale * logit - center)  # h [tokens]
    # 2. the decision; it carries no gradient
    halted = used + score > 1 - epsilon if forced is None else forced.astype(bool)
    # 3. a token that halts gives the remainder, so that its weights sum to one
    weight = np.where(halted, 1 - used, score)
    used_next = np.where(halted, 1, used + score).astype(used.dtype)
    return (weight, used_next, halted), HaltCache(score, halted, scale, last) if keep else None


def halt_backward(dweight: Array, dused_next: Array, cache: HaltCache) -> tuple[Array, Array]:
    """Returns dlogit, dused."""
    score, halted, scale, last = cache
    # 3. remainder: weight = 1 − used and used_next = 1; alive: weight = score and used_next = used + score
    dused = np.where(halted, -dweight, dused_next)
    dscore = np.where(halted, 0, dweight + dused_next)
    # 2. nothing passes through the comparison
    # 1. σ' = σ (1 − σ); the last score is the constant 1
    dlogit = np.zeros_like(dscore) if last else scale * score * (1 - score) * dscore
    return dlogit, dused


class AccumulateCache(NamedTuple):
    """What the backward of the accumulation reads."""

    x: Array  # [tokens, D]
    weight: Array  # [tokens]


def accumulate_forward(y: Array, x: Array, weight: Array, keep: bool = True) -> tuple[Array, AccumulateCache | None]:
    """One term of the mean state: y_next = y + weight · x, row by row. y, x [n, D], weight [n] → y_next [n, D]."""
    # 1. one term of the mean state
    return y + weight[:, None] * x, AccumulateCache(x, weight) if keep else None


def accumulate_backward(dy_next: Array, cache: AccumulateCache) -> tuple[Array, Array, Array]:
    """Returns dy, dx, dweight."""
    x, weight = cache
    # 1. one term of the mean state
    return dy_next.copy(), weight[:, None] * dy_next, (dy_next * x).sum(axis=-1)


class HaltTokensCache(NamedTuple):
    """What the backward of the textbook loop reads."""

    shape: tuple[int, ...]  # (L, N, D)
    layers: list[tuple[Array, HaltCache, AccumulateCache]]  # per layer: the tokens that entered it, and the two steps


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
    L, N, D = states.shape
    y = np.zeros((N, D), dtype=states.dtype)
    ponder = np.zeros(N, dtype=states.dtype)
    halting_layer = np.zeros(N, dtype=np.int64)
    alive = np.arange(N)  # the tokens that enter the layer
    used = np.zeros(N, dtype=states.dtype)  # the weight they have used so far
    layers = []
    for layer in range(1, L + 1):
        x = states[layer - 1, alive]  # [alive, D]
        choice = None if forced is None else forced[alive] == layer
        # 1. score, decide, weigh
        (weight, used, halted), halting = halt_forward(
            x[:, 0], used, scale, center, epsilon, last=layer == L, forced=choice
        )
        # 2. one more term of the output
        y[alive], accumulation = accumulate_forward(y[alive], x, weight)
        # 3. a token that halts here has pondered N_k layers and its remainder
        ponder[alive[halted]] = layer + weight[halted]
        halting_layer[alive[halted]] = layer
        if keep:
            assert halting is not None
            assert accumulation is not None
            layers.append((alive, halting, accumulation))
        # 4. the others go on
        alive, used = alive[~halted], used[~halted]
    return (y, ponder, halting_layer), HaltTokensCache(states.shape, layers) if keep else None


def halt_tokens_backward(dy: Array, dponder: Array, cache: HaltTokensCache) -> Array:
    """Returns dstates [L, N, D]; zero where a token had already halted."""
    dstates = np.zeros(cache.shape, dtype=dy.dtype)
    dused = np.zeros(0, dtype=dy.dtype)  # of the tokens that went on
    for layer in reversed(range(len(cache.layers))):
        alive, halting, accumulation = cache.layers[layer]
        # 4. a token that went on brings back the gradient of the weight used so far
        dused_next = np.zeros(len(alive), dtype=dy.dtype)
        dused_next[~halting.halted] = dused
        # 3. ponder = layer + remainder
        dremainder = np.where(halting.halted, dponder[alive], 0)  # [alive]
        # 2. the output's term
        _, dx, dweight = accumulate_backward(dy[alive], accumulation)
        dweight += dremainder
        # 1. score and weight
        dlogit, dused = halt_backward(dweight, dused_next, halting)
        dx[:, 0] += dlogit
        dstates[layer, alive] = dx
    return dstates
