"""Halting on the GPU: one thread per token, because tokens are independent; one warp where channels are summed."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from refvt.array import Array
from refvt.backends.cuda.arguments import Array3, Flags, Indices, Matrix, Real, StridedVector, Vector
from refvt.backends.cuda.device_array import absent, empty, num_valid_of, with_rows_of
from refvt.backends.cuda.elementwise import copy, fill
from refvt.backends.cuda.kernel import device_function, kernel
from refvt.backends.cuda.sizes import WARP
from refvt.backends.cuda.threads import cell, lane_and_row, valid_rows, warp_sum
from refvt.backends.cuda.upload import upload
from refvt.ops.halting import check_states


@device_function
def _logistic(z: Real, one: Real) -> Any:
    """σ(z), computed from e^(−|z|) ≤ 1, which cannot overflow."""
    e = math.exp(-abs(z))
    return (one if z >= 0 else e) / (one + e)


class HaltCache(NamedTuple):
    score: Array  # h [tokens]
    halted: Array  # bool [tokens]
    scale: float
    last: bool


@kernel
def _halt(
    logit: StridedVector,
    used: Vector,
    scale: Real,
    center: Real,
    limit: Real,
    forced: Flags,
    num_valid: Indices,
    score: Vector,
    weight: Vector,
    used_next: Vector,
    halted: Flags,
) -> None:
    """logit [n] or empty, used [n], forced [n] or empty → score, weight, used_next, halted [n].

    One thread per token.
    """
    i = cuda.grid(1)
    if i < valid_rows(num_valid, used.shape[0]):
        one = used.dtype.type(1)
        # 1. the score; the last layer reads no logit
        h = one
        if logit.shape[0] > 0:
            h = _logistic(scale * logit[i] - center, one)
        # 2. the decision
        stops = used[i] + h > limit
        if forced.shape[0] > 0:
            stops = forced[i]
        # 3. a token that halts gives the remainder
        score[i] = h
        halted[i] = stops
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
    """As ``reference``: one layer's halting step for the tokens that entered it: (weight, used_next, halted).

    logit [n] (channel 0 of the states leaving the layer, may be strided; not read in the last layer), used [n] (weight
    used so far), scale γ, center β, epsilon ε, last: is this layer L; forced [n] bool (host or device) replaces the
    comparison.
    """
    n, number = used.shape[0], used.dtype.type
    score, weight, used_next = (empty(n, used.dtype) for _ in range(3))
    halted = empty(n, np.bool_)
    logit = absent(used.dtype, 1) if last else logit
    forced = absent(np.bool_, 1) if forced is None else upload(forced, np.bool_)
    settings = number(scale), number(center), number(1 - epsilon)
    # passes 1–3
    _halt.each(n, logit, used, *settings, forced, num_valid_of(used), score, weight, used_next, halted)
    weight, used_next = with_rows_of(used, weight), with_rows_of(used, used_next)
    return (weight, used_next, halted), HaltCache(score, halted, scale, last) if keep else None


@kernel
def _halt_backward(
    dweight: Vector, dused_next: Vector, score: Vector, halted: Flags, scale: Real, dlogit: Vector, dused: Vector
) -> None:
    """dweight, dused_next, score, halted [n] → dlogit, dused [n]; one thread per token."""
    i = cuda.grid(1)
    if i < score.shape[0]:
        one, zero = score.dtype.type(1), score.dtype.type(0)
        # 3. remainder or score
        dused[i] = -dweight[i] if halted[i] else dused_next[i]
        dscore = zero if halted[i] else dweight[i] + dused_next[i]
        # 2. the comparison has no gradient
        # 1. σ' = σ (1 − σ); scale is 0 in the last layer, whose score is constant
        dlogit[i] = scale * score[i] * (one - score[i]) * dscore


def halt_backward(dweight: Array, dused_next: Array, cache: HaltCache) -> tuple[Array, Array]:
    """As ``reference``: dlogit, dused."""
    score, halted, scale, last = cache
    n, dtype = score.shape[0], score.dtype
    dlogit, dused = empty(n, dtype), empty(n, dtype)
    # passes 3–1
    _halt_backward.each(n, dweight, dused_next, score, halted, dtype.type(0 if last else scale), dlogit, dused)
    return dlogit, dused


class AccumulateCache(NamedTuple):
    x: Array  # [n, D]
    weight: Array  # [n]


@kernel
def _accumulate(y: Matrix, x: Matrix, weight: Vector, y_next: Matrix) -> None:
    """y, x [n, D], weight [n] → y_next [n, D]; one thread per element."""
    i, c = cell()
    if i < y.shape[0] and c < y.shape[1]:
        # 1. one term of the mean state
        y_next[i, c] = y[i, c] + weight[i] * x[i, c]


def accumulate_forward(y: Array, x: Array, weight: Array, keep: bool = True) -> tuple[Array, AccumulateCache | None]:
    """As ``reference``: y_next = y + weight · x, row by row. y, x [n, D], weight [n] → y_next [n, D]."""
    y_next = empty(y.shape, y.dtype)
    # 1. one term of the mean state
    _accumulate.cells(y.shape[0], y.shape[1], y, x, weight, y_next)
    return y_next, AccumulateCache(x, weight) if keep else None


@kernel
def _accumulate_backward(dy_next: Matrix, x: Matrix, weight: Vector, dx: Matrix, dweight: Vector) -> None:
    """dy_next, x [n, D], weight [n] → dx [n, D], dweight [n]; a warp per token."""
    lane, i = lane_and_row()
    n, D = x.shape
    row = min(i, n - 1)
    # 1. one term of the mean state
    product = x.dtype.type(0)
    for c in range(lane, D, WARP):
        product += dy_next[row, c] * x[row, c]
        if i < n:
            dx[row, c] = weight[row] * dy_next[row, c]
    product = warp_sum(product)
    if lane == 0 and i < n:
        dweight[row] = product


def accumulate_backward(dy_next: Array, cache: AccumulateCache) -> tuple[Array, Array, Array]:
    """As ``reference``: dy, dx, dweight."""
    x, weight = cache
    dx, dweight = empty(x.shape, x.dtype), empty(weight.shape, weight.dtype)
    # 1. one term of the mean state
    _accumulate_backward.warps(x.shape[0], dy_next, x, weight, dx, dweight)
    return copy(dy_next), dx, dweight


class HaltTokensCache(NamedTuple):
    states: Array  # [L, N, D]
    halting_layer: Array  # [N]
    score: Array  # [L, N], 0 after a token has halted
    scale: float


@kernel
def _halt_tokens(
    states: Array3,
    scale: Real,
    center: Real,
    limit: Real,
    forced: Indices,
    y: Matrix,
    ponder: Vector,
    halting_layer: Indices,
    score: Matrix,
) -> None:
    """states [L, N, D], forced [N] or empty → y [N, D], ponder, halting_layer [N], score [L, N].

    One thread per token.
    """
    k = cuda.grid(1)
    L, N, D = states.shape
    if k < N:  # one thread computes all layers of a token
        number = states.dtype.type
        one, used = number(1), number(0)
        for c in range(D):
            y[k, c] = number(0)
        for layer in range(1, L + 1):
            # 1. score, decide, weigh
            h = one
            if layer < L:
                h = _logistic(scale * states[layer - 1, k, 0] - center, one)
            score[layer - 1, k] = h
            stops = layer == L or used + h > limit
            if forced.shape[0] > 0:
                stops = forced[k] == layer
            weight = one - used if stops else h
            # 2. one more term of the output
            for c in range(D):
                y[k, c] += weight * states[layer - 1, k, c]
            # 3. ponder of a token that halts here: N_k layers and the remainder
            if stops:
                ponder[k] = number(layer) + weight
                halting_layer[k] = layer
                break
            # 4. the other tokens go on
            used += h


def halt_tokens_forward(
    states: Array,
    scale: float,
    center: float,
    epsilon: float,
    forced: Array | None = None,
    keep: bool = True,
) -> tuple[tuple[Array, Array, Array], HaltTokensCache | None]:
    """As ``reference``: halting of N tokens whose states after each of L layers are given: (y, ponder, halting_layer).

    states [L, N, D]; scale γ, center β, epsilon ε; forced [N] int64 (host or device) gives each token's halting layer
    (1 … L) instead of the comparison → y [N, D], ponder ρ [N], halting_layer N_k [N] int64, counted from 1.
    ValueError if states is not [L, N, D] or ε not in (0, 1).
    """
    check_states(states, epsilon, forced if isinstance(forced, np.ndarray) else None)  # one on the device stays there
    L, N, D = states.shape
    number = states.dtype.type
    y, ponder, score = (fill(empty(shape, states.dtype), 0) for shape in ((N, D), N, (L, N)))
    halting_layer = fill(empty(N, np.int64), 0)
    forced = absent(np.int64, 1) if forced is None else upload(forced, np.int64)
    # passes 1–4
    settings = number(scale), number(center), number(1 - epsilon)
    _halt_tokens.each(N, states, *settings, forced, y, ponder, halting_layer, score)
    cache = HaltTokensCache(states, halting_layer, score, scale) if keep else None
    return (y, ponder, halting_layer), cache


@kernel
def _halt_tokens_backward(
    dy: Matrix, dponder: Vector, states: Array3, halting_layer: Indices, score: Matrix, scale: Real, dstates: Array3
) -> None:
    """dy [N, D], dponder [N], states [L, N, D], halting_layer [N], score [L, N] → dstates; one thread per token."""
    k = cuda.grid(1)
    _, N, D = states.shape
    if k < N:
        number = states.dtype.type
        one = number(1)
        stop = halting_layer[k] - 1
        remainder = one
        for layer in range(stop):
            remainder -= score[layer, k]
        # passes 4–1, the last layer first: its weight was the remainder, so du = −dweight
        dweight = dponder[k]
        for c in range(D):
            dstates[stop, k, c] = remainder * dy[k, c]
            dweight += dy[k, c] * states[stop, k, c]
        dused = -dweight
        for layer in range(stop - 1, -1, -1):
            h = score[layer, k]
            dweight = number(0)
            for c in range(D):
                dstates[layer, k, c] = h * dy[k, c]
                dweight += dy[k, c] * states[layer, k, c]
            dstates[layer, k, 0] += scale * h * (one - h) * (dweight + dused)


def halt_tokens_backward(dy: Array, dponder: Array, cache: HaltTokensCache) -> Array:
    """As ``reference``: dstates [L, N, D]; zero where a token had already halted."""
    states, halting_layer, score, scale = cache
    dstates = fill(empty(states.shape, dy.dtype), 0)
    # passes 4–1
    _halt_tokens_backward.each(
        states.shape[1], dy, dponder, states, halting_layer, score, dy.dtype.type(scale), dstates
    )
    return dstates
