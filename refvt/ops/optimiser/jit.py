"""Adam on all threads of the CPU."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from refvt.array import Array
from refvt.backends.jit.kernel import kernel
from refvt.backends.jit.layouts import contiguous
from refvt.backends.jit.threads import next_tile, run
from refvt.ops.optimiser import step_factors

__all__ = ["TILE", "adam_step", "squared_norm"]

TILE = 1 << 14  # numbers per tile


@kernel
def _squared_norm(ticket: Any, x: Array, sums: Array) -> None:
    """x [n] → sums [tiles], the Σ x² of every tile in double precision."""
    i = next_tile(ticket)
    while i >= 0:
        total = 0.0
        for j in range(i * TILE, min((i + 1) * TILE, len(x))):
            total += float(x[j]) * float(x[j])
        sums[i] = total
        i = next_tile(ticket)


def squared_norm(x: Array) -> float:
    """Σ x², added in double precision; x [n]."""
    sums = np.zeros(-(-len(x) // TILE))
    run(_squared_norm, len(sums), contiguous(x), sums)
    return float(sums.sum())


@lru_cache(maxsize=16)
def _tiles(run_offsets: tuple[int, ...], decays: tuple[bool, ...]) -> tuple[Array, Array]:
    """Pieces of at most TILE numbers, each inside of one run: their edges int64 [tiles, 2], and whether they decay."""
    tiles = [
        (first, min(first + TILE, stop), decay)
        for (start, stop), decay in zip(pairwise(run_offsets), decays, strict=True)
        for first in range(start, stop, TILE)
    ]
    edges = np.array([tile[:2] for tile in tiles], np.int64).reshape(-1, 2)  # none for an empty vector
    return edges, np.array([tile[2] for tile in tiles], bool)


@kernel
def _adam_step(
    ticket: Any, edges: Array, decays: Array, w: Array, m: Array, v: Array, gradient: Array, factors: tuple[float, ...]
) -> None:
    """edges [tiles, 2], decays [tiles]; w, m, v, gradient [n]; factors as in ``StepFactors``."""
    real = w.dtype.type
    clip, beta1, one_minus_beta1, beta2, one_minus_beta2 = factors[:5]
    step_size, correction2, epsilon, shrink, l2 = factors[5:]
    i = next_tile(ticket)
    while i >= 0:
        start, stop = edges[i]
        left, more = real(shrink if decays[i] else 1.0), real(l2 if decays[i] else 0.0)
        for j in range(start, stop):
            # 1. the gradient, clipped, with the L2 term
            g = real(clip) * gradient[j] + more * w[j]
            # 2. the moments
            m[j] = real(beta1) * m[j] + real(one_minus_beta1) * g
            v[j] = real(beta2) * v[j] + real(one_minus_beta2) * g * g
            # 3. decoupled decay, then the step
            w[j] = left * w[j] - real(step_size) * m[j] / (np.sqrt(v[j] * real(correction2)) + real(epsilon))
        i = next_tile(ticket)


def adam_step(
    w: Array,
    m: Array,
    v: Array,
    gradient: Array,
    run_offsets: Array,
    decays: Array,
    step: int,
    learning_rate: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.01,
    decoupled: bool = True,
    clip: float = 1.0,
) -> None:
    """One step in place: as ``reference``."""
    factors = step_factors(step, learning_rate, beta1, beta2, epsilon, weight_decay, decoupled, clip)
    edges, decay = _tiles(tuple(run_offsets.tolist()), tuple(decays.tolist()))
    run(_adam_step, len(edges), edges, decay, w, m, v, contiguous(gradient), tuple(map(float, factors)))
