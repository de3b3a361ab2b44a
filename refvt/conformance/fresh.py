"""Cases with other inputs: the golden ones drawn again from a seed, with the float64 reference as the truth.

They show that a candidate does not agree by luck, and that no budget is too small. A fresh case keeps the shapes, the
index arrays, the settings and the parameters of its golden case; floats (the arguments of an operation, the clips and
labels of a model) are drawn again with the mean and the deviation of the golden ones. The reference is not PyTorch, so
the budgets are derived: the error of a tensor is taken as the larger of PyTorch's error in the golden case, whose
operations and sizes are the same, and the reference's own float32 error on the fresh inputs, over three orders of the
batch's rounding (the inputs scaled by 1 ± eps). ``budgets`` then allows its multiple.

Inputs whose decisions are nearer to a threshold than a thousandth are drawn again, as for the golden files; after 50
draws the last is taken as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from refvt.array import Array
from refvt.conformance.candidates import Candidate
from refvt.conformance.cases import DECISIONS, model_case, operation_case, truth_of
from refvt.conformance.golden import Case
from refvt.conformance.own_backends import backend_candidate

__all__ = ["fresh_case", "with_truth"]

MARGIN = 1e-3
ATTEMPTS = 50
PROBABILITIES = ("used", "weight", "scores", "targets")  # arguments that are not drawn from a normal distribution


def fresh_case(case: Case, arrays: Mapping[str, Array], seed: int) -> tuple[Case, dict[str, Array]]:
    """A golden case of an operation or a model with other inputs: its entry for the manifest, and its arrays."""
    exact = backend_candidate("reference", "float64")
    for attempt in range(ATTEMPTS):
        rng = np.random.default_rng([seed, attempt])
        drawn = {name: _redrawn(name, value, case, rng) for name, value in arrays.items()}
        found = _answers(exact, case, drawn, "float64")
        if _margin(case, drawn, found) >= MARGIN:
            break
    return with_truth(case, drawn, found)


def with_truth(
    case: Case, arrays: Mapping[str, Array], found: Mapping[str, Array] | None = None
) -> tuple[Case, dict[str, Array]]:
    """A case whose inputs were changed, with the answers of the reference as its truth, and budgets for them.

    found: the answers of the float64 reference, if they are there already.
    """
    drawn = dict(arrays)
    found = _answers(backend_candidate("reference", "float64"), case, drawn, "float64") if found is None else found
    rounded = [_answers(backend_candidate("reference", "float32"), case, _nudged(drawn, n), "float32", found)
               for n in range(3)]  # fmt: skip
    tensors = dict(case.tensors)
    for name in truth_of(case, arrays):
        for key in _keys(name, arrays):
            value = np.asarray(found[name], dtype=arrays[key].dtype)
            drawn[key] = value
            if value.dtype.kind == "f":
                tensors[key] = _entry(case.tensors[key], value, [run[name] for run in rounded])
    return replace(case, tensors=tensors), drawn


def _redrawn(name: str, value: Array, case: Case, rng: np.random.Generator) -> Array:
    """New numbers in the place of an input; other arrays as they are."""
    kind, _, base = name.rpartition("/")
    is_input = kind in ("argument", "cotangent") or name == "clips"
    if not is_input or value.dtype.kind != "f" or not np.isfinite(value).all() or value.size < 2:
        return value
    if base in PROBABILITIES or (case.operation == "linear" and base == "gain"):
        return rng.permutation(value.reshape(-1)).reshape(value.shape)
    fresh: Array = value.mean() + value.std() * rng.standard_normal(value.shape)
    if base == "states":  # channel 0 is the halting logit
        fresh[..., 0] = value[..., 0].mean() + value[..., 0].std() * rng.standard_normal(value.shape[:-1])
    return np.asarray(fresh.astype(np.float32), dtype=np.float64)


def _nudged(arrays: Mapping[str, Array], n: int) -> dict[str, Array]:
    """The inputs moved by a unit of rounding of float32 at most, so that three runs round differently."""
    if n == 0:
        return dict(arrays)
    rng, eps = np.random.default_rng(n), 2.0**-24
    moved = {}
    for name, value in arrays.items():
        is_input = name.startswith(("argument/", "parameters/", "cotangent/")) or name == "clips"
        noise = 1 + eps * rng.uniform(-1, 1, value.shape) if is_input and value.dtype.kind == "f" else None
        moved[name] = value if noise is None or not np.isfinite(value).all() else value * noise
    return moved


def _answers(
    candidate: Candidate, case: Case, arrays: Mapping[str, Array], dtype: str, forced: Mapping[str, Array] | None = None
) -> dict[str, Array]:
    """Every tensor of the case by a backend; forced: results whose decisions are imposed."""
    if case.kind == "op":
        given = None
        decision = DECISIONS.get(case.operation or "")
        if forced is not None and decision is not None:
            given = {"forced": forced[decision]}
        return candidate.answer_operation(operation_case(case, arrays, dtype), given)
    model = model_case(case, arrays, dtype)
    if forced is not None:
        kept = tuple(forced[f"decisions.kept.{g}"] for g in range(model.config.glimpser_depth))
        decisions = replace(model.decisions, kept=kept, halting_layer=forced["decisions.halting_layer"])
        model = replace(model, decisions=decisions, force_decisions=True)
    found = candidate.answer_model(model)
    plain = {name: value for name, value in found.items() if ": " not in name}
    return plain | {n.removeprefix("dense: "): v for n, v in found.items() if n.startswith("dense: loss.")}


def _margin(case: Case, arrays: Mapping[str, Array], found: Mapping[str, Array]) -> float:
    """The smallest distance of a decision from its threshold; selections by the gaps of their scores."""
    distances = [1.0]
    if case.kind == "model":
        assert case.config is not None
        scale, center, epsilon = (float(case.config[n]) for n in ("halting_scale", "halting_center", "epsilon"))
        last = case.config["depth"] - case.config["glimpser_depth"]
        named = [found[f"joint.{layer}.logit"] for layer in range(1, last)]
        layers = found["decisions.halting_layer"].reshape(-1)
        distances += _running(np.array(named), layers, scale, center, epsilon)
        for name, scores in found.items():
            if name.endswith(".scores") and not name.startswith("d("):
                ordered = np.sort(scores, axis=-1)
                gaps = (ordered[..., 1:] - ordered[..., :-1]) / ordered[..., 1:]
                distances.append(float(gaps.min(initial=1.0)))
    elif case.operation == "halt_tokens":
        logits, s = arrays["argument/states"][:-1, :, 0], case.settings
        distances += _running(logits, found["halting_layer"], s["scale"], s["center"], s["epsilon"])
    elif case.operation == "halt" and not case.settings["last"] and "argument/forced" not in arrays:
        s = case.settings
        score = 1 / (1 + np.exp(s["center"] - s["scale"] * arrays["argument/logit"]))
        distances.append(float(np.abs(arrays["argument/used"] + score - (1 - s["epsilon"])).min()))
    return min(distances)


def _running(logits: Array, layers: Array, scale: float, center: float, epsilon: float) -> list[float]:
    """Distances of the running sums [L−1, n] from 1 − ε, of tokens that have not halted before."""
    if not logits.size:
        return []
    with np.errstate(over="ignore"):
        sums = np.cumsum(1 / (1 + np.exp(center - scale * logits)), axis=0)
    alive = np.arange(1, len(logits) + 1)[:, None] <= layers
    return [float(np.abs(sums - (1 - epsilon))[alive].min(initial=1.0))]


def _keys(name: str, arrays: Mapping[str, Array]) -> list[str]:
    """The keys of a tensor of the truth in the golden file."""
    base = name.removeprefix("d(").removesuffix(")") if name.startswith("d(") else name
    if base != name:
        keys = [f"{kind}/{base}" for kind in ("gradient", "backward", "gradients")]
    else:
        kinds = ("loss",) if base.startswith("loss.") else _FORWARD
        keys = [f"{kind}/{base.removeprefix('decisions.').removeprefix('loss.')}" for kind in kinds]
    return [key for key in keys if key in arrays]


_FORWARD = ("result", "forward", "output", "decisions")


def _entry(golden: Mapping[str, Any], truth: Array, runs: list[Array]) -> dict[str, Any]:
    """The entry of a tensor: the larger of the golden errors and those of the reference in float32."""
    norm = float(np.linalg.norm(truth))
    entry = {key: value for key, value in golden.items() if key != "absolute"}
    scale = 1.0 if golden.get("absolute") or norm == 0 else norm
    if scale == 1.0:
        entry["absolute"] = True
    differences = [np.asarray(run, dtype=np.float64) - truth for run in runs]
    error = max(float(np.linalg.norm(d)) for d in differences) / scale
    spread = 1.0 if entry.get("absolute") else np.sqrt(truth.size)
    peak = max(float(np.abs(d).max(initial=0)) for d in differences) / scale * spread
    entry["float32_error"] = max(float(golden.get("float32_error") or 0.0), error)
    entry["float32_peak"] = max(float(golden.get("float32_peak") or 0.0), peak)
    return entry
