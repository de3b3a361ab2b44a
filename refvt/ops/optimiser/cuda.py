"""Adam on the GPU: one thread per number."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numba import cuda

from refvt.array import Array
from refvt.backends.cuda.arguments import Flags, Real, Vector
from refvt.backends.cuda.arrays import to_numpy
from refvt.backends.cuda.elementwise import column_sums
from refvt.backends.cuda.kernel import kernel
from refvt.backends.cuda.upload import upload
from refvt.ops.optimiser import step_factors

__all__ = ["adam_step", "squared_norm"]


def squared_norm(x: Any) -> float:
    """Σ x² of x [n], in partial sums of the array's own precision."""
    column = x.reshape(-1, 1)
    return float(to_numpy(column_sums(column, column))[1])


@lru_cache(maxsize=16)
def _decays_of_numbers(run_offsets: tuple[int, ...], decays: tuple[bool, ...]) -> Array:
    """Which numbers decay: bool [n] on the device."""
    array: Array = upload(np.repeat(np.array(decays), np.diff(run_offsets)))
    return array


@kernel
def _adam_step(
    w: Vector,
    m: Vector,
    v: Vector,
    gradient: Vector,
    decays: Flags,
    clip: Real,
    beta1: Real,
    one_minus_beta1: Real,
    beta2: Real,
    one_minus_beta2: Real,
    step_size: Real,
    correction2: Real,
    epsilon: Real,
    shrink: Real,
    l2: Real,
) -> None:
    """w, m, v, gradient, decays [n] → w, m, v in place; one thread per number. Factors: see ``StepFactors``."""
    i = cuda.grid(1)
    if i < w.shape[0]:
        # 1. the gradient, clipped, with the L2 term
        old, g = w[i], clip * gradient[i]
        if decays[i]:
            g += l2 * old
        # 2. the moments
        m[i] = beta1 * m[i] + one_minus_beta1 * g
        v[i] = beta2 * v[i] + one_minus_beta2 * g * g
        # 3. decoupled decay, then the step
        if decays[i]:
            old *= shrink
        w[i] = old - step_size * m[i] / (math.sqrt(v[i] * correction2) + epsilon)


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
    """One step in place: as ``reference``; run_offsets and decays are on the host."""
    factors = step_factors(step, learning_rate, beta1, beta2, epsilon, weight_decay, decoupled, clip)
    decay = _decays_of_numbers(tuple(run_offsets.tolist()), tuple(decays.tolist()))
    _adam_step.each(w.shape[0], w, m, v, gradient, decay, *map(w.dtype.type, factors))
