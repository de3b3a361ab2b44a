"""How a backend is checked against the golden files, case by case.

- An *operation* case gives the golden arguments and cotangents to one operation and compares its results and gradients.
- A *model* case is run twice. The free run shows whether the backend decides as the golden run did: which patches the
  Glimpser keeps, in which layer each token halts. The second run has the golden decisions imposed on it, and every
  named tensor, output, loss and gradient is compared.
- A *training* case runs freely for all its steps.

A free decision that differs is an error, unless its margin is so small that rounding alone could have changed it. Such
a decision is reported as ambiguous: it neither passes nor fails by luck.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refvt import backends
from refvt.array import Array
from refvt.conformance.budgets import Comparison, compare
from refvt.conformance.golden import Case, load_arrays
from refvt.model.config import HaltingVTConfig
from refvt.model.decisions import Decisions
from refvt.model.haltingvt import HaltingVT
from refvt.training.optimiser import Adam, select_no_decay
from refvt.training.vectors import Vector

__all__ = ["CaseResult", "verify", "verify_case"]

OUTPUTS = ("logits", "motion_logits", "features", "ponder", "tokens_per_layer", "alive")  # stored by model cases
LOSS_SETTINGS = ("ponder_weight", "motion_weight", "label_smoothing")


@dataclass
class CaseResult:
    """Result of one case: all comparisons, the ambiguous decisions, and the exception if the case raised one."""

    case: Case
    comparisons: list[Comparison] = field(default_factory=list)
    ambiguous: list[str] = field(default_factory=list)
    problem: str | None = None

    @property
    def holds(self) -> bool:
        """True if something was compared and every comparison is within its budget."""
        return self.problem is None and bool(self.comparisons) and all(c.holds for c in self.comparisons)

    @property
    def worst(self) -> Comparison | None:
        """The comparison that used the largest share of its budget."""
        return max(self.comparisons, key=lambda c: c.share, default=None)


def verify(
    cases: Iterable[Case],
    backend: str = "reference",
    dtype: str = "float64",
    progress: Callable[[CaseResult], None] | None = None,
) -> list[CaseResult]:
    """Check several cases; a case that raises an exception fails, and the remaining cases still run."""
    results = []
    for case in cases:
        try:
            result = verify_case(case, backend, dtype)
        except Exception as error:
            result = CaseResult(case, problem=f"{type(error).__name__}: {error}")
        results.append(result)
        if progress is not None:
            progress(result)
    return results


def verify_case(case: Case, backend: str = "reference", dtype: str = "float64") -> CaseResult:
    """Check one case with a backend in "float32" or "float64". GoldenError if the case's file is damaged."""
    check = _Check(case, load_arrays(case), backend, dtype, CaseResult(case))
    {"op": _check_operation, "model": _check_model, "training": _check_training}[case.kind](check)
    return check.result


@dataclass(frozen=True)
class _Check:
    """One case, the backend and dtype that compute it, and the result so far."""

    case: Case
    arrays: dict[str, Array]
    backend: str
    dtype: str
    result: CaseResult

    def golden(self, prefix: str) -> dict[str, Array]:
        """The golden arrays whose keys start with the prefix, by the rest of the key."""
        return {key.removeprefix(prefix): value for key, value in self.arrays.items() if key.startswith(prefix)}

    def compare(self, name: str, actual: Any, key: str) -> None:
        """Compare a NumPy array with the golden array of this key, and keep the comparison under ``name``."""
        eps = float(np.finfo(self.dtype).eps)
        self.result.comparisons.append(compare(name, actual, self.arrays[key], self.case.tensors[key], eps))

    def build_model(self, parameters: dict[str, Array]) -> HaltingVT:
        """The case's model with these parameters."""
        assert self.case.config is not None
        return HaltingVT(HaltingVTConfig(**self.case.config), parameters, backend=self.backend, dtype=self.dtype)

    def batch(self) -> dict[str, Any]:
        """The clips and their labels, as arguments of ``loss_and_gradients``."""
        clips = self.arrays["clips"].astype(self.dtype)
        return {"clips": clips, "labels": self.arrays["labels"], "motion_labels": self.arrays["motion_labels"]}


# ---- operations


def _check_operation(check: _Check) -> None:
    case, table = check.case, backends.get(check.backend)
    assert case.operation is not None
    op = table[case.operation]

    def on_backend(value: Array) -> Any:
        if value.dtype.kind != "f":
            return value
        # the cotangent of a loss is a number, which stays in main memory
        return table.arrays.from_numpy(value, check.dtype) if value.ndim else value.astype(check.dtype)

    arguments = {name: on_backend(value) for name, value in check.golden("argument/").items()}
    if op.backward is None:
        (name,) = op.operation.results
        check.compare(name, table.arrays.to_numpy(op(**arguments, **case.settings)), f"result/{name}")
        return
    results, cache = op.forward(**arguments, **case.settings)
    for name, value in zip(op.operation.results, _as_tuple(results), strict=True):
        check.compare(name, table.arrays.to_numpy(value), f"result/{name}")
    cotangents = [on_backend(check.arrays[f"cotangent/{name}"]) for name in op.operation.differentiable]
    gradients = op.backward(*cotangents, cache)
    for name, value in zip(op.operation.gradients, _as_tuple(gradients), strict=True):
        if value is not None:
            check.compare(f"d({name})", table.arrays.to_numpy(value), f"gradient/{name}")


def _as_tuple(results: Any) -> tuple[Any, ...]:
    return results if isinstance(results, tuple) else (results,)


# ---- models


