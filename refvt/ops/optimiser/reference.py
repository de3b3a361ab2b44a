"""Adam in NumPy."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from refvt.array import Array
from refvt.ops.optimiser import step_factors

__all__ = ["adam_step", "squared_norm"]


def squared_norm(x: Array) -> float:
    """Σ x², added in double precision; x [n]."""
    return float(np.square(x, dtype=np.float64).sum())


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
    """One step on parameters w [n] and their moments m, v [n], in place; gradient [n] stays as it is.

    run_offsets [runs+1], decays bool [runs]: which stretches of w decay. decoupled: AdamW, else Adam with L2. clip: a
    factor on the gradient. ValueError for a step below 1.
    """
    f = step_factors(step, learning_rate, beta1, beta2, epsilon, weight_decay, decoupled, clip)
    real = w.dtype.type
    for (start, stop), decay in zip(pairwise(run_offsets), decays, strict=True):
        w_run, m_run, v_run = w[start:stop], m[start:stop], v[start:stop]  # views
        # 1. the gradient, clipped, with the L2 term
        g = real(f.clip) * gradient[start:stop]
        if decay:
            g += real(f.l2) * w_run
        # 2. the moments
        m_run[...] = real(f.beta1) * m_run + real(f.one_minus_beta1) * g
        v_run[...] = real(f.beta2) * v_run + real(f.one_minus_beta2) * g * g
        # 3. decoupled decay, then the step
        if decay:
            w_run *= real(f.shrink)
        w_run -= real(f.step_size) * m_run / (np.sqrt(v_run * real(f.correction2)) + real(f.epsilon))
