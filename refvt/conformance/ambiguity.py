"""Decisions inside rounding: can rounding alone explain that a candidate keeps another patch, or halts elsewhere?

A score that is read by a decision has a budget, as every element has (``budgets``): it lies in an interval around the
truth. A token may halt in another layer if 1 − ε lies in the interval of its running sum at the first layer that
differs. A patch may be kept for another one if the intervals of their two scores overlap. Exactly equal scores are no
matter of rounding: there the lower index comes first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from refvt.array import Array
from refvt.conformance.asking import Asked
from refvt.conformance.budgets import DTYPES, FLOOR, budget_of
from refvt.conformance.cases import ModelCase, OperationCase, TrainingCase, Truth, base_name, model_case
from refvt.conformance.isolation import Answer
from refvt.conformance.judgement import layers_outside
from refvt.conformance.report import CaseReport, TensorReport

__all__ = ["rounding_explains", "scores_of", "set_ambiguous_apart"]

DERIVED = {"alive": "decisions.halting_layer", "tokens_per_layer": "decisions.halting_layer"}
"""Outputs that say the same as a decision."""


def set_ambiguous_apart(
    asked: Asked, first: Answer, tensors: list[TensorReport], report: CaseReport
) -> list[TensorReport]:
    """Judge again where a decision differs within rounding: with imposed decisions, or up to that decision."""
    decisions = [t for t in tensors if _is_decision(asked.truth, base_name(t.name)) and t.status == "differs"]
    inside = _inside_rounding(asked, first, decisions)
    if not inside:
        return tensors
    report.ambiguous = list(dict.fromkeys(inside.values()))
    forced = asked.ask(force=True)
    if forced.status == "given":
        again = asked.judge(forced)
        undecided = [t for t in again if _is_decision(asked.truth, base_name(t.name)) and t.status == "differs"]
        if not undecided:
            asked.given, asked.forced = forced.tensors, True
            flipped = {t.name for t in decisions}
            return [replace(t, status="ambiguous") if t.name in flipped else t for t in again]
    if asked.truth.kind == "op":
        start = 0
    else:
        order = list(asked.truth)
        start = min(order.index(_decided_by(asked.truth, base_name(name))) for name in inside)
    position = {name: i for i, name in enumerate(asked.truth)}
    return [
        replace(t, status="ambiguous") if t.status == "differs" and position[base_name(t.name)] >= start else t
        for t in tensors
    ]


def _is_decision(truth: Truth, name: str) -> bool:
    return truth[name].value.dtype.kind in "biu"


def _decided_by(truth: Truth, name: str) -> str:
    """The first tensor that a decision changes: a halted token's weight, or the patches that are selected."""
    if name == "decisions.halting_layer":
        return "joint.1.weight" if "joint.1.weight" in truth else name
    return name


def _inside_rounding(asked: Asked, first: Answer, decisions: list[TensorReport]) -> dict[str, str]:
    """The decisions that differ within rounding, with a sentence for each; nothing if the first one is wrong."""
    found: dict[str, str] = {}
    scores: Mapping[str, Array] | None = None
    for tensor in decisions:
        name = base_name(tensor.name)
        if name in DERIVED and DERIVED[name] in asked.truth:
            if not any(base_name(key) == DERIVED[name] for key in found):
                return {}
            continue
        case = asked.what()
        if isinstance(case, TrainingCase):
            return {}
        if scores is None:
            is_model = isinstance(case, ModelCase)
            scores = scores_of(model_case(asked.case, asked.arrays, "float64")) if is_model else {}
        sentence = rounding_explains(asked.truth, case, name, first.tensors[tensor.name], asked.dtype, scores)
        if sentence is None and found:
            continue  # a consequence of an earlier one
        if sentence is None:
            return {}
        found[tensor.name] = sentence
    return found


