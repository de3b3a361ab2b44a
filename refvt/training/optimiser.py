"""The optimiser: Adam over one vector of all parameters, which parameters do not decay, gradient clipping.

The formulas are those of ``refvt.ops.optimiser``.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

import numpy as np

from refvt.array import Array
from refvt.training.vectors import Vector

__all__ = ["EMBEDDINGS", "OPTIMISERS", "Adam", "clip_scale", "global_norm", "select_no_decay"]

OPTIMISERS = ("adamw", "adam")
EMBEDDINGS = ("cls_token", "pos_embed", "time_embed")


def select_no_decay(names: Iterable[str], norms_and_biases: bool, embeddings: bool = True) -> set[str]:
    """Select the parameters without weight decay: embeddings, and norms and biases, each if its switch is set.

    The paper's configurations name only the three embeddings; with the released code they decay too, because the names
    there match no parameter. In training from scratch, LayerNorms and biases commonly do not decay either.
    """
    return {
        name
        for name in names
        if (embeddings and name in EMBEDDINGS)
        or (norms_and_biases and name not in EMBEDDINGS and (name.endswith("bias") or "norm" in name))
    }


def global_norm(gradients: Vector) -> float:
    """The L2 norm of all gradients together."""
    return math.sqrt(gradients.ops.squared_norm(gradients.vector))


def clip_scale(norm: float, largest: float | None, epsilon: float = 0.0) -> float:
    """Return the factor that reduces gradients of this global norm to at most ``largest``: min(1, largest/(norm + ε)).

    PyTorch has ε = 1e-6. largest None: no limit.
    """
    return 1.0 if largest is None or norm + epsilon <= largest else largest / (norm + epsilon)


class Adam:
    """Updates parameters in place: AdamW if ``decoupled``, else Adam with L2.

    no_decay: names of the parameters without weight decay. ``m`` and ``v`` hold both moments of every gradient,
    ``steps`` is the number of steps taken: with the parameters they are all there is to save.
    """

    def __init__(
        self,
        parameters: Vector,
        no_decay: Collection[str],
        decoupled: bool = True,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
    ) -> None:
        self.parameters = parameters
        dtype = str(np.dtype(parameters.vector.dtype))
        self.m, self.v = (Vector(parameters.shapes, dtype, parameters.backend) for _ in range(2))
        self.steps = 0
        self._run_offsets, self._decays = _runs(parameters, no_decay)
        self._settings = {
            "beta1": betas[0],
            "beta2": betas[1],
            "epsilon": epsilon,
            "weight_decay": weight_decay,
            "decoupled": decoupled,
        }

    def step(self, gradients: Vector, learning_rate: float, clip: float = 1.0) -> None:
        """Take one step on ``clip`` times the gradients, which are not changed."""
        self.steps += 1
        self.parameters.ops.adam_step(
            self.parameters.vector,
            self.m.vector,
            self.v.vector,
            gradients.vector,
            self._run_offsets,
            self._decays,
            self.steps,
            learning_rate,
            clip=clip,
            **self._settings,
        )


def _runs(parameters: Vector, no_decay: Collection[str]) -> tuple[Array, Array]:
    """Neighbours in the vector that decay alike: run_offsets [runs+1] and whether each decays, bool [runs]."""
    offsets, decays = [0], [False]
    for name, place in parameters.places.items():
        if len(offsets) > 1 and decays[-1] == (name not in no_decay):
            offsets[-1] = place.stop
        else:
            offsets.append(place.stop)
            decays.append(name not in no_decay)
    return np.array(offsets), np.array(decays[1:])
