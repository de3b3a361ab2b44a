"""refvt's own backends as candidates: the model in every execution, training, every operation on NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from refvt import backends
from refvt.array import Array
from refvt.conformance.adapters import on_host
from refvt.conformance.candidates import Candidate, OperationCandidate
from refvt.conformance.cases import LOSS_SETTINGS, ModelCase, TrainingCase
from refvt.model.haltingvt import HaltingVT
from refvt.training.optimiser import Adam, select_no_decay
from refvt.training.vectors import Vector

__all__ = ["backend_candidate"]

OUTPUTS = ("logits", "motion_logits", "features", "ponder", "tokens_per_layer", "alive")
LOSSES = ("total", "recognition", "ponder", "motion")


def backend_candidate(backend: str, dtype: str) -> Candidate:
    """A backend as a candidate. ValueError for its name or a dtype it lacks, Unavailable if this machine lacks it."""
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype: refvt's backends compute in float32 or float64, got {dtype!r}")
    table = backends.get(backend)
    found = {}
    for name, op in vars(table).items():
        if isinstance(op, backends.Implementation | backends.ForwardOnly):
            hosted = on_host(table, name)
            cached = op.operation.has_backward
            found[name] = OperationCandidate(op.operation, hosted.forward, hosted.backward, cached)
    return Candidate(backend, lambda case: _run(case, backend, dtype), found, lambda case: _train(case, backend, dtype))


def _run(case: ModelCase, backend: str, dtype: str) -> dict[str, Array]:
    """A trace of dense execution, with every named tensor; then training steps and inference, whose names say so.

    All decide for themselves, unless the case forces them, but one more training step, on which the decisions of the
    truth are always imposed, so that imposing is checked too.
    """
    model = HaltingVT(case.config, case.parameters, backend=backend, dtype=dtype)
    decisions = case.decisions if case.force_decisions else None
    step: dict[str, Any] = {"labels": case.labels, "motion_labels": case.motion_labels, **case.settings}
    random: dict[str, Any] = {} if case.drop_path is None else {"drop_path": case.drop_path}
    trace = model.trace(case.clips, gradients=True, decisions=decisions, **step, **random)
    found = dict(trace)
    for name, value in trace.items():  # scores that only a decision reads: no gradient reaches them
        if name.endswith(".scores") and f"d({name})" not in trace:
            found[f"d({name})"] = np.zeros_like(value)
    found |= _outputs("", trace.output)
    runs = {"dense": decisions, "compact": decisions, "imposed": case.decisions}
    for view, imposed in runs.items():
        execution = "dense" if view == "imposed" else view
        loss, gradients = model.loss_and_gradients(case.clips, **step, **random, execution=execution, decisions=imposed)
        found |= {f"{view}: loss.{name}": np.asarray(getattr(loss, name)) for name in LOSSES}
        found |= _outputs(f"{view}: ", loss.output)
        found |= {f"{view}: d({name})": gradient for name, gradient in gradients.items()}
    if case.drop_path is None:
        found |= _outputs("inference: ", model(case.clips, full_ponder=True, decisions=decisions))
    return found


def _outputs(view: str, output: Any) -> dict[str, Array]:
    found = {f"{view}{name}": getattr(output, name) for name in OUTPUTS}
    found |= {f"{view}decisions.kept.{g}": kept for g, kept in enumerate(output.decisions.kept)}
    return found | {f"{view}decisions.halting_layer": output.decisions.halting_layer}


def _train(case: TrainingCase, backend: str, dtype: str) -> dict[str, Array]:
    """Every step freely from the stored start: the losses, the decisions and the final parameters.

    The margins of the decisions are at least a thousandth in every step, more than rounding can reach.
    """
    settings = case.settings
    model = HaltingVT(case.config, case.start, backend=backend, dtype=dtype)
    shapes = {name: tuple(value.shape) for name, value in model.parameters.items()}
    parameters = Vector(shapes, dtype, backend).set(model.parameters)
    gradients = Vector(shapes, dtype, backend)
    model.parameters, array_functions = parameters.arrays, parameters.ops.arrays
    adamw = Adam(
        parameters,
        select_no_decay(shapes, norms_and_biases=False),
        weight_decay=settings["weight_decay"],
        epsilon=settings["adam_epsilon"],
    )
    step: dict[str, Any] = case.batch | {name: settings[name] for name in LOSS_SETTINGS}
    losses: list[float] = []
    decisions: list[dict[str, Array]] = []
    for _ in range(case.steps):
        loss, found = model.loss_and_gradients(**step, arrays="device")
        gradients.set(found)
        if settings["optimiser"] == "adamw":
            adamw.step(gradients, settings["rate"])
        else:
            array_functions.add_scaled(parameters.vector, gradients.vector, -settings["rate"])
        losses.append(loss.total)
        decisions.append(_outputs("", loss.output))
    names = [name for name in decisions[0] if name.startswith("decisions.")]
    stacked = {name: np.stack([taken[name] for taken in decisions]) for name in names}
    final = {f"final {name}": array_functions.to_numpy(value) for name, value in parameters.arrays.items()}
    return {**stacked, "losses": np.array(losses), **final}
