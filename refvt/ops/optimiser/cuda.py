"""The optimiser on the GPU: passes over vectors, one thread per number."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import cuda

from refvt.array import Array
from refvt.backends.cuda.arguments import Flags, Real, Vector
from refvt.backends.cuda.arrays import to_numpy
from refvt.backends.cuda.elementwise import column_sums
from refvt.backends.cuda.kernel import kernel
from refvt.backends.cuda.upload import upload

__all__ = ["move", "prepared", "squared_norm"]


def squared_norm(vector: Any) -> float:
    """Σ x², in parts and the parts in parts."""
    column = vector.reshape(-1, 1)
    return float(to_numpy(column_sums(column, column))[1])


def prepared(runs: list[tuple[int, int, bool]]) -> Array:
    """What ``move`` needs to know of which numbers decay, runs of (start, stop, do they decay): bool [n]."""
    array: Array = upload(np.repeat([decays for *_, decays in runs], [stop - start for start, stop, _ in runs]))
    return array


@kernel
def _move(
    w: Vector,
    m: Vector,
    v: Vector,
    gradients: Vector,
    decays: Flags,
    scale: Real,
    keep1: Real,
    more1: Real,
    keep2: Real,
    more2: Real,
    step: Real,
    inverse: Real,
    epsilon: Real,
    shrink: Real,
    pull: Real,
) -> None:
    """w, m, v, gradients, decays [n]: one step of Adam on w, m and v in place; one thread per number."""
    i = cuda.grid(1)
    if i < w.shape[0]:
        old, g = w[i], scale * gradients[i]
        if decays[i]:
            g += pull * old
            old *= shrink
        m[i] = keep1 * m[i] + more1 * g
        v[i] = keep2 * v[i] + more2 * g * g
        w[i] = old - step * m[i] / (math.sqrt(v[i] * inverse) + epsilon)


def move(w: Array, m: Array, v: Array, gradients: Array, decays: Array, numbers: tuple[float, ...]) -> None:
    """One step of Adam on parameters w and moments m, v, in place; ``numbers`` as in ``optimisers.Numbers``."""
    _move.each(w.shape[0], w, m, v, gradients, decays, *map(w.dtype.type, numbers))
