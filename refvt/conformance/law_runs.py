"""The laws, run on a candidate's operations with inputs from Hypothesis; a broken law comes with a small program.

``run_law(candidate, "attention", "segments_do_not_meet")`` draws ordinary inputs and those of every edge
(``strategies.EDGES``), shrinks an input that breaks the law, and returns a ``LawReport``. Its ``reproduce`` is a Python
program with the arrays in full, which ends in ``check_law``: it raises ``LawBroken`` with the numbers.

What counts, and what does not:

- An input counts against a candidate only if refvt's own reference keeps the law on it.
- A candidate without a backward is run with the reference's backward. Laws that speak of gradients alone
  (``GRADIENT_LAWS``) are then "not given"; ``adjoint`` asks whether the forward has the reference's derivative.
- ``adjoint`` is a difference quotient. It is always run in float64, for a candidate in float32 too; it is "not given"
  if the results come in another dtype.
- The edge "denormal" is not drawn: the tolerances are relative, and a machine may flush denormal numbers to zero.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from refvt import backends
from refvt.conformance.candidates import Candidate, CannotFollow, OperationCandidate, call, resolve, wrap
from refvt.conformance.law_programs import program, simplify
from refvt.conformance.laws import laws_of
from refvt.conformance.report import LawReport
from refvt.ops import Operation
from refvt.ops.halting.laws import nothing_after_halting_matters
from refvt.ops.laws import Computes, Inputs, Law, LawBroken

__all__ = ["GRADIENT_LAWS", "check_law", "laws_for", "run_law", "run_laws"]

GRADIENT_LAWS = (
    "gradient_shapes",
    "linear_in_cotangent",
    "gradient_does_not_move_the_mean",
    "permutation_goes_and_comes_back",
    "nothing_flows_to_the_unread",
    "only_cls_asks",
    "the_kept_are_not_fused",
    "no_gradient_through_the_comparison",
)
"""Laws that no forward breaks: they are "not given" for a candidate without a backward."""

NOT_LINEAR = ("adjoint", "linear_in_cotangent")  # their bounds hold for inputs of order one, so not at the edge "large"
DTYPES = ("float32", "float64")


class _TimeIsUp(BaseException):
    """No more inputs are tried. No Exception: Hypothesis would take it for a broken law, and shrink."""


class _OtherDtype(Exception):  # noqa: N818 - no error: the law cannot be asked
    """The candidate did not compute in the dtype of its inputs."""


@dataclass(frozen=True)
class _Computes:
    """An operation of a candidate as the laws call it: by name, with ``keep``, NumPy arrays in and out."""

    candidate: OperationCandidate
    operation: Operation
    dtype: str | None = None  # the dtype that results must have, if any
    borrowed: list[str] = field(default_factory=list, compare=False)  # "backward" once the reference's was called

    def forward(self, keep: bool = True, **inputs: Any) -> Any:
        op = self.operation
        given = {name: value for name, value in inputs.items() if value is not None}
        settings = {name: given[name] for name in op.settings if name in given}
        if _takes(self.candidate.forward, "keep"):
            settings["keep"] = keep
        arguments = {name: value for name, value in given.items() if name not in op.settings}
        answer, cache = call(self.candidate, arguments, settings), None
        if self.candidate.cached:
            answer, cache = answer
        results = self._arrays(answer, len(op.results))
        if not op.has_backward:
            return results
        if self.candidate.backward is None:
            cache = _reference(op.name).forward(**inputs)[1] if keep else None
        return results, cache

    @property
    def backward(self) -> Callable[..., Any] | None:
        if not self.operation.has_backward:
            return None
        return self._backward

    def _backward(self, *cotangents_and_cache: Any) -> Any:
        if self.candidate.backward is None:
            self.borrowed[:] = ["backward"]
            return _reference(self.operation.name).backward(*cotangents_and_cache)  # type: ignore[misc]
        return self._arrays(self.candidate.backward(*cotangents_and_cache), len(self.operation.gradients))

    def _arrays(self, answer: Any, count: int) -> Any:
        if answer is None:
            return None
        values = tuple(answer) if isinstance(answer, tuple | list) else (answer,)
        arrays = tuple(None if value is None else np.asarray(value) for value in values)
        if len(arrays) != count:
            raise TypeError(f"{self.operation.name}: expected {count} results, got {len(arrays)}")
        for array in arrays:
            if self.dtype and array is not None and array.dtype.kind == "f" and array.dtype != self.dtype:
                raise _OtherDtype(f"the candidate computed in {array.dtype}")
        return arrays if len(arrays) > 1 else arrays[0]


def _takes(function: Callable[..., Any], name: str) -> bool:
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def _takes_forced(function: Callable[..., Any], operation: Operation) -> bool:
    """Whether a decision can be imposed: by name, or in its place after the four arguments of the contract."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return True
    kinds = {p.kind for p in parameters.values()}
    if "forced" in parameters or inspect.Parameter.VAR_KEYWORD in kinds:
        return True
    required = len(operation.arguments) - len(operation.optional) + len(operation.settings)
    return len([name for name in parameters if name != "keep"]) > required


