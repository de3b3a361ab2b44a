"""Holding a backend against the golden files, case by case.

An operation is given the golden arguments and cotangents. A model is run twice: freely, to see whether it decides as
the truth decided (which patches, which layers), and then under the truth's decisions, to compare every named tensor,
output, loss and gradient. A free decision that differs is an error, unless its margin is so small that rounding alone
could have flipped it: then it is reported as ambiguous, and neither passes nor fails by luck. A training case is run
freely for all its steps.
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

OUTPUTS = ("logits", "motion_logits", "features", "ponder", "tokens_per_layer", "alive")  # that golden models hold


@dataclass
class CaseResult:
    """What came of one case: every comparison, and the decisions that were too close to call."""

    case: Case
    comparisons: list[Comparison] = field(default_factory=list)
    ambiguous: list[str] = field(default_factory=list)
    problem: str | None = None

    @property
    def holds(self) -> bool:
        return self.problem is None and bool(self.comparisons) and all(c.holds for c in self.comparisons)

    @property
    def worst(self) -> Comparison | None:
        """The comparison that used most of its budget."""
        return max(self.comparisons, key=lambda c: c.share, default=None)


def verify(
    cases: Iterable[Case],
    backend: str = "reference",
    dtype: str = "float64",
    progress: Callable[[CaseResult], None] | None = None,
) -> list[CaseResult]:
    """Every case in turn; a case that raises is a failed case, the others go on."""
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
    """One case held against a backend in one dtype ("float32" or "float64"). GoldenError if its file is damaged."""
    arrays = load_arrays(case)
    result = CaseResult(case)
    eps = float(np.finfo(dtype).eps)

    def hold(name: str, actual: Any, key: str) -> None:
        result.comparisons.append(compare(name, actual, arrays[key], case.tensors[key], eps))

    if case.kind == "op":
        _verify_operation(case, arrays, backend, dtype, hold)
    elif case.kind == "training":
        _verify_training(case, arrays, backend, dtype, hold)
    else:
        _verify_model(case, arrays, backend, dtype, hold, result)
    return result


def _under(arrays: dict[str, Array], prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def _verify_operation(
    case: Case, arrays: dict[str, Array], backend: str, dtype: str, hold: Callable[[str, Any, str], None]
) -> None:
    table = backends.get(backend)
    assert case.operation is not None
    op = table[case.operation]

    def own(value: Array) -> Any:
        if value.dtype.kind != "f":
            return value
        # the cotangent of a loss is a number, which stays in main memory
        return table.arrays.from_numpy(value, dtype) if value.ndim else value.astype(dtype)

    arguments = {name: own(value) for name, value in _under(arrays, "argument/").items()}
    if op.backward is None:
        (name,) = op.operation.results
        hold(name, table.arrays.to_numpy(op(**arguments, **case.settings)), f"result/{name}")
        return
    results, cache = op.forward(**arguments, **case.settings)
    results = results if isinstance(results, tuple) else (results,)
    for name, value in zip(op.operation.results, results, strict=True):
        hold(name, table.arrays.to_numpy(value), f"result/{name}")
    cotangents = [own(arrays[f"cotangent/{name}"]) for name in op.operation.differentiable]
    gradients = op.backward(*cotangents, cache)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    for name, value in zip(op.operation.gradients, gradients, strict=True):
        if value is not None:
            hold(f"d({name})", table.arrays.to_numpy(value), f"gradient/{name}")


def _verify_model(
    case: Case,
    arrays: dict[str, Array],
    backend: str,
    dtype: str,
    hold: Callable[[str, Any, str], None],
    result: CaseResult,
) -> None:
    assert case.config is not None
    config = HaltingVTConfig(**case.config)
    model = HaltingVT(config, _under(arrays, "parameters/"), backend=backend, dtype=dtype)
    clips = arrays["clips"].astype(dtype)
    targets: dict[str, Any] = {"labels": arrays["labels"], "motion_labels": arrays["motion_labels"]}
    settings: dict[str, Any] = {
        n: case.settings[n] for n in ("ponder_weight", "motion_weight", "label_smoothing", "drop_path")
    }
    forced = Decisions(
        tuple(arrays[f"decisions/kept.{g}"] for g in range(config.glimpser_depth)), arrays["decisions/halting_layer"]
    )

    def rng() -> np.random.Generator | None:
        seed = case.settings["drop_path_seed"]
        return None if seed is None else np.random.default_rng(seed)

    # freely: does it decide as the truth did, in both executions?
    for execution in ("dense", "compact"):
        free = model.trace(clips, drop_path=settings["drop_path"], rng=rng(), execution=execution).output.decisions
        for name, wrong in _differing(free, forced):
            what = f"{execution}: decisions.{name}"
            if _rounding_explains(case, name, dtype):
                result.ambiguous.append(f"{what}: {wrong} differ, within rounding of their thresholds")
            else:
                result.comparisons.append(Comparison(f"{what} ({wrong} differ)", float(wrong), 0.5))

    # under the truth's decisions: every named tensor, in dense execution
    trace = model.trace(clips, gradients=True, **targets, **settings, rng=rng(), decisions=forced)
    for name in _under(arrays, "forward/"):
        hold(name, trace[name], f"forward/{name}")
    for name in _under(arrays, "backward/"):
        # scores that feed no fused token are read by a decision alone: no gradient reaches them, the truth says zero
        gradient = trace.get(f"d({name})", np.zeros_like(trace[name]))
        hold(f"d({name})", gradient, f"backward/{name}")
    # outputs, losses and gradients, in both executions
    for execution in ("dense", "compact"):
        loss, gradients = model.loss_and_gradients(
            clips, **targets, **settings, execution=execution, rng=rng(), decisions=forced
        )
        for name in OUTPUTS:
            hold(f"{execution}: {name}", getattr(loss.output, name), f"output/{name}")
        for name in ("total", "recognition", "ponder", "motion"):
            hold(f"{execution}: loss.{name}", np.asarray(getattr(loss, name)), f"loss/{name}")
        for name, gradient in gradients.items():
            hold(f"{execution}: d({name})", gradient, f"gradients/{name}")
    # outputs where no gradient is asked for: compact execution has a shorter way then
    if not settings["drop_path"]:
        output = model(clips, full_ponder=True, decisions=forced)
        for name in OUTPUTS:
            hold(f"inference: {name}", getattr(output, name), f"output/{name}")


def _verify_training(
    case: Case, arrays: dict[str, Array], backend: str, dtype: str, hold: Callable[[str, Any, str], None]
) -> None:
    """Every step from the stored start, each run deciding for itself: losses, decisions, the parameters at the end.

    The decisions' margins are at least a thousandth in every step, beyond what rounding can reach in them.
    """
    assert case.config is not None
    model = HaltingVT(HaltingVTConfig(**case.config), _under(arrays, "start/"), backend=backend, dtype=dtype)
    shapes = {name: tuple(value.shape) for name, value in model.parameters.items()}
    parameters, gradients = Vector(shapes, dtype, backend).set(model.parameters), Vector(shapes, dtype, backend)
    model.parameters, array_functions = parameters.arrays, parameters.ops.arrays
    rate, settings = case.settings["rate"], {"weight_decay": case.settings["weight_decay"]}
    settings["epsilon"] = case.settings["adam_epsilon"]
    adamw = Adam(parameters, select_no_decay(shapes, norms_and_biases=False), **settings)
    targets = (arrays["clips"].astype(dtype), arrays["labels"], arrays["motion_labels"])
    weights = {name: case.settings[name] for name in ("ponder_weight", "motion_weight", "label_smoothing")}
    losses: list[float] = []
    decided: dict[str, list[Array]] = {name: [] for name in _under(arrays, "decisions/")}
    for _ in arrays["losses"]:
        loss, found = model.loss_and_gradients(*targets, **weights, arrays="device")
        gradients.set(found)
        if case.settings["optimiser"] == "adamw":
            adamw.step(gradients, rate)
        else:
            array_functions.add_scaled(parameters.vector, gradients.vector, -rate)
        losses.append(loss.total)
        own = loss.output.decisions
        assert own.kept is not None
        assert own.halting_layer is not None
        for name, choice in {
            "halting_layer": own.halting_layer,
            **{f"kept.{g}": k for g, k in enumerate(own.kept)},
        }.items():
            decided[name].append(choice)
    for name, choices in decided.items():
        hold(f"decisions.{name}", np.stack(choices), f"decisions/{name}")
    hold("losses", np.array(losses), "losses")
    for name, value in parameters.arrays.items():
        hold(f"final {name}", array_functions.to_numpy(value), f"final/{name}")


def _differing(free: Decisions, forced: Decisions) -> list[tuple[str, int]]:
    assert free.kept is not None
    assert free.halting_layer is not None
    assert forced.kept is not None
    assert forced.halting_layer is not None
    found = [("kept", sum(np.count_nonzero(a != b) for a, b in zip(free.kept, forced.kept, strict=True)))]
    found.append(("halting_layer", np.count_nonzero(np.not_equal(free.halting_layer, forced.halting_layer))))
    return [(name, int(wrong)) for name, wrong in found if wrong]


def _rounding_explains(case: Case, name: str, dtype: str) -> bool:
    """Is the case's margin smaller than what a score can be off by, judged by PyTorch's own error in its logits?"""
    wanted = ("halting",) if name == "halting_layer" else ("selection", "order")
    margins = [case.margins[kind] for kind in wanted]
    scale = float(np.finfo(dtype).eps) / float(np.finfo(np.float32).eps)
    error = max((e.get("float32_error") or 0.0) for e in case.tensors.values()) * scale
    gain = case.config["halting_scale"] if case.config is not None else 1.0
    return any(margin is not None and margin <= 4 * gain * error for margin in margins)
