"""Whether the contestants of ``refvt bench`` compute the same; otherwise no ratio is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from refvt.array import Array
from refvt.bench.contestants import EAGER, Material, Model, RefvtModel, TrainedModel
from refvt.model.config import HaltingVTConfig
from refvt.model.decisions import Decisions

__all__ = ["check_agreement"]

DECISIONS_APART = 0.01  # largest share of tokens with another decision, each within rounding of a threshold


def check_agreement(models: Mapping[str, Model], material: Material, train: bool) -> tuple[dict[str, Any], Array]:
    """Compare two runs of each model, which also warm it up: free, and under the first model's decisions.

    Returns a report and the tokens alive in the first model's free run, bool [B, L, N']. Differences are relative: the
    largest difference of logits to the largest logit, the norm of the difference of gradients to their norm. A model
    that cannot be forced is compared with the judge under its own decisions.
    """
    names = list(models)
    first, judge = models[names[0]], EAGER if EAGER in models else names[0]
    assert isinstance(first, RefvtModel)
    free, alive = {}, None
    for name, model in models.items():
        result = model.run(train, material.forced)
        free[name] = model.decisions(result)
        alive = first.alive(result) if alive is None else alive
    assert alive is not None
    forced = free[names[0]]
    assert forced.halting_layer is not None
    living = np.where(forced.halting_layer == 0, material.config.joint_depth, forced.halting_layer)
    forced = Decisions(forced.kept, living)
    answers: dict[str, _Answer] = {}
    under_theirs: dict[str, Array] = {}  # the judge's logits, under the decisions of a model that cannot be forced
    for name in [judge, *(name for name in names if name != judge)]:
        model = models[name]
        result = model.run(train, forced if model.can_be_forced else material.forced)
        if train:
            assert isinstance(model, TrainedModel)
            answers[name] = _Answer(model.logits(result), model.loss(result), model.gradients())
        else:
            answers[name] = _Answer(model.logits(result))
        if not model.can_be_forced:
            own = models[judge].run(False, model.decisions(result))
            under_theirs[name] = models[judge].logits(own)
        if name != judge:  # of gradients only the judge's and one other's are held at a time
            answers[name] = answers[name]._replace(
                gradients=None, apart=_gradients_apart(answers[name], answers[judge])
            )
    allowed = float(np.sqrt(np.finfo(material.dtype).eps))
    truth, others = answers[judge], [name for name in names if name != judge]
    scale = float(np.abs(truth.logits).max())
    report: dict[str, Any] = {
        "with": judge,
        "allowed": allowed,
        "largest_logit": scale,
        "logits": {
            name: float(np.abs(answers[name].logits - under_theirs.get(name, truth.logits)).max()) / scale
            for name in others
        },
        "decisions": int(material.config.patches_per_frame * material.config.num_frames * len(material.clips)),
        "decisions_apart": {name: _decisions_apart(material.config, free[name], free[judge]) for name in others},
    }
    measured = [*report["logits"].values()]
    if train:
        assert truth.loss is not None
        report["loss"] = {name: abs((answers[name].loss or 0.0) - truth.loss) / abs(truth.loss) for name in others}
        report["gradients"] = {name: answers[name].apart for name in others}
        measured += [*report["loss"].values(), *report["gradients"].values()]
    shares = [count / report["decisions"] for count in report["decisions_apart"].values()]
    # a comparison with NaN is False: what is not a number does not agree
    report["holds"] = all(x <= allowed for x in measured) and all(x <= DECISIONS_APART for x in shares)
    return report, alive


class _Answer(NamedTuple):
    logits: Array
    loss: float | None = None
    gradients: dict[str, Array] | None = None
    apart: float | None = None


def _gradients_apart(one: _Answer, other: _Answer) -> float | None:
    """‖g − g'‖ / ‖g'‖ over all parameters together."""
    if one.gradients is None or other.gradients is None:
        return None
    difference = total = 0.0
    for name, gradient in other.gradients.items():
        difference += float(np.square(one.gradients[name] - gradient, dtype=np.float64).sum())
        total += float(np.square(gradient, dtype=np.float64).sum())
    return float(np.sqrt(difference / total))


def _decisions_apart(config: HaltingVTConfig, one: Decisions, other: Decisions) -> int:
    """Number of patches with different decisions: dropped by one and not by the other, or halted in another layer."""
    outcomes, known = [], []
    for decisions in (one, other):
        assert decisions.kept is not None
        assert decisions.halting_layer is not None
        layers = decisions.halting_layer[:, 1:]
        B, T = len(layers), config.num_frames
        places = decisions.kept[-1] if decisions.kept else np.tile(np.arange(config.patches_per_frame), (B, T, 1))
        outcome = np.full((B, T, config.patches_per_frame), -1)
        np.put_along_axis(outcome, places, layers.reshape(B, -1, T).swapaxes(1, 2), axis=2)
        outcomes.append(outcome)
        known.append(outcome != 0)  # 0: still alive when its clip left
    return int(((outcomes[0] != outcomes[1]) & known[0] & known[1]).sum())
