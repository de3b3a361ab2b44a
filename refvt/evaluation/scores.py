"""The score of every token in every joint layer, in the places that a model's output has."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refvt.array import Array
from refvt.model.haltingvt import HaltingVT, Output
from refvt.ops.halting.reference import logistic

__all__ = ["HaltingScores", "halting_scores"]


class HaltingScores(NamedTuple):
    """Scores and remainders of the tokens of B clips.

    scores [B, L, N']: h of every layer that a token enters, NaN in the others; 1 in layer L. remainders [B, N']: r, NaN
    for a token that was still alive when its clip left early.
    """

    scores: Array
    remainders: Array


def halting_scores(model: HaltingVT, clips: Array, output: Output) -> HaltingScores:
    """The halting scores of a run: h = σ(γ · x[0] − β) of the state x that leaves a layer, and r = 1 − Σ h.

    output: what ``model(clips)`` returned. The model runs once more, as a trace, on the output's decisions. The
    errors are those of ``HaltingVT.trace``.
    """
    config = model.config
    trace = model.trace(clips, execution="compact", decisions=output.decisions)
    alive, halting_layer = output.alive, output.decisions.halting_layer
    assert halting_layer is not None  # an output has all decisions
    scores = np.full(alive.shape, np.nan, model.dtype)  # [B, L, N']
    remainders = np.full(halting_layer.shape, np.nan, model.dtype)  # [B, N']
    for layer in range(1, config.joint_depth + 1):
        if f"joint.{layer}.weight" not in trace:  # every token of every clip has halted before
            break
        weight, logit = (trace[f"joint.{layer}.{name}"].reshape(halting_layer.shape) for name in ("weight", "logit"))
        halts = halting_layer == layer
        remainders[halts] = weight[halts]
        # a token that lives on has h as its weight; one that halts has the remainder instead
        at_halt = np.ones_like(logit)
        if layer < config.joint_depth:
            exact = config.halting_scale * logit.astype(np.float64) - config.halting_center
            at_halt = logistic(exact).astype(model.dtype)
        of_layer = np.where(halts, at_halt, weight)
        scores[:, layer - 1] = np.where(alive[:, layer - 1], of_layer, np.nan)
    return HaltingScores(scores, remainders)
