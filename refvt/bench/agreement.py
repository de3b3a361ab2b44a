"""Do the contestants of ``refvt bench`` say the same? Otherwise no ratio is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from refvt.array import Array
from refvt.bench.contestants import EAGER, Material, Model, RefvtModel
from refvt.model.config import HaltingVTConfig
from refvt.model.decisions import Decisions

__all__ = ["check_agreement"]

DECISIONS_APART = 0.01  # the largest share of tokens that may take another way, each within rounding of a threshold


def check_agreement(models: Mapping[str, Model], material: Material, train: bool) -> tuple[dict[str, Any], Array]:
    """Do all say the same? Two runs of each, which warm it up as well: free, and under the first model's decisions.

    Returns a report and who was alive, bool [B, L, N'], in the first model's free run. Differences are relative: of
    logits the largest against the largest logit, of gradients the norm against the norm.
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
    said: dict[str, _Said] = {}
    for name in [judge, *(name for name in names if name != judge)]:
        result = models[name].run(train, forced)
        said[name] = _Said(
            models[name].logits(result),
            models[name].loss(result) if train else None,
            models[name].gradients() if train else None,
        )
        if name != judge:  # only the judge's gradients are kept beside those of one other
            said[name] = said[name]._replace(gradients=None, apart=_gradients_apart(said[name], said[judge]))
    allowed = float(np.sqrt(np.finfo(material.dtype).eps))
    truth, others = said[judge], [name for name in names if name != judge]
    scale = float(np.abs(truth.logits).max())
    report: dict[str, Any] = {
        "with": judge,
        "allowed": allowed,
        "largest_logit": scale,
        "logits": {name: float(np.abs(said[name].logits - truth.logits).max()) / scale for name in others},
        "decisions": int(material.config.patches_per_frame * material.config.num_frames * len(material.clips)),
        "decisions_apart": {name: _decisions_apart(material.config, free[name], free[judge]) for name in others},
    }
    measured = [*report["logits"].values()]
    if train:
        assert truth.loss is not None
        report["loss"] = {name: abs((said[name].loss or 0.0) - truth.loss) / abs(truth.loss) for name in others}
        report["gradients"] = {name: said[name].apart for name in others}
        measured += [*report["loss"].values(), *report["gradients"].values()]
    shares = [count / report["decisions"] for count in report["decisions_apart"].values()]
    # a comparison with NaN is False: what is not a number does not agree
    report["holds"] = all(x <= allowed for x in measured) and all(x <= DECISIONS_APART for x in shares)
    return report, alive


class _Said(NamedTuple):
    logits: Array
    loss: float | None
    gradients: dict[str, Array] | None
    apart: float | None = None


def _gradients_apart(one: _Said, other: _Said) -> float | None:
    """‖g − g'‖ / ‖g'‖ over all parameters together."""
    if one.gradients is None or other.gradients is None:
        return None
    difference = total = 0.0
    for name, gradient in other.gradients.items():
        difference += float(np.square(one.gradients[name] - gradient, dtype=np.float64).sum())
        total += float(np.square(gradient, dtype=np.float64).sum())
    return float(np.sqrt(difference / total))


def _decisions_apart(config: HaltingVTConfig, one: Decisions, other: Decisions) -> int:
    """How many patches took another way: dropped by one and not by the other, or halted in another layer."""
    fates, known = [], []
    for decisions in (one, other):
        assert decisions.kept is not None
        assert decisions.halting_layer is not None
        layers = decisions.halting_layer[:, 1:]
        B, T = len(layers), config.num_frames
        places = decisions.kept[-1] if decisions.kept else np.tile(np.arange(config.patches_per_frame), (B, T, 1))
        fate = np.full((B, T, config.patches_per_frame), -1)
        np.put_along_axis(fate, places, layers.reshape(B, -1, T).swapaxes(1, 2), axis=2)
        fates.append(fate)
        known.append(fate != 0)  # 0: still alive when its clip left
    return int(((fates[0] != fates[1]) & known[0] & known[1]).sum())
