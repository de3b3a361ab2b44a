"""The worked example of the notebooks: five tokens, three layers, round numbers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refvt.array import Array

__all__ = ["WorkedExample", "worked_example"]

# h of layers 1 and 2; in layer 3, the last, every score is 1
SCORES = ((0.3, 0.995, 0.6, 0.1, 0.5), (0.5, 0.5, 0.5, 0.2, 0.45))
# channels 1 and 2 of the states, by layer and token
FEATURES = (
    ((1, 0), (2, 1), (0, 1), (1, 1), (3, 0)),
    ((2, 0), (2, 2), (1, 1), (1, 2), (2, 1)),
    ((4, 1), (2, 3), (2, 1), (1, 3), (1, 2)),
)


class WorkedExample(NamedTuple):
    """The states that five tokens leave three layers with, and what halting makes of them.

    states [L, N, D] = [3, 5, 3]: channel 0 is the halting logit, such that σ(γ · x[0] − β) is one of ``SCORES``.
    scale γ, center β, epsilon ε. Token 0 is CLS.
    """

    states: Array
    scale: float
    center: float
    epsilon: float
    names: tuple[str, ...] = ("CLS", "at once", "in layer 2", "slow", "just not")


def worked_example(dtype: str = "float64") -> WorkedExample:
    """Return the worked example. γ = β = 10 and ε = 0.01, as in the paper.

    The tokens, by the sums of their scores after layers 1 and 2: CLS 0.3, 0.8: halts in layer 3 with remainder 0.2.
    "at once" 0.995: halts in layer 1, remainder 1. "in layer 2" 0.6, 1.1: halts in layer 2, remainder 0.4. "slow" 0.1,
    0.3: layer 3, remainder 0.7. "just not" 0.5, 0.95: layer 3, remainder 0.05; a little more and it would have halted.
    """
    scale = center = 10.0
    scores = np.array(SCORES)
    logits = (np.log(scores / (1 - scores)) + center) / scale  # the inverse of h = σ(γ · x[0] − β)
    states = np.zeros((3, 5, 3))
    states[:2, :, 0] = logits
    states[2, :, 0] = 0.5  # not read: in the last layer every score is 1
    states[:, :, 1:] = FEATURES
    return WorkedExample(states.astype(dtype), scale, center, 0.01)
