"""``check``: hold an implementation against the golden cases, and say where it first differs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from refvt import backends
from refvt.array import Array
from refvt.conformance.ambiguity import DERIVED, rounding_explains, scores_of
from refvt.conformance.arrangements import bare_name
from refvt.conformance.budgets import DTYPES
from refvt.conformance.candidates import resolve, wrap
from refvt.conformance.cases import (
    AnyCase,
    ModelCase,
    TrainingCase,
    Truth,
    model_case,
    operation_case,
    training_case,
    truth_of,
)
from refvt.conformance.divergence import first_divergence, narrow_down, neighbourhood
from refvt.conformance.exchange import ExchangeFolder
from refvt.conformance.golden import Case, GoldenError, load_arrays, load_manifest
from refvt.conformance.isolation import Answer, Request, Runner, runner_for
from refvt.conformance.judgement import arrange, judge, left_early
from refvt.conformance.layouts import explain, geometry_of
from refvt.conformance.report import CaseReport, Report, TensorReport
from refvt.conformance.reproduce import snippet

__all__ = ["check", "check_case", "select_cases"]

Progress = Callable[[CaseReport], None]


def check(
    candidate: Any,
    dtype: str | None = None,
    cases: str = "*",
    laws: bool = False,
    *,
    timeout: float = 60.0,
    golden: Path | None = None,
    progress: Progress | None = None,
) -> Report:
    """Compare a candidate with every golden case whose name matches, and return the report.

    candidate: a function of a ``ModelCase`` that returns named tensors; an object with operations as attributes
    (``attention_forward``, ``attention_backward``, ``halt_tokens``, …); or text: a backend's name, ``module:object``,
    the path of an exchange folder. dtype: "float32", "float64", "float16" or "bfloat16", what the candidate computes
    in; None: what an exchange folder was exported in, else float32. cases: a glob over the names of cases. laws: run
    the laws of the operations too. timeout: seconds that one case may take. golden: another folder of golden files.
    progress: called with each case as it is finished.

    What the candidate raises or breaks is reported in its case. ValueError or TypeError for arguments that do not fit,
    for a candidate that has none of the forms, or that cannot be loaded.
    """
    folder = _exchange_folder(candidate)
    dtype = dtype or (folder.dtype if folder is not None else "float32")
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {list(DTYPES)}, got {dtype!r}")
    if not timeout > 0:
        raise ValueError(f"timeout: expected a number of seconds above 0, got {timeout}")
    start = time.perf_counter()
    chosen = select_cases(cases, golden, training=candidate in backends.BACKENDS)
    name = candidate if isinstance(candidate, str) else _name_of(candidate)
    report = Report(name, dtype)
    runner = folder or _runner(candidate, name, dtype, timeout)
    if folder is not None:
        chosen = [case for case in chosen if case.name in folder.cases]
    try:
        for case in chosen:
            found = check_case(runner, case, dtype, name)
            report.cases.append(found)
            if progress is not None:
                progress(found)
    finally:
        runner.close()
    report.seconds = time.perf_counter() - start
    return report


def select_cases(pattern: str = "*", golden: Path | None = None, training: bool = False) -> list[Case]:
    """The golden cases whose names match, tiny ones first; those of training are asked for. ValueError if none does."""
    found = [case for case in load_manifest(golden).values() if fnmatchcase(case.name, pattern)]
    found = [case for case in found if training or case.kind != "training"]
    if not found:
        raise ValueError(f"cases: expected a pattern that some golden case matches, got {pattern!r}")
    return sorted(found, key=lambda case: not case.tiny)


def _name_of(candidate: Any) -> str:
    name = getattr(candidate, "__qualname__", None) or type(candidate).__qualname__
    module = getattr(candidate, "__module__", None)
    return f"{module}:{name}" if module and module != "builtins" else str(name)


def _exchange_folder(candidate: Any) -> ExchangeFolder | None:
    """The exchange folder that a text or a path names, if it names one."""
    if isinstance(candidate, str) and (candidate in backends.BACKENDS or ":" in candidate):
        return None
    if isinstance(candidate, Path) or (isinstance(candidate, str) and Path(candidate).is_dir()):
        return ExchangeFolder(Path(candidate))
    return None


def _runner(candidate: Any, name: str, dtype: str, timeout: float) -> Runner:
    if isinstance(candidate, str) and candidate in backends.BACKENDS:
        from refvt.conformance.own_backends import backend_candidate

        return runner_for(lambda: backend_candidate(candidate, dtype), timeout, isolate=False)
    if isinstance(candidate, str):
        return runner_for(lambda: wrap(resolve(candidate), name), timeout)
    wrapped = wrap(candidate, name)
    return runner_for(lambda: wrapped, timeout)


# ---- one case


def check_case(runner: Runner, case: Case, dtype: str, candidate: str = "candidate") -> CaseReport:
    """Ask for one case, judge what comes back, and explain a difference."""
    start = time.perf_counter()
    try:
        arrays = load_arrays(case)
    except GoldenError as error:
        return CaseReport(case.name, case.kind, case.describes, "error", str(error))
    truth = truth_of(case, arrays)
    report = CaseReport(case.name, case.kind, case.describes, total=len(truth))
    asked = _Asked(runner, case, arrays, truth, dtype)
    first = asked.ask()
    if first.status != "given":
        report.status, report.sentence, report.not_given = first.status, _about(first, truth), tuple(truth)
    else:
        _judge_case(asked, first, report)
        if report.status == "differs":
            _explain(asked, report, candidate)
    report.seconds = time.perf_counter() - start
    return report


class _Asked:
    """One case while it is checked: its truth, and how the candidate is asked."""

    def __init__(self, runner: Runner, case: Case, arrays: dict[str, Array], truth: Truth, dtype: str) -> None:
        self.runner, self.case, self.arrays, self.truth, self.dtype = runner, case, arrays, truth, dtype
        self.names = frozenset(truth)
        self.given: dict[str, Array] = {}

    def what(self, force: bool = False) -> AnyCase:
        """What the candidate is given; every question has fresh arrays."""
        if self.case.kind == "op":
            return operation_case(self.case, self.arrays, self.dtype)
        if self.case.kind == "training":
            return training_case(self.case, self.arrays, self.dtype)
        return model_case(self.case, self.arrays, self.dtype, force)

    def ask(self, force: bool = False) -> Answer:
        """The candidate's answer, with the decisions of the truth imposed or not."""
        forced = None
        if force and self.case.kind == "training":
            return Answer("not given")
        if force and self.case.kind == "op":
            forced = self._forced()
            if forced is None:
                return Answer("not given")
        return self.runner.ask(Request(self.what(force), self.names, forced))

    def _forced(self) -> dict[str, Array] | None:
        decision = {"halt": "halted", "halt_tokens": "halting_layer"}.get(self.truth.operation or "")
        return None if decision is None else {"forced": self.truth[decision].value.copy()}

    def judge(self, answer: Answer) -> list[TensorReport]:
        """All tensors that were given, in the order of computation."""
        order = {name: i for i, name in enumerate(self.truth)}
        found = sorted(answer.tensors, key=lambda key: order[_base(key)])
        return [self._judge_one(key, answer.tensors[key]) for key in found]

    def _judge_one(self, key: str, value: Array) -> TensorReport:
        name = _base(key)
        report = judge(self.truth, name, value, self.dtype)
        if report.status == "differs":
            other = left_early(self.truth, name)
            if other is not None and other.shape == value.shape and _same_holes(other, value):
                patched = np.where(_holes(other, self.truth[name].value), self.truth[name].value, value)
                report = judge(self.truth, name, patched, self.dtype)
        return replace(report, name=key)


