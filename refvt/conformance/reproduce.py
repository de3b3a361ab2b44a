"""A few lines of Python that show a divergence again, and the two functions that they call."""

from __future__ import annotations

from typing import Any

from refvt import backends
from refvt.conformance.candidates import to_array
from refvt.conformance.cases import ModelCase, OperationCase, Truth, model_case, operation_case, truth_of
from refvt.conformance.golden import Case, GoldenError, load_arrays, load_manifest
from refvt.conformance.judgement import judge
from refvt.conformance.report import Divergence, TensorReport

__all__ = ["compare_tensor", "load_case", "load_truth", "snippet"]


def load_case(name: str, dtype: str = "float32", force_decisions: bool = False) -> ModelCase | OperationCase:
    """What a candidate is given in a golden case. GoldenError for a name that is not there."""
    case = _find(name)
    arrays = load_arrays(case)
    if case.kind == "op":
        return operation_case(case, arrays, dtype)
    return model_case(case, arrays, dtype, force_decisions)


def load_truth(name: str) -> Truth:
    """The truth of a golden case: ``load_truth("model-zero")["blocks.3.attn.q"].value``."""
    case = _find(name)
    return truth_of(case, load_arrays(case))


def compare_tensor(case: str, name: str, value: Any, dtype: str = "float32") -> TensorReport:
    """Compare one array with the tensor of this name in a golden case; print it to see the worst element."""
    return judge(load_truth(case), name, to_array(name, value), dtype)


def _find(name: str) -> Case:
    cases = load_manifest()
    if name not in cases or cases[name].kind == "training":
        raise GoldenError(f"case: expected the name of a golden case, got {name!r}")
    return cases[name]


def snippet(truth: Truth, first: Divergence, candidate: str, dtype: str) -> str:
    """Runnable text that computes the first divergence again and prints both values of its worst element."""
    name = first.tensor.rpartition(": ")[2]
    lines = ["from refvt.conformance import compare_tensor, load_case"]
    if candidate in backends.BACKENDS:
        lines.append("from refvt.conformance.own_backends import backend_candidate")
        made = f'backend_candidate("{candidate}", "{dtype}")'
        get = f'["{first.tensor}"]'
        method = "answer_operation" if truth.kind == "op" else "answer_model"
        call = f"{made}.{method}(case){get}"
    else:
        module, _, path = candidate.partition(":")
        head = path.partition(".")[0]
        if path.isidentifier() and module.isidentifier():
            lines += ["import sys; sys.path.insert(0, '.')", f"from {module} import {head}"]
        elif path.isidentifier() and not module.endswith(".py"):
            lines.append(f"from {module} import {head}")
        else:
            lines.append(f"# candidate = {candidate}")
        path = path if path.isidentifier() and not module.endswith(".py") else "candidate"
        call = f'{path}(case)["{name}"]'
        if truth.kind == "op":
            lines.append("from refvt.conformance.candidates import wrap")
            call = f'wrap({path}, "mine").answer_operation(case)["{name}"]'
    lines.append(f'case = load_case("{truth.name}", "{dtype}")')
    lines.append(f'print(compare_tensor(case.name, "{name}", {call}, "{dtype}"))')
    return "\n".join(lines)
