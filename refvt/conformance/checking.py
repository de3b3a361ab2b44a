"""``check``: hold an implementation against the golden cases, and say where it first differs."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from refvt import backends
from refvt.array import Array
from refvt.conformance.ambiguity import set_ambiguous_apart
from refvt.conformance.arrangements import bare_name
from refvt.conformance.asking import Asked
from refvt.conformance.budgets import DTYPES
from refvt.conformance.candidates import resolve, wrap
from refvt.conformance.cases import TrainingCase, Truth, base_name, truth_of
from refvt.conformance.contrast import contrast
from refvt.conformance.divergence import first_divergence, narrow_down, neighbourhood
from refvt.conformance.exchange import ExchangeFolder
from refvt.conformance.fresh import fresh_case
from refvt.conformance.golden import Case, GoldenError, load_arrays, load_manifest
from refvt.conformance.hints import advice, embedding_places, unused_parameters
from refvt.conformance.isolation import Answer, Runner, runner_for
from refvt.conformance.judgement import arrange
from refvt.conformance.layouts import explain, geometry_of
from refvt.conformance.report import CaseReport, LawReport, Report
from refvt.conformance.reproduce import snippet
from refvt.conformance.variants import Finder, evidence_of

__all__ = ["check", "check_case", "law_report", "open_runner", "select_cases"]

Progress = Callable[[CaseReport], None]


def check(
    candidate: Any,
    dtype: str | None = None,
    cases: str = "*",
    laws: bool = False,
    *,
    timeout: float = 120.0,
    golden: Path | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
    law_progress: Callable[[str], None] | None = None,
) -> Report:
    """Compare a candidate with every golden case whose name matches, and return the report.

    candidate: a function of a ``ModelCase`` that returns named tensors; an object with operations as attributes
    (``attention_forward``, ``attention_backward``, ``halt_tokens``, …); or text: a backend's name, ``module:object``,
    ``file.py:object``, the path of an exchange folder. dtype: "float32", "float64", "float16" or "bfloat16", what the
    candidate computes in; None: what an exchange folder was exported in, else float32. cases: a glob over the names of
    cases. laws: run the laws of the operations too. timeout: seconds that one case may take. golden: another folder of
    golden files. seed: other inputs than the golden ones, drawn from this seed (``fresh``). progress: called with each
    case as it is finished. law_progress: called with a text, such as "law 3 of 40: gather, adjoint", before each law
    runs.

    What the candidate raises or breaks is reported in its case. ValueError or TypeError for arguments that do not fit,
    for a candidate that has none of the forms, or that cannot be loaded.
    """
    folder = _exchange_folder(candidate)
    dtype = dtype or (folder.dtype if folder is not None else "float32")
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {list(DTYPES)}, got {dtype!r}")
    if not timeout > 0:
        raise ValueError(f"timeout: expected a number of seconds above 0, got {timeout}")
    if laws and find_spec("hypothesis") is None:
        raise ModuleNotFoundError('laws: expected Hypothesis to be installed: pip install "refvt[check]"')
    if laws and folder is not None:
        raise ValueError("laws: expected a candidate that can be called, got an exchange folder")
    if laws:
        import_module("refvt.conformance.strategies")  # before the candidate's process starts: it need not be repeated
    start = time.perf_counter()
    chosen = select_cases(cases, golden, training=candidate in backends.BACKENDS)
    name = str(candidate) if isinstance(candidate, str | Path) else _name_of(candidate)
    report = Report(name, dtype)
    runner: Runner = folder or _runner(candidate, name, dtype, timeout)
    if folder is not None:
        chosen = [case for case in chosen if case.name in folder.cases]
    finder = Finder()
    try:
        for case in chosen:
            found = check_case(runner, case, dtype, name, finder, seed)
            report.cases.append(found)
            if progress is not None:
                progress(found)
        try:
            answers = finder.answers()
            for found in report.cases:
                found.variant = answers.get(found.name)
            report.contrast = contrast(report.cases, {case.name: case for case in chosen})
        except Exception as error:  # a mistake of refvt costs what all cases say together, and no case
            report.contrast = _own_mistake(error, "say what the cases have in common")
        if laws:
            report.laws = list(_run_laws(runner, dtype, timeout, law_progress))
    finally:
        runner.close()
    report.seconds = time.perf_counter() - start
    return report


def open_runner(candidate: str, dtype: str, timeout: float = 120.0) -> Runner:
    """What asks a candidate that is named by text: to be closed in the end. ValueError if it cannot be loaded."""
    return _exchange_folder(candidate) or _runner(candidate, candidate, dtype, timeout)


def law_report(runner: Runner, operation: str, law: str, dtype: str, timeout: float = 120.0) -> LawReport:
    """Run one law where the candidate runs, within the time limit."""
    from refvt.conformance.law_runs import run_law

    found = runner.call(run_law, operation, law, dtype, 40, min(10.0, timeout / 2))
    if isinstance(found, Answer):
        return LawReport(operation, law, "error", found.sentence)
    assert isinstance(found, LawReport)
    return found


def _run_laws(
    runner: Runner, dtype: str, timeout: float, progress: Callable[[str], None] | None
) -> Iterator[LawReport]:
    """The laws of the candidate's operations."""
    from refvt.conformance.law_runs import laws_for

    pairs = runner.call(laws_for)
    if isinstance(pairs, Answer):
        yield LawReport("candidate", "its operations", "error", pairs.sentence)
        return
    for number, (operation, law) in enumerate(pairs, 1):
        if progress is not None:
            progress(f"law {number} of {len(pairs)}: {operation}, {law}")
        yield law_report(runner, operation, law, dtype, timeout)


