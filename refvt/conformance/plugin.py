"""A pytest plugin: the golden cases and the laws become items of your own test suite.

``pytest --refvt-candidate=module:object``, or in the ini file ``refvt_candidate = module:object``. Items are called
``refvt::model-zero`` and ``refvt::law::attention::adjoint``: ``-k``, ``-x`` and ``-n`` (pytest-xdist) work as usual. A
failure shows the first divergence; what the candidate does not give is skipped with the reason.

Without a candidate this file adds its options and does nothing else. It imports the rest of refvt when it is asked.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from refvt.conformance.golden import Case
    from refvt.conformance.isolation import Runner

__all__ = ["pytest_addoption", "pytest_collection_modifyitems", "pytest_unconfigure"]

OPTIONS = (
    ("candidate", "what is checked: module:object, a backend of refvt or an exchange folder"),
    ("dtype", "what the candidate computes in: float32 (default), float64, float16 or bfloat16"),
    ("cases", "a pattern for the names of golden cases, such as 'tiny-*'; default: all"),
    ("timeout", "seconds that one case may take; default: 120"),
)
_RUNNER = pytest.StashKey["Runner"]()


class Failed(Exception):  # noqa: N818 - it reads as what happened
    """A case or a law that failed; the message is what the report shows."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--refvt-candidate`` and its companions, each also as a line of the ini file (``refvt_candidate``)."""
    group = parser.getgroup("refvt", "check an implementation of HaltingVT against refvt")
    for name, said in OPTIONS:
        group.addoption(f"--refvt-{name}", default=None, help=said)
        parser.addini(f"refvt_{name}", said, default="")


def _option(config: pytest.Config, name: str) -> str:
    return str(config.getoption(f"refvt_{name}") or config.getini(f"refvt_{name}") or "").strip()


@pytest.hookimpl(tryfirst=True)  # before -k and -m choose among all items
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Append an item for every golden case and every law, if there is a candidate."""
    candidate = _option(config, "candidate")
    if candidate:
        try:
            items.extend(Suite.make(session, candidate).collect())
        except (ValueError, TypeError, ImportError) as error:
            raise pytest.UsageError(f"refvt: {error}") from error


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the process that the candidate ran in."""
    runner = config.stash.get(_RUNNER, None)
    if runner is not None:
        runner.close()


class Suite(pytest.Collector):
    """All items of one candidate."""

    candidate: str
    dtype: str
    seconds: float

    @classmethod
    def make(cls, session: pytest.Session, candidate: str) -> Suite:
        """Read the options and load the candidate. ValueError or TypeError for what does not fit."""
        from refvt.conformance.budgets import DTYPES
        from refvt.conformance.checking import open_runner

        suite: Suite = cls.from_parent(session, name="refvt", nodeid="refvt")
        suite.candidate = candidate
        suite.dtype = _option(session.config, "dtype") or "float32"
        if suite.dtype not in DTYPES:
            raise ValueError(f"refvt-dtype: expected one of {list(DTYPES)}, got {suite.dtype!r}")
        seconds = _option(session.config, "timeout") or "120"
        try:
            suite.seconds = float(seconds)
        except ValueError:
            raise ValueError(f"refvt-timeout: expected a number of seconds, got {seconds!r}") from None
        if not suite.seconds > 0:
            raise ValueError(f"refvt-timeout: expected a number above 0, got {seconds}")
        if find_spec("hypothesis") is not None:
            import_module("refvt.conformance.strategies")  # before the candidate's process starts, so that it has it
        session.config.stash[_RUNNER] = open_runner(candidate, suite.dtype, suite.seconds)
        return suite

    @property
    def runner(self) -> Runner:
        """What asks the candidate: one process for the whole session."""
        return self.config.stash[_RUNNER]

    def collect(self) -> list[pytest.Item]:
        """An item for every case, then for every law of an operation that the candidate has."""
        from refvt.conformance.checking import select_cases
        from refvt.conformance.isolation import Answer
        from refvt.conformance.law_runs import laws_for

        cases = select_cases(_option(self.config, "cases") or "*")
        laws = self.runner.call(laws_for)
        items: list[pytest.Item] = [CaseItem.from_parent(self, name=case.name, case=case) for case in cases]
        for operation, law in [] if isinstance(laws, Answer) else laws:
            items.append(LawItem.from_parent(self, name=f"law::{operation}::{law}", operation=operation, law=law))
        return items


class _Item(pytest.Item):
    """One case or one law; a failure is text, without a traceback through refvt."""

    parent: Suite

    def settle(self, status: str, sentence: str, text: str) -> None:
        """Skip, fail, or pass with a remark."""
        if status == "not given":
            pytest.skip(sentence or "the candidate gives none of its tensors")
        if status in ("differs", "error"):
            raise Failed(text)
        if status == "ambiguous":
            self.add_report_section("call", "refvt", text)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The text of the report."""
        if isinstance(excinfo.value, Failed):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, None, str]:
        """Where pytest says the item is."""
        return self.config.rootpath / "refvt", None, self.name


class CaseItem(_Item):
    """A golden case."""

    def __init__(self, case: Case, **others: Any) -> None:
        super().__init__(**others)
        self.case = case

    def runtest(self) -> None:
        """Check the case."""
        from refvt.conformance.checking import check_case
        from refvt.conformance.report import describe_case
        from refvt.conformance.variants import Finder

        finder, suite = Finder(), self.parent
        report = check_case(suite.runner, self.case, suite.dtype, suite.candidate, finder)
        if report.status == "differs":
            report.variant = finder.answers().get(report.name)
        self.settle(report.status, report.sentence, describe_case(report))


class LawItem(_Item):
    """A law of one operation."""

    def __init__(self, operation: str, law: str, **others: Any) -> None:
        super().__init__(**others)
        self.operation, self.law = operation, law

    def runtest(self) -> None:
        """Look for an input that breaks the law."""
        from refvt.conformance.checking import law_report
        from refvt.conformance.report import describe_law

        if find_spec("hypothesis") is None:
            pytest.skip('laws need Hypothesis: pip install "refvt[check]"')
        suite = self.parent
        report = law_report(suite.runner, self.operation, self.law, suite.dtype, suite.seconds)
        self.settle(report.status, report.sentence, describe_law(report))