def _base(key: str) -> str:
    """The name of a tensor without the run that it comes from ("compact: logits")."""
    return key.rpartition(": ")[2]


def _holes(early: Array, full: Array) -> Array:
    return np.asarray(np.isnan(early) if early.dtype.kind == "f" else early != full)


def _same_holes(early: Array, value: Array) -> bool:
    """True if a candidate's value has the holes of a clip that left early, and only these."""
    if early.dtype.kind == "f":
        return value.dtype.kind == "f" and bool((np.isnan(early) == np.isnan(value)).all())
    return bool((early == value).all())


def _about(answer: Answer, truth: Truth) -> str:
    """What there is to say about an answer as a whole; above all names that no model has, which may be misspelt."""
    unknown = [name for name in answer.unknown if not _is_known(name, truth)]
    listed = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
    said = f"it also gave names that this case does not know: {listed}" if unknown else ""
    return "; ".join(filter(None, (answer.sentence, said)))


def _is_known(name: str, truth: Truth) -> bool:
    """True for a named tensor that this case's golden file leaves out."""
    base = bare_name(_base(name))
    return truth.config is not None and geometry_of(truth).rows_of(base) is not None


def _judge_case(asked: _Asked, first: Answer, report: CaseReport) -> None:
    """Fill in a report from the candidate's answer; decisions within rounding are set apart."""
    tensors = asked.judge(first)
    asked.given = first.tensors
    wrong = [t for t in tensors if t.status == "differs"]
    if wrong and not first.mutated:
        tensors = _set_ambiguous_apart(asked, first, tensors, report)
    report.tensors = tensors
    given = {_base(t.name) for t in tensors}
    report.not_given = tuple(name for name in asked.truth if name not in given)
    statuses = {t.status for t in tensors}
    report.status = next((s for s in ("differs", "ambiguous", "agrees") if s in statuses), "not given")
    report.sentence = _about(first, asked.truth)
    if first.mutated:
        report.status = "differs"
        changed = f"it changed its inputs {', '.join(first.mutated[:5])}"
        report.sentence = "; ".join(filter(None, (changed, report.sentence)))