def _reference(operation: str) -> Computes:
    return backends.get("reference")[operation]


def _computes(op: OperationCandidate, dtype: str | None = None) -> _Computes:
    """The operation as the laws call it; without ``forced`` among its arguments if it cannot be imposed."""
    operation = op.operation
    if "forced" in operation.arguments and not _takes_forced(op.forward, operation):
        arguments = {name: shape for name, shape in operation.arguments.items() if name != "forced"}
        operation = replace(operation, arguments=arguments, optional=())
    return _Computes(op, operation, dtype)


def _candidate(candidate: Any) -> Candidate:
    """A candidate in any form, or its name: a backend's, or ``module:object``."""
    if isinstance(candidate, Candidate):
        return candidate
    if not isinstance(candidate, str):
        return wrap(candidate, getattr(candidate, "__name__", type(candidate).__name__))
    if candidate in backends.BACKENDS:
        from refvt.conformance.adapters import on_host
        from refvt.ops import operations

        table = backends.get(candidate)
        return wrap({name: on_host(table, name) for name in operations()}, candidate)
    return wrap(resolve(candidate), candidate)


# ---- one law


def _law(operation: str, name: str) -> Law:
    for law in laws_of(operation):
        if law.__name__ == name:
            return law
    raise ValueError(
        f"law: expected one of {[law.__name__ for law in laws_of(operation)]} for {operation}, got {name!r}"
    )


def _keeps(law: Law, op: Computes, inputs: Inputs) -> bool:
    """Whether a law holds; a law that cannot be computed does not."""
    try:
        law(op, inputs)
    except Exception:
        return False
    return True


def _ask(law: Law, op: _Computes, inputs: Inputs) -> None:
    """Ask a law of a candidate. Raises what the candidate raises, or LawBroken; nothing if the reference breaks it too.

    ``nothing_after_halting_matters`` replaces states by NaN. A candidate may multiply them by zero, which gives NaN: it
    is asked again with large finite numbers.
    """
    with np.errstate(all="ignore"):
        try:
            law(op, inputs)
        except CannotFollow:
            raise
        except LawBroken:
            if law.__name__ == "nothing_after_halting_matters":
                nothing_after_halting_matters(op, inputs, poison=1e4)
            elif _keeps(law, _reference(op.operation.name), inputs):
                raise


def check_law(candidate: Any, operation: str, law: str, inputs: Inputs) -> None:
    """Ask one law of one operation of a candidate, with these inputs.

    candidate: in any form that ``check`` takes, or its name. LawBroken says what does not hold; ValueError for an
    operation or a law that is not there.
    """
    found = _candidate(candidate).operations.get(operation)
    if found is None:
        raise ValueError(f"operation: expected one that the candidate has, got {operation!r}")
    _ask(_law(operation, law), _computes(found), inputs)


@dataclass
class _Search:
    """What the search for an input that breaks a law has seen."""

    law: Law
    op: _Computes
    seconds: float
    asked: int = 0
    skipped: str = ""
    broken: tuple[dict[str, Any], Exception] | None = None
    started: float | None = None

    def ask(self, inputs: dict[str, Any]) -> None:
        """Ask the law, and keep the last input that breaks it: Hypothesis ends with the smallest."""
        self.started = self.started or time.monotonic()
        if time.monotonic() > self.started + self.seconds:
            raise _TimeIsUp
        if "forced" not in self.op.operation.arguments and _near_a_decision(self.op, inputs):
            return
        try:
            _ask(self.law, self.op, inputs)
            self.asked += 1
        except (CannotFollow, _OtherDtype) as reason:
            self.skipped = str(reason)
        except Exception as error:
            self.broken = inputs, error
            raise


def _near_a_decision(op: _Computes, inputs: Inputs) -> bool:
    """Whether a token may halt in another layer when states move by a step of the adjoint law. No decision: False.

    Where decisions cannot be forced, such inputs are left out: a step moves a sum of scores by 2e-3 at most.
    """
    if op.operation.name != "halt_tokens":
        return False
    scores = 1 / (1 + np.exp(inputs["center"] - inputs["scale"] * inputs["states"][:-1, :, 0].astype(np.float64)))
    return bool((np.abs(np.cumsum(scores, axis=0) - (1 - inputs["epsilon"])) < 5e-3).any())


