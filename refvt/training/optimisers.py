"""How parameters move: AdamW, the Adam with L2 of the paper, which parameters do not decay, clipping.

Both are one formula. With g the gradient, clipped, w a parameter, η the rate and t = 1, 2, … the step:

    Adam with L2   g ← g + λ w           AdamW   w ← w − η λ w
    m ← β₁ m + (1 − β₁) g                v ← β₂ v + (1 − β₂) g²
    w ← w − η · (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε)

Sources: Kingma and Ba 2015 (arXiv 1412.6980), Loshchilov and Hutter 2019 (arXiv 1711.05101).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np

from refvt.backends.jit import kernel
from refvt.backends.team import run, take
from refvt.ops import Array
from refvt.training.vectors import Vector

__all__ = ["EMBEDDINGS", "OPTIMISERS", "Adam", "clip_scale", "global_norm", "without_decay"]

OPTIMISERS = ("adamw", "adam")
EMBEDDINGS = ("cls_token", "pos_embed", "time_embed")
TILE = 1 << 14  # numbers of a task


def without_decay(names: Iterable[str], norms_and_biases: bool) -> set[str]:
    """The parameters that weight decay leaves alone: the embeddings, and norms and biases too if that is asked for.

    The paper's recipe names the three embeddings alone; training from scratch commonly spares every LayerNorm and bias.
    """
    return {
        name for name in names if name in EMBEDDINGS or (norms_and_biases and (name.endswith("bias") or "norm" in name))
    }


def _tiles(start: int, stop: int) -> list[tuple[int, int]]:
    return [(first, min(first + TILE, stop)) for first in range(start, stop, TILE)]


@kernel
def _squares(share: Any, vector: Array, sums: Array) -> None:
    i = take(share)
    while i >= 0:
        total = 0.0
        for j in range(i * TILE, min((i + 1) * TILE, len(vector))):
            total += float(vector[j]) * float(vector[j])
        sums[i] = total
        i = take(share)


def global_norm(gradients: Vector) -> float:
    """The L2 norm of all gradients together, summed in double precision."""
    sums = np.zeros(-(-len(gradients.vector) // TILE))
    run(_squares, len(sums), gradients.vector, sums)
    return math.sqrt(sums.sum())


def clip_scale(norm: float, largest: float | None) -> float:
    """What gradients of this global norm are multiplied by so that it is at most ``largest``."""
    return 1.0 if largest is None or norm <= largest else largest / norm


class Adam:
    """Moves parameters in place, all but the ``spared`` ones with weight decay.

    decoupled: AdamW; otherwise the decay is part of the gradient (L2). ``m`` and ``v`` hold both moments of every
    gradient, ``steps`` says how often ``step`` was called: with the parameters they are all there is to save.
    """

    def __init__(
        self,
        parameters: Vector,
        spared: Collection[str],
        decoupled: bool = True,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
    ) -> None:
        shapes = {name: array.shape for name, array in parameters.arrays.items()}
        self.parameters = parameters
        self.m, self.v = (Vector(shapes, str(parameters.vector.dtype)) for _ in range(2))
        self.steps = 0
        self._decoupled, self._betas, self._epsilon = decoupled, betas, epsilon
        # one tile never spans two parameters that decay differently
        runs = _runs(parameters, spared)
        tiles = [(*tile, weight_decay * decays) for start, stop, decays in runs for tile in _tiles(start, stop)]
        self._tiles = np.array([tile[:2] for tile in tiles], np.int64)
        self._decay = np.array([tile[2] for tile in tiles])

    def step(self, gradients: Vector, rate: float, scale: float = 1.0) -> None:
        """One step with the rate η on ``scale`` times the gradients, which stay as they are."""
        self.steps += 1
        beta1, beta2 = self._betas
        corrections = 1 - beta1**self.steps, 1 - beta2**self.steps
        vectors = self.parameters.vector, self.m.vector, self.v.vector, gradients.vector
        numbers = tuple(map(float, (rate, scale, beta1, beta2, *corrections, self._epsilon)))
        run(_move, len(self._tiles), self._tiles, self._decay, self._decoupled, *vectors, numbers)


@kernel
def _move(
    share: Any,
    tiles: Array,
    decays: Array,
    decoupled: bool,
    parameters: Array,
    m: Array,
    v: Array,
    gradients: Array,
    numbers: tuple[float, ...],
) -> None:
    real = parameters.dtype.type
    rate, scale, beta1, beta2, correction1, correction2, epsilon = numbers
    keep1, more1, keep2, more2 = real(beta1), real(1 - beta1), real(beta2), real(1 - beta2)
    step, inverse, little = real(rate / correction1), real(1 / correction2), real(epsilon)
    i = take(share)
    while i >= 0:
        start, stop = tiles[i]
        shrink, pull = real(1), real(0)
        if decoupled:
            shrink = real(1 - rate * decays[i])
        else:
            pull = real(decays[i])
        for j in range(start, stop):
            w = parameters[j]
            g = real(scale) * gradients[j] + pull * w
            m[j] = keep1 * m[j] + more1 * g
            v[j] = keep2 * v[j] + more2 * g * g
            parameters[j] = shrink * w - step * m[j] / (np.sqrt(v[j] * inverse) + little)
        i = take(share)


def _runs(parameters: Vector, spared: Collection[str]) -> list[tuple[int, int, bool]]:
    """Neighbours in the vector that decay alike, as (start, stop, do they decay)."""
    runs: list[tuple[int, int, bool]] = []
    for name, place in parameters.places.items():
        decays = name not in spared
        if runs and runs[-1][2] == decays:
            runs[-1] = (runs[-1][0], place.stop, decays)
        else:
            runs.append((place.start, place.stop, decays))
    return runs