def _check_model(check: _Check) -> None:
    model, settings = check.build_model(check.golden("parameters/")), check.case.settings
    golden = Decisions(
        tuple(check.arrays[f"decisions/kept.{g}"] for g in range(model.config.glimpser_depth)),
        check.arrays["decisions/halting_layer"],
    )

    def drop_path() -> dict[str, Any]:
        """Arguments of stochastic depth; every run draws the same numbers."""
        seed = settings["drop_path_seed"]
        return {"drop_path": settings["drop_path"], "rng": None if seed is None else np.random.default_rng(seed)}

    step: dict[str, Any] = check.batch() | {name: settings[name] for name in LOSS_SETTINGS}
    for execution in ("dense", "compact"):
        free = model.trace(step["clips"], **drop_path(), execution=execution)
        _check_decisions(check, execution, free.output.decisions, golden)
    # with the golden decisions: every named tensor, in dense execution
    trace = model.trace(**step, **drop_path(), gradients=True, decisions=golden)
    for name in check.golden("forward/"):
        check.compare(name, trace[name], f"forward/{name}")
    for name in check.golden("backward/"):
        # without a fused token, scores are read by a decision alone: no gradient reaches them, the golden one is zero
        gradient = trace.get(f"d({name})", np.zeros_like(trace[name]))
        check.compare(f"d({name})", gradient, f"backward/{name}")
    # outputs, losses and gradients, in both executions
    for execution in ("dense", "compact"):
        loss, gradients = model.loss_and_gradients(**step, **drop_path(), execution=execution, decisions=golden)
        for name in OUTPUTS:
            check.compare(f"{execution}: {name}", getattr(loss.output, name), f"output/{name}")
        for name in ("total", "recognition", "ponder", "motion"):
            check.compare(f"{execution}: loss.{name}", np.asarray(getattr(loss, name)), f"loss/{name}")
        for name, gradient in gradients.items():
            check.compare(f"{execution}: d({name})", gradient, f"gradients/{name}")
    # outputs without gradients: compact execution then computes less
    if not settings["drop_path"]:
        output = model(step["clips"], full_ponder=True, decisions=golden)
        for name in OUTPUTS:
            check.compare(f"inference: {name}", getattr(output, name), f"output/{name}")


def _check_decisions(check: _Check, execution: str, free: Decisions, golden: Decisions) -> None:
    """Count the free decisions that differ; they are errors unless rounding explains them."""
    free_arrays, golden_arrays = _decision_arrays(free), _decision_arrays(golden)
    wrong = {name: int((free_arrays[name] != value).sum()) for name, value in golden_arrays.items()}
    kept = sum(count for name, count in wrong.items() if name.startswith("kept"))
    for name, count in (("kept", kept), ("halting_layer", wrong["halting_layer"])):
        if count == 0:
            continue
        what = f"{execution}: decisions.{name}"
        if _rounding_explains(check, name):
            check.result.ambiguous.append(f"{what}: {count} differ, within rounding of their thresholds")
        else:
            check.result.comparisons.append(Comparison(f"{what} ({count} differ)", float(count), 0.5))


def _decision_arrays(decisions: Decisions) -> dict[str, Array]:
    """The decisions under the names of the golden files: kept.0, kept.1, …, halting_layer."""
    assert decisions.kept is not None
    assert decisions.halting_layer is not None
    return {f"kept.{g}": kept for g, kept in enumerate(decisions.kept)} | {"halting_layer": decisions.halting_layer}


def _rounding_explains(check: _Check, name: str) -> bool:
    """True if the margin of these decisions is below the error of a score, as estimated from PyTorch's own errors."""
    case = check.case
    scale = float(np.finfo(check.dtype).eps) / float(np.finfo(np.float32).eps)
    error = max((e.get("float32_error") or 0.0) for e in case.tensors.values()) * scale
    slope = case.config["halting_scale"] if case.config is not None else 1.0
    margins = [case.margins[kind] for kind in (("halting",) if name == "halting_layer" else ("selection", "order"))]
    return any(margin is not None and margin <= 4 * slope * error for margin in margins)


# ---- training


def _check_training(check: _Check) -> None:
    """Run every step freely from the stored start; compare the losses, the decisions and the final parameters.

    The margins of the decisions are at least a thousandth in every step, more than rounding can reach.
    """
    settings = check.case.settings
    model = check.build_model(check.golden("start/"))
    shapes = {name: tuple(value.shape) for name, value in model.parameters.items()}
    parameters = Vector(shapes, check.dtype, check.backend).set(model.parameters)
    gradients = Vector(shapes, check.dtype, check.backend)
    model.parameters, array_functions = parameters.arrays, parameters.ops.arrays
    adamw = Adam(
        parameters,
        select_no_decay(shapes, norms_and_biases=False),
        weight_decay=settings["weight_decay"],
        epsilon=settings["adam_epsilon"],
    )
    step: dict[str, Any] = check.batch() | {name: settings[name] for name in LOSS_SETTINGS}
    losses: list[float] = []
    decisions: list[dict[str, Array]] = []
    for _ in check.arrays["losses"]:
        loss, found = model.loss_and_gradients(**step, arrays="device")
        gradients.set(found)
        if settings["optimiser"] == "adamw":
            adamw.step(gradients, settings["rate"])
        else:
            array_functions.add_scaled(parameters.vector, gradients.vector, -settings["rate"])
        losses.append(loss.total)
        decisions.append(_decision_arrays(loss.output.decisions))
    for name in check.golden("decisions/"):
        check.compare(f"decisions.{name}", np.stack([d[name] for d in decisions]), f"decisions/{name}")
    check.compare("losses", np.array(losses), "losses")
    for name, value in parameters.arrays.items():
        check.compare(f"final {name}", array_functions.to_numpy(value), f"final/{name}")