def select_cases(pattern: str = "*", golden: Path | None = None, training: bool = False) -> list[Case]:
    """The golden cases whose names match, tiny ones first, and of these the operations: a first result comes soon.

    Those of training are asked for. ValueError if no name matches.
    """
    known = [case for case in load_manifest(golden).values() if training or case.kind != "training"]
    found = [case for case in known if fnmatchcase(case.name, pattern)]
    if not found:
        wider = f"*{pattern.strip('*')}*"
        hint = f"; did you mean {wider!r}?" if any(fnmatchcase(case.name, wider) for case in known) else ""
        raise ValueError(f"cases: expected a pattern that some golden case matches, got {pattern!r}{hint}")
    return sorted(found, key=lambda case: (not case.tiny, case.kind != "op"))


def _name_of(candidate: Any) -> str:
    """``module:function`` for what can be imported under its name, else the kind of object."""
    name, module = getattr(candidate, "__qualname__", None), getattr(candidate, "__module__", None)
    if name and module:
        return f"{module}:{name}"
    return f"an object of {type(candidate).__module__}.{type(candidate).__qualname__}"


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


def check_case(
    runner: Runner,
    case: Case,
    dtype: str,
    candidate: str = "candidate",
    finder: Finder | None = None,
    seed: int | None = None,
) -> CaseReport:
    """Ask for one case, judge what comes back, and explain a difference.

    finder: looks for a known variant. seed: other inputs than the golden ones.
    """
    start = time.perf_counter()
    try:
        arrays = load_arrays(case)
        if seed is not None and case.kind != "training":
            case, arrays = fresh_case(case, arrays, seed)
    except GoldenError as error:
        return CaseReport(case.name, case.kind, case.describes, "error", str(error))
    truth = truth_of(case, arrays)
    report = CaseReport(case.name, case.kind, case.describes, total=len(truth), operation=case.operation)
    asked = Asked(runner, case, arrays, truth, dtype)
    first = asked.ask()
    report.warnings = first.warnings
    if not first.tensors:
        report.status, report.sentence, report.not_given = first.status, _about(first, truth), tuple(truth)
    else:
        try:
            _judge_and_explain(asked, first, report, candidate, finder)
        except Exception as error:  # a mistake of refvt costs this case alone, and says where it is
            report.status, report.sentence = "error", _own_mistake(error)
    report.seconds = time.perf_counter() - start
    return report


def _judge_and_explain(asked: Asked, first: Answer, report: CaseReport, candidate: str, finder: Finder | None) -> None:
    """Fill in a report from the candidate's answer, with what is known about a difference."""
    _judge_case(asked, first, report)
    if first.status == "error" and report.status != "differs":
        report.status = "error"
    if report.status == "differs":
        _explain(asked, report, candidate)
    if finder is not None and asked.case.kind != "training" and not first.mutated:
        report.variant = _variant(asked, report, finder)