def run_law(
    candidate: Any, operation: str, law: str, dtype: str = "float32", max_examples: int = 40, seconds: float = 10.0
) -> LawReport:
    """Look for an input that breaks one law of one operation of a candidate.

    dtype: "float32" or "float64"; in another dtype a law is "not given". max_examples: of inputs, before shrinking.
    seconds: no input is tried after this time. Two runs try the same inputs. ValueError for a law that is not there.
    """
    started = time.monotonic()
    wrapped = _candidate(candidate)
    found = wrapped.operations.get(operation)
    asked = _law(operation, law)

    def report(status: str, sentence: str = "", reproduce: str = "") -> LawReport:
        return LawReport(operation, law, status, sentence, reproduce, time.monotonic() - started)

    reason = _why_not(found, operation, law, dtype)
    if reason or found is None:
        return report("not given", reason)
    working = "float64" if law == "adjoint" else dtype
    search = _Search(asked, _computes(found, "float64" if law == "adjoint" else None), seconds)
    _search(search, working, max_examples)
    if search.broken is None:
        if not search.asked:
            return report("not given", search.skipped or "no input could be tried")
        return report("agrees", "" if found.backward or not found.operation.has_backward else "with refvt's backward")
    inputs, error = search.broken
    if isinstance(error, LawBroken):
        inputs = simplify(inputs, partial(_breaks, search), until=time.monotonic() + 3)
        error = _error_of(search, inputs) or error
        return report(
            "differs", f"{error}{_borrowed(search.op)}", program(wrapped.name, operation, asked, inputs, error)
        )
    if law == "adjoint" and dtype == "float32":
        return report("not given", f"it needs float64, where the candidate raised {_one_line(error)}")
    return report(
        "error",
        f"raised {_one_line(error)}{_borrowed(search.op)}",
        program(wrapped.name, operation, asked, inputs, error),
    )


def _borrowed(op: _Computes) -> str:
    """Says whose backward a law was asked of, if it was not the candidate's."""
    return "; no backward was given: refvt's own was used" if op.borrowed else ""


def _why_not(found: OperationCandidate | None, operation: str, law: str, dtype: str) -> str:
    """Why a law cannot be asked of a candidate; an empty text if it can."""
    if found is None:
        return f"the candidate has no {operation}"
    if dtype not in DTYPES:
        return f"laws are asked in float32 and float64, not in {dtype}"
    if law == "keep_changes_nothing" and not _takes(found.forward, "keep"):
        return f"the forward of {operation} takes no keep"
    if found.operation.has_backward and found.backward is None and law in GRADIENT_LAWS:
        return f"the candidate has no backward of {operation}"
    return ""


def _search(search: _Search, dtype: str, max_examples: int) -> None:
    """Let Hypothesis try inputs, ordinary ones first, then edges, and shrink one that breaks the law."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st

    from refvt.conformance.strategies import edges_of, inputs_for

    operation = search.op.operation.name
    left_out = ("denormal", "large") if search.law.__name__ in NOT_LINEAR else ("denormal",)
    edges = [edge for edge in edges_of(operation) if edge not in left_out]
    inputs = st.one_of(inputs_for(operation, dtype), *(inputs_for(operation, dtype, edge=edge) for edge in edges))

    @settings(
        max_examples=max_examples,
        deadline=None,
        derandomize=True,
        database=None,
        report_multiple_bugs=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(inputs)
    def search_inputs(drawn: dict[str, Any]) -> None:
        search.ask(drawn)

    try:
        search_inputs()
    except _TimeIsUp:
        return
    except Exception:
        if search.broken is None:
            raise


def _error_of(search: _Search, inputs: Inputs) -> LawBroken | None:
    """The law's complaint about these inputs, if the reference has none."""
    try:
        _ask(search.law, search.op, inputs)
    except LawBroken as error:
        return error if _keeps(search.law, _reference(search.op.operation.name), inputs) else None
    except Exception:
        return None
    return None


def _breaks(search: _Search, inputs: Inputs) -> bool:
    return _error_of(search, inputs) is not None


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


# ---- all laws


def laws_for(candidate: Any) -> list[tuple[str, str]]:
    """The laws of the operations that a candidate has, as pairs (operation, law)."""
    return [(name, law.__name__) for name in _candidate(candidate).operations for law in laws_of(name)]


def run_laws(
    candidate: Any, dtype: str = "float32", max_examples: int = 40, seconds: float = 10.0
) -> Iterator[LawReport]:
    """Run every law of every operation that a candidate has, one report after another; arguments as in ``run_law``."""
    wrapped = _candidate(candidate)
    for operation, law in laws_for(wrapped):
        yield run_law(wrapped, operation, law, dtype, max_examples, seconds)
