"""The optimiser's passes over vectors in main memory, on all threads."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refvt.array import Array
from refvt.backends.jit.compile import kernel
from refvt.backends.jit.threads import next_tile, run

__all__ = ["TILE", "move", "prepared", "squared_norm"]

TILE = 1 << 14  # numbers of a task


@kernel
def _squares(ticket: Any, vector: Array, sums: Array) -> None:
    i = next_tile(ticket)
    while i >= 0:
        total = 0.0
        for j in range(i * TILE, min((i + 1) * TILE, len(vector))):
            total += float(vector[j]) * float(vector[j])
        sums[i] = total
        i = next_tile(ticket)


def squared_norm(vector: Array) -> float:
    """Σ x², added in double precision."""
    sums = np.zeros(-(-len(vector) // TILE))
    run(_squares, len(sums), vector, sums)
    return float(sums.sum())


class Tiles(NamedTuple):
    """Pieces of a vector, none of which spans numbers that decay and numbers that do not."""

    edges: Array  # int64 [tiles, 2]
    decays: Array  # bool [tiles]


def prepared(runs: list[tuple[int, int, bool]]) -> Tiles:
    """What ``move`` needs to know of which numbers decay: runs of (start, stop, do they decay)."""
    tiles = [(a, min(a + TILE, stop), decays) for start, stop, decays in runs for a in range(start, stop, TILE)]
    return Tiles(np.array([tile[:2] for tile in tiles], np.int64), np.array([tile[2] for tile in tiles]))


@kernel
def _move(
    ticket: Any, edges: Array, decays: Array, w: Array, m: Array, v: Array, gradients: Array, numbers: tuple[float, ...]
) -> None:
    real = w.dtype.type
    scale, keep1, more1, keep2, more2 = numbers[:5]
    step, inverse, epsilon, shrink, pull = numbers[5:]
    i = next_tile(ticket)
    while i >= 0:
        start, stop = edges[i]
        left, more = real(shrink if decays[i] else 1.0), real(pull if decays[i] else 0.0)
        for j in range(start, stop):
            g = real(scale) * gradients[j] + more * w[j]
            m[j] = real(keep1) * m[j] + real(more1) * g
            v[j] = real(keep2) * v[j] + real(more2) * g * g
            w[j] = left * w[j] - real(step) * m[j] / (np.sqrt(v[j] * real(inverse)) + real(epsilon))
        i = next_tile(ticket)


def move(w: Array, m: Array, v: Array, gradients: Array, tiles: Tiles, numbers: tuple[float, ...]) -> None:
    """One step of Adam on parameters w and moments m, v, in place; ``numbers`` as in ``optimisers.Numbers``."""
    run(_move, len(tiles.edges), *tiles, w, m, v, gradients, tuple(map(float, numbers)))