def _own_mistake(error: Exception, task: str = "judge this case") -> str:
    """An exception of refvt's own, and what it kept refvt from doing, in one sentence."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())[:300]
    raised = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return (
        f"refvt could not {task}, which is a mistake of refvt: {raised} "
        f"({Path(place.filename).name}, line {place.lineno})"
    )


def _about(answer: Answer, truth: Truth) -> str:
    """What there is to say about an answer as a whole; above all names that no model has, which may be misspelt."""
    unknown = [name for name in answer.unknown if not _is_known(name, truth)]
    listed = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
    said = f"it also gave names that this case does not know: {listed}" if unknown else ""
    return "; ".join(filter(None, (answer.sentence, said)))


def _is_known(name: str, truth: Truth) -> bool:
    """True for a named tensor that this case's golden file leaves out."""
    base = bare_name(base_name(name))
    return truth.config is not None and geometry_of(truth).rows_of(base) is not None


def _judge_case(asked: Asked, first: Answer, report: CaseReport) -> None:
    """Fill in a report from the candidate's answer; decisions within rounding are set apart."""
    tensors = asked.judge(first)
    asked.given = first.tensors
    wrong = [t for t in tensors if t.status == "differs"]
    if wrong and not first.mutated:
        tensors = set_ambiguous_apart(asked, first, tensors, report)
    report.tensors = tensors
    given = {base_name(t.name) for t in tensors}
    report.not_given = tuple(name for name in asked.truth if name not in given)
    statuses = {t.status for t in tensors}
    report.status = next((s for s in ("differs", "ambiguous", "agrees") if s in statuses), "not given")
    report.sentence = _about(first, asked.truth)
    if first.mutated:
        report.status = "differs"
        changed = f"it changed its inputs {', '.join(first.mutated[:5])}"
        report.sentence = "; ".join(filter(None, (changed, report.sentence)))


# ---- a difference


def _explain(asked: Asked, report: CaseReport, candidate: str) -> None:
    """Find the first divergence, and say what else is known about it."""
    report.first = first_divergence(asked.truth, report.tensors)
    by_name = {base_name(key): value for key, value in asked.given.items()}
    said = narrow_down(asked.truth, report, by_name), unused_parameters(asked.truth, by_name)
    report.sentence = "; ".join(filter(None, (report.sentence, *said, _under_imposed_decisions(asked, report))))
    report.hint = advice(asked.truth, by_name)
    if report.first is None:
        return
    name, given = base_name(report.first.tensor), asked.given[report.first.tensor]
    value, _, _ = arrange(asked.truth, name, given)
    phrase = explain(name, given, asked.truth, asked.dtype)
    if name == "embed" and value is not None and asked.truth.kind == "model":
        phrase = embedding_places(asked.truth, _parameters(asked), value) or phrase
    if phrase:
        note = "; ".join(filter(None, (phrase, report.first.note)))
        report.first = replace(report.first, note=note)
    if value is not None and report.first.index is not None:
        report.neighbourhood = neighbourhood(value, asked.truth[name].value, report.first.index)
    report.reproduce = snippet(asked.truth, report.first, candidate, asked.dtype)


def _parameters(asked: Asked) -> dict[str, Array]:
    """The parameters of a model's case, by name."""
    prefix = "parameters/"
    return {key.removeprefix(prefix): value for key, value in asked.arrays.items() if key.startswith(prefix)}


def _under_imposed_decisions(asked: Asked, report: CaseReport) -> str:
    """Whether a candidate that can be forced is right but for its decisions."""
    first = report.first
    is_decision = first is not None and asked.truth[base_name(first.tensor)].layout in ("decision", "halting")
    if not is_decision or asked.truth.kind != "model" or asked.forced:
        return ""
    forced = asked.ask(force=True)
    wrong = [tensor for tensor in asked.judge(forced) if tensor.status == "differs"] if forced.tensors else [None]
    return "" if wrong else "with the decisions of the truth imposed, everything agrees"


def _variant(asked: Asked, report: CaseReport, finder: Finder) -> str | None:
    """The known variant that a case that differs agrees with, as far as it is known after this case."""
    case = asked.what_was_given()
    given = {name: value for name, value in asked.given.items() if base_name(name) == name}
    if isinstance(case, TrainingCase) or report.status not in ("agrees", "differs") or not given:
        return None
    evidence = evidence_of(case, asked.truth, given, asked.dtype)
    if report.status == "differs":
        return finder.look(evidence)
    finder.agreed(evidence)
    return None
