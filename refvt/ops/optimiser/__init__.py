"""One step of Adam, with L2 regularisation or with decoupled weight decay (AdamW), and the norm that clipping needs.

With g the gradient, w a parameter, η the learning rate, λ the weight decay and t = 1, 2, … the step::

    Adam with L2   g ← g + λ w           AdamW   w ← w − η λ w
    m ← β₁ m + (1 − β₁) g                v ← β₂ v + (1 − β₂) g²
    w ← w − η · (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε)

``clip`` multiplies g first: gradient clipping, and the mean over several batches, are such factors.

All parameters of a model are one vector [n] here. Some of them do not decay (embeddings, for one). So the vector is cut
into runs: run i is ``w[run_offsets[i] : run_offsets[i+1]]``, and ``decays[i]`` says whether weight decay applies to it.

``adam_step`` writes to w, m and v. Besides the record ``halting_layer`` of ``compact`` and ``mask_halted``, it is the
one operation that changes its arguments: a fresh copy of every parameter and both moments in every step would only cost
time.

Sources: Kingma and Ba 2015 (arXiv 1412.6980); Loshchilov and Hutter 2019 (arXiv 1711.05101).
"""

from __future__ import annotations

from typing import NamedTuple

from refvt.ops import Operation

OPERATIONS = (
    Operation(
        "squared_norm",
        arguments={"x": "n"},
        results={"total": ""},
    ),
    Operation(
        "adam_step",
        arguments={"w": "n", "m": "n", "v": "n", "gradient": "n", "run_offsets": "runs+1", "decays": "runs"},
        settings=("step", "learning_rate", "beta1", "beta2", "epsilon", "weight_decay", "decoupled", "clip"),
        results={},
        in_place=("w", "m", "v"),
    ),
)


class StepFactors(NamedTuple):
    """One step as factors, computed once in double precision.

    g ← clip · g + l2 · w, w ← shrink · w − step_size · m / (√(correction2 · v) + epsilon). Where nothing decays, l2 is
    0 and shrink is 1.
    """

    clip: float
    beta1: float
    one_minus_beta1: float
    beta2: float
    one_minus_beta2: float
    step_size: float  # η / (1 − β₁ᵗ)
    correction2: float  # 1 / (1 − β₂ᵗ)
    epsilon: float
    shrink: float  # 1 − η λ for AdamW
    l2: float  # λ for Adam with L2


def step_factors(
    step: int,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    decoupled: bool,
    clip: float,
) -> StepFactors:
    """The factors of step t = ``step``, counted from 1. ValueError for a step below 1."""
    if step < 1:
        raise ValueError(f"step: expected a number from 1, got {step}")
    return StepFactors(
        clip=clip,
        beta1=beta1,
        one_minus_beta1=1 - beta1,
        beta2=beta2,
        one_minus_beta2=1 - beta2,
        step_size=learning_rate / (1 - beta1**step),
        correction2=1 / (1 - beta2**step),
        epsilon=epsilon,
        shrink=1 - learning_rate * weight_decay if decoupled else 1.0,
        l2=0.0 if decoupled else weight_decay,
    )
