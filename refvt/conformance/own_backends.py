"""refvt's own backends as candidates: the model in every execution, and every operation on NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from refvt import backends
from refvt.array import Array
from refvt.conformance.adapters import on_host
from refvt.conformance.candidates import Candidate, OperationCandidate
from refvt.conformance.cases import ModelCase
from refvt.model.haltingvt import HaltingVT

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
    return Candidate(backend, lambda case: _run(case, backend, dtype), found)


def _run(case: ModelCase, backend: str, dtype: str) -> dict[str, Array]:
    """Dense execution with every named tensor, then compact execution and inference, whose names say so."""
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
    for execution in ("dense", "compact"):
        view = "" if execution == "dense" else "compact: "
        loss, gradients = model.loss_and_gradients(
            case.clips, **step, **random, execution=execution, decisions=decisions
        )
        found |= {f"{view}loss.{name}": np.asarray(getattr(loss, name)) for name in LOSSES}
        if view:
            found |= _outputs(view, loss.output)
            found |= {f"{view}d({name})": gradient for name, gradient in gradients.items()}
    if case.drop_path is None:
        found |= _outputs("inference: ", model(case.clips, full_ponder=True, decisions=decisions))
    return found


def _outputs(view: str, output: Any) -> dict[str, Array]:
    found = {f"{view}{name}": getattr(output, name) for name in OUTPUTS}
    found |= {f"{view}decisions.kept.{g}": kept for g, kept in enumerate(output.decisions.kept)}
    return found | {f"{view}decisions.halting_layer": output.decisions.halting_layer}