def rounding_explains(
    truth: Truth, case: ModelCase | OperationCase, name: str, got: Array, dtype: str, scores: Mapping[str, Array]
) -> str | None:
    """One sentence if rounding explains that this decision of the candidate differs; None if it does not.

    scores: ``joint.l.logit`` and ``blocks.g.scores`` of the truth (``scores_of``); not used for operations.
    """
    value = truth[name].value
    if got.shape != value.shape or got.dtype.kind not in "biuf" or not np.isfinite(got).all():
        return None
    if layers_outside(truth, name, got):
        return None
    with np.errstate(invalid="ignore"):  # floats beyond int64 become some integer that is no place either
        got = got.astype(np.int64)
    if isinstance(case, OperationCase):
        flips = _operation_flips(truth, case, name, got, dtype)
    elif name == "decisions.halting_layer":
        flips = _halting_flips(truth, got, dtype, scores)
    else:
        flips = _selection_flips(truth, int(name.rpartition(".")[2]), got, dtype, scores)
    if flips is None:
        return None
    return f"{name}: {int((got != value).sum())} differ, within rounding of their thresholds"


def scores_of(case: ModelCase) -> dict[str, Array]:
    """The scores that decisions read, by the reference in float64, under the decisions of the truth."""
    from refvt.model.haltingvt import HaltingVT

    model = HaltingVT(case.config, case.parameters, backend="reference", dtype="float64")
    trace = model.trace(np.asarray(case.clips, dtype=np.float64), decisions=case.decisions)
    return {name: trace[name] for name in trace if name.endswith((".logit", ".scores"))}


# ---- halting


def _halting_flips(truth: Truth, got: Array, dtype: str, scores: Mapping[str, Array]) -> bool | None:
    """True if every first flip of a clip is within rounding. got [B, N']."""
    config = truth.config
    assert config is not None
    expected = truth["decisions.halting_layer"].value
    L = config.joint_depth
    if L == 1:
        return None  # every token halts in the only layer, whatever its score is
    logits = np.stack([scores[f"joint.{layer}.logit"].reshape(expected.shape) for layer in range(1, L)] or [])
    errors = np.stack([_allowance(truth, f"joint.{layer}.logit", logits[layer - 1], dtype) for layer in range(1, L)])
    low, high = _sums(logits, errors, config.halting_scale, config.halting_center, dtype)
    early = np.where(got == 0, L, got)  # 0: the clip left before
    early = np.where((got == 0) & (expected > expected[:, :1]), expected, early)
    for clip in range(len(expected)):
        if not _first_flips_explained(expected[clip], early[clip], low[:, clip], high[:, clip], 1 - config.epsilon):
            return None
    return True


def _first_flips_explained(expected: Array, got: Array, low: Array, high: Array, threshold: float) -> bool:
    """expected, got [N'], from 1; low, high [L−1, N'] of the running sums. Only the first layer with a flip counts."""
    flipped = np.flatnonzero(expected != got)
    if not len(flipped):
        return True
    layers = np.minimum(expected[flipped], got[flipped])
    first = flipped[layers == layers.min()]
    row = int(layers.min()) - 1
    return row < len(low) and bool(((low[row, first] <= threshold) & (threshold <= high[row, first])).all())


def _sums(logits: Array, errors: Array, scale: float, center: float, dtype: str) -> tuple[Array, Array]:
    """The intervals of the running sums of scores [L−1, …], from logits within ± errors."""

    def score(x: Array) -> Array:
        return np.asarray(1 / (1 + np.exp(-(scale * x - center))))

    with np.errstate(over="ignore"):
        low, high = np.cumsum(score(logits - errors), axis=0), np.cumsum(score(logits + errors), axis=0)
    slack = FLOOR * DTYPES[dtype] * np.maximum(high, 1.0)
    return low - slack, high + slack


# ---- selection


