"""How parameters move: AdamW, the Adam with L2 of the paper, which parameters do not decay, clipping.

Both are one formula. With g the gradient, clipped, w a parameter, η the rate and t = 1, 2, … the step:

    Adam with L2   g ← g + λ w           AdamW   w ← w − η λ w
    m ← β₁ m + (1 − β₁) g                v ← β₂ v + (1 − β₂) g²
    w ← w − η · (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε)

They are passes over long vectors, so they are written twice, like the rooms: ``optimisers_jit`` for main memory,
``optimisers_cuda`` for a GPU.

Sources: Kingma and Ba 2015 (arXiv 1412.6980), Loshchilov and Hutter 2019 (arXiv 1711.05101).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

import numpy as np

from refvt.training.vectors import Vector

__all__ = ["EMBEDDINGS", "OPTIMISERS", "Adam", "Numbers", "clip_scale", "global_norm", "without_decay"]

OPTIMISERS = ("adamw", "adam")
EMBEDDINGS = ("cls_token", "pos_embed", "time_embed")


def without_decay(names: Iterable[str], norms_and_biases: bool) -> set[str]:
    """The parameters that weight decay leaves alone: the embeddings, and norms and biases too if that is asked for.

    The paper's recipe names the three embeddings alone; training from scratch commonly spares every LayerNorm and bias.
    """
    return {
        name for name in names if name in EMBEDDINGS or (norms_and_biases and (name.endswith("bias") or "norm" in name))
    }


def global_norm(gradients: Vector) -> float:
    """The L2 norm of all gradients together."""
    return math.sqrt(_column(gradients).squared_norm(gradients.vector))


def clip_scale(norm: float, largest: float | None) -> float:
    """What gradients of this global norm are multiplied by so that it is at most ``largest``."""
    return 1.0 if largest is None or norm <= largest else largest / norm


class Numbers(NamedTuple):
    """One step in numbers: g ← scale · g + pull · w, w ← shrink · w − step · m / (√(inverse · v) + ε).

    Where nothing decays, shrink is 1 and pull 0.
    """

    scale: float
    keep1: float
    more1: float
    keep2: float
    more2: float
    step: float
    inverse: float
    epsilon: float
    shrink: float
    pull: float


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
        self.parameters = parameters
        kind = str(np.dtype(parameters.vector.dtype))
        self.m, self.v = (Vector(parameters.shapes, kind, parameters.backend) for _ in range(2))
        self.steps = 0
        self._decoupled, self._betas, self._epsilon, self._decay = decoupled, betas, epsilon, weight_decay
        self._column = _column(parameters)
        self._decaying = self._column.prepared(_runs(parameters, spared))

    def step(self, gradients: Vector, rate: float, scale: float = 1.0) -> None:
        """One step with the rate η on ``scale`` times the gradients, which stay as they are."""
        self.steps += 1
        beta1, beta2 = self._betas
        corrections = 1 - beta1**self.steps, 1 - beta2**self.steps
        vectors = self.parameters.vector, self.m.vector, self.v.vector, gradients.vector
        numbers = Numbers(
            scale=scale,
            keep1=beta1,
            more1=1 - beta1,
            keep2=beta2,
            more2=1 - beta2,
            step=rate / corrections[0],
            inverse=1 / corrections[1],
            epsilon=self._epsilon,
            shrink=1 - rate * self._decay if self._decoupled else 1.0,
            pull=0.0 if self._decoupled else self._decay,
        )
        self._column.move(*vectors, self._decaying, numbers)


def _column(vector: Vector) -> ModuleType:
    """The passes over a vector, for where it lies."""
    return import_module(f"refvt.ops.optimiser.{'cuda' if vector.backend == 'cuda' else 'jit'}")


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