def _set_ambiguous_apart(
    asked: _Asked, first: Answer, tensors: list[TensorReport], report: CaseReport
) -> list[TensorReport]:
    """Judge again where a decision differs within rounding: with imposed decisions, or up to that decision."""
    decisions = [t for t in tensors if _is_decision(asked.truth, _base(t.name)) and t.status == "differs"]
    inside = _inside_rounding(asked, first, decisions)
    if not inside:
        return tensors
    report.ambiguous = list(dict.fromkeys(inside.values()))
    forced = asked.ask(force=True)
    if forced.status == "given":
        again = asked.judge(forced)
        undecided = [t for t in again if _is_decision(asked.truth, _base(t.name)) and t.status == "differs"]
        if not undecided:
            asked.given = forced.tensors
            flipped = {t.name for t in decisions}
            return [replace(t, status="ambiguous") if t.name in flipped else t for t in again]
    if asked.truth.kind == "op":
        start = 0
    else:
        order = list(asked.truth)
        start = min(order.index(_decided_by(asked.truth, _base(name))) for name in inside)
    position = {name: i for i, name in enumerate(asked.truth)}
    return [
        replace(t, status="ambiguous") if t.status == "differs" and position[_base(t.name)] >= start else t
        for t in tensors
    ]


def _is_decision(truth: Truth, name: str) -> bool:
    return truth[name].value.dtype.kind in "biu"


def _decided_by(truth: Truth, name: str) -> str:
    """The first tensor that a decision changes: a halted token's weight, or the patches that are selected."""
    if name == "decisions.halting_layer":
        return "joint.1.weight" if "joint.1.weight" in truth else name
    return name


def _inside_rounding(asked: _Asked, first: Answer, decisions: list[TensorReport]) -> dict[str, str]:
    """The decisions that differ within rounding, with a sentence for each; nothing if the first one is wrong."""
    found: dict[str, str] = {}
    scores: Mapping[str, Array] | None = None
    for tensor in decisions:
        name = _base(tensor.name)
        if name in DERIVED and DERIVED[name] in asked.truth:
            if not any(_base(key) == DERIVED[name] for key in found):
                return {}
            continue
        case = asked.what()
        if scores is None:
            scores = (
                scores_of(model_case(asked.case, asked.arrays, "float64"))
            )
        sentence = rounding_explains(asked.truth, case, name, first.tensors[tensor.name], asked.dtype, scores)
        if sentence is None and found:
            continue  # a consequence of an earlier one
        if sentence is None:
            return {}
        found[tensor.name] = sentence
    return found


# ---- a difference


def _explain(asked: _Asked, report: CaseReport, candidate: str) -> None:
    """Find the first divergence, and say what else is known about it."""
    report.first = first_divergence(asked.truth, report.tensors)
    said = narrow_down(asked.truth, report, {_base(k): v for k, v in asked.given.items()})
    report.sentence = "; ".join(filter(None, (report.sentence, said)))
    if report.first is None:
        return
    name, given = _base(report.first.tensor), asked.given[report.first.tensor]
    phrase = explain(name, given, None, asked.truth, asked.dtype)
    if phrase is not None:
        note = "; ".join(filter(None, (phrase, report.first.note)))
        report.first = replace(report.first, note=note)
    value, _, _ = arrange(asked.truth, name, given)
    if value is not None and report.first.index is not None:
        report.neighbourhood = neighbourhood(value, asked.truth[name].value, report.first.index)
    report.reproduce = snippet(asked.truth, report.first, candidate, asked.dtype)