def _selection_flips(truth: Truth, block: int, got: Array, dtype: str, scores: Mapping[str, Array]) -> bool | None:
    """True if the first patch that differs in every frame has a score within rounding of the one expected there."""
    config = truth.config
    assert config is not None
    expected = truth[f"decisions.kept.{block}"].value  # [B, T, S']
    if f"blocks.{block}.scores" not in scores:
        return None
    values = scores[f"blocks.{block}.scores"].reshape(*expected.shape[:2], -1)
    errors = _allowance(truth, f"blocks.{block}.scores", values, dtype)
    entering = np.broadcast_to(np.arange(config.patches_per_frame), (*expected.shape[:2], config.patches_per_frame))
    if block:
        entering = truth[f"decisions.kept.{block - 1}"].value
    for b, t in np.ndindex(*expected.shape[:2]):
        wrong = np.flatnonzero(expected[b, t] != got[b, t])
        if len(wrong):
            pair = [np.flatnonzero(entering[b, t] == kept[b, t][wrong[0]]) for kept in (expected, got)]
            if not all(len(p) for p in pair) or not _close(
                values[b, t], errors[b, t], int(pair[0][0]), int(pair[1][0])
            ):
                return None
    return True


def _close(scores: Array, errors: Array, a: int, b: int) -> bool:
    gap = abs(float(scores[a] - scores[b]))
    return 0 < gap <= float(errors[a] + errors[b])


# ---- operations


def _operation_flips(truth: Truth, case: OperationCase, name: str, got: Array, dtype: str) -> bool | None:
    arguments, settings, eps = case.arguments, case.settings, DTYPES[dtype]
    expected = truth[name].value
    if case.operation == "top_k":
        scores = arguments["scores"].astype(np.float64)
        rounding = eps * np.abs(scores) if dtype in ("float16", "bfloat16") else np.zeros(scores.shape)
        for row in range(len(expected)):
            wrong = np.flatnonzero(expected[row] != got[row])
            if len(wrong):
                a, b = int(expected[row][wrong[0]]), int(got[row][wrong[0]])
                if not 0 <= b < scores.shape[1] or not _close(scores[row], rounding[row], a, b):
                    return None
        return True
    if case.operation not in ("halt", "halt_tokens") or settings.get("last") or "forced" in arguments:
        return None
    threshold = 1 - settings["epsilon"]
    if case.operation == "halt":
        logits, used = arguments["logit"].astype(np.float64)[None], arguments["used"].astype(np.float64)
        low, high = _sums(logits, FLOOR * eps * np.abs(logits), settings["scale"], settings["center"], dtype)
        wrong = expected != got
        # σ(0) is exactly 1/2: where used + 1/2 is 1 − ε to the bit, nothing is rounded
        if bool((wrong & (settings["scale"] * logits[0] == settings["center"]) & (used + 0.5 == threshold)).any()):
            return None
        inside = (low[0] + used <= threshold) & (threshold <= high[0] + used)
        return True if bool(inside[wrong].all()) else None
    logits = arguments["states"][:-1, :, 0].astype(np.float64)
    low, high = _sums(logits, FLOOR * eps * np.abs(logits), settings["scale"], settings["center"], dtype)
    for token in np.flatnonzero(expected != got):
        one = slice(token, token + 1)
        if not _first_flips_explained(expected[one], got[one], low[:, one], high[:, one], threshold):
            return None
    return True


def _allowance(truth: Truth, name: str, value: Array, dtype: str) -> Array:
    """What each element of a score may err. A case without named tensors takes its worst forward error."""
    entry: Mapping[str, Any]
    if name in truth:
        entry = truth[name].entry
    else:
        forward = [t.entry for t in truth.tensors.values() if t.direction == "forward" and not t.entry.get("absolute")]
        keys = {key for e in forward for key in e if key.endswith(("_error", "_peak"))}
        entry = {key: max(float(e.get(key) or 0.0) for e in forward) for key in keys}
    budget = budget_of(entry, dtype, value.size)
    rms = float(np.linalg.norm(value)) / math.sqrt(max(value.size, 1))
    return np.asarray(budget.element * rms + budget.element_floor * np.abs(value))
