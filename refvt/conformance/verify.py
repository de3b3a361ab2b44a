"""How a backend of refvt is checked against the golden files: ``check``, one case at a time.

- An *operation* case gives the golden arguments and cotangents to one operation and compares its results and gradients.
- A *model* case runs a trace with every named tensor, training steps in dense and compact execution, and inference.
- A *training* case runs freely for all its steps.

A decision that differs is an error, unless its margin is so small that rounding alone could have changed it. Such a
decision is ambiguous: it neither passes nor fails by luck, and the rest is compared under the golden decisions.
"""

from __future__ import annotations

from collections.abc import Iterable

from refvt.conformance.checking import check_case
from refvt.conformance.golden import Case
from refvt.conformance.isolation import InProcess
from refvt.conformance.own_backends import backend_candidate
from refvt.conformance.report import CaseReport

__all__ = ["verify", "verify_case"]


def verify(cases: Iterable[Case], backend: str = "reference", dtype: str = "float64") -> list[CaseReport]:
    """Check several cases; one that raises an exception has the status "error", and the remaining cases still run."""
    return [verify_case(case, backend, dtype) for case in cases]


def verify_case(case: Case, backend: str = "reference", dtype: str = "float64") -> CaseReport:
    """Check one case with a backend in "float32" or "float64"."""
    return check_case(InProcess(backend_candidate(backend, dtype), None), case, dtype, backend)
