"""A few lines of Python that show a divergence again, and the two functions that they call."""

from __future__ import annotations

from pathlib import Path
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
    method = "answer_operation" if truth.kind == "op" else "answer_model"
    lines = ["from refvt.conformance import compare_tensor, load_case"]
    if candidate in backends.BACKENDS:
        lines.append("from refvt.conformance.own_backends import backend_candidate")
        lines.append(f'case = load_case("{truth.name}", "{dtype}")')
        lines.append(f'value = backend_candidate("{candidate}", "{dtype}").{method}(case)["{first.tensor}"]')
    elif Path(candidate).is_dir():  # an exchange folder: its results are files
        results = Path(candidate) / truth.name / "results" / f"{name}.npy"
        lines = ["import numpy as np", "from refvt.conformance import compare_tensor"]
        lines.append(f"value = np.load({str(results)!r})")
    else:
        importable = ":" in candidate and "<" not in candidate
        lines.append(f"from refvt.conformance.candidates import {'resolve, wrap' if importable else 'wrap'}")
        found = f"resolve({candidate!r})" if importable else f"...  # {candidate}"
        lines += [f"mine = {found}", 'candidate = wrap(mine, "mine")']
        lines.append(f'case = load_case("{truth.name}", "{dtype}")')
        lines.append(f'value = candidate.{method}(case)["{name}"]')
    lines.append(f'print(compare_tensor("{truth.name}", "{name}", value, "{dtype}"))')
    return "\n".join(lines)
