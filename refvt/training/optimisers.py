"""How parameters move: AdamW, the Adam with L2 of the paper, which parameters do not decay, clipping.

Both are one formula. With g the gradient, clipped, w a parameter, η the rate and t = 1, 2, … the step:

    Adam with L2   g ← g + λ w           AdamW   w ← w − η λ w
    m ← β₁ m + (1 − β₁) g                v ← β₂ v + (1 − β₂) g²
    w ← w − η · (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε)

Sources: Kingma and Ba 2015 (arXiv 1412.6980), Loshchilov and Hutter 2019 (arXiv 1711.05101).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from refvt.backends import pool
from refvt.ops import Array
from refvt.training.vectors import Vector

__all__ = ["EMBEDDINGS", "OPTIMISERS", "Adam", "clip_scale", "global_norm", "without_decay"]

OPTIMISERS = ("adamw", "adam")
EMBEDDINGS = ("cls_token", "pos_embed", "time_embed")
TILE = 1 << 14  # numbers updated at once: their temporaries stay in a core's cache


def without_decay(names: Iterable[str], norms_and_biases: bool) -> set[str]:
    """The parameters that weight decay leaves alone: the embeddings, and norms and biases too if that is asked for.

    The paper's recipe names the three embeddings alone; training from scratch commonly spares every LayerNorm and bias.
    """
    return {
        name for name in names if name in EMBEDDINGS or (norms_and_biases and (name.endswith("bias") or "norm" in name))
    }


def _tiles(start: int, stop: int) -> list[slice]:
    return [slice(first, min(first + TILE, stop)) for first in range(start, stop, TILE)]


def _on_all_threads(task: Callable[[int], None], count: int) -> None:
    """task(0), …, task(count − 1); NumPy lets go of the interpreter while it computes."""
    threads = min(pool.num_threads(), count)

    def share(first: int) -> None:
        for i in range(first, count, threads):
            task(i)

    with pool.session(), ThreadPoolExecutor(threads) as team:
        for _ in team.map(share, range(threads)):
            pass


def global_norm(gradients: Vector) -> float:
    """The L2 norm of all gradients together, summed in double precision."""
    parts = _tiles(0, len(gradients.vector))
    sums = np.zeros(len(parts))

    def tile(i: int) -> None:
        g = gradients.vector[parts[i]].astype(np.float64)
        sums[i] = g @ g

    _on_all_threads(tile, len(parts))
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
        self._tiles: list[tuple[slice, float]] = []
        for start, stop, decays in _runs(parameters, spared):
            self._tiles += [(tile, weight_decay * decays) for tile in _tiles(start, stop)]

    def step(self, gradients: Vector, rate: float, scale: float = 1.0) -> None:
        """One step with the rate η on ``scale`` times the gradients, which stay as they are."""
        self.steps += 1
        beta1, beta2 = self._betas
        correction1, correction2 = 1 - beta1**self.steps, 1 - beta2**self.steps

        def tile(i: int) -> None:
            part, decay = self._tiles[i]
            w, m, v = self.parameters.vector[part], self.m.vector[part], self.v.vector[part]
            g: Array = gradients.vector[part] * scale
            if decay and self._decoupled:
                w *= 1 - rate * decay
            elif decay:
                g += decay * w
            m *= beta1
            m += (1 - beta1) * g
            v *= beta2
            v += (1 - beta2) * g * g
            w -= rate / correction1 * m / (np.sqrt(v / correction2) + self._epsilon)

        _on_all_threads(tile, len(self._tiles))


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
