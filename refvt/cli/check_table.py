"""What ``refvt check`` prints: a line for each case as it is finished, then every difference, then the summary."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from typing import TextIO

from refvt.checks import printable
from refvt.conformance.report import (
    STATUSES,
    CaseReport,
    Divergence,
    LawReport,
    Report,
    quoted,
    share_text,
    variant_lines,
)

__all__ = ["Printer"]

COLOURS = {"agrees": "green", "differs": "bold red", "ambiguous": "yellow", "not given": "dim", "error": "bold magenta"}
MAX_DETAILS = 5  # kinds of difference that are shown at length


class Printer:
    """Prints cases and the summary to a stream: with rich's tables and colours on a terminal, else as plain text."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._rich = stream.isatty() and find_spec("rich") is not None
        self._hidden = 0
        self._line = False  # whether the cursor stands behind a line that is to be replaced
        self._write = self._writer()

    def _writer(self) -> Callable[[str, str], None]:
        if not self._rich:
            return lambda text, _style: print(printable(text), file=self._stream, flush=True)
        from rich.console import Console
        from rich.text import Text

        console = Console(file=self._stream, highlight=False)
        return lambda text, style: console.print(Text(printable(text), style=style), soft_wrap=True)

    def case(self, case: CaseReport) -> None:
        """One line for a case; those that the candidate does not give are counted, not listed."""
        if case.status == "not given":
            self._hidden += 1
            return
        compared = f"{case.compared:4d} of {case.total:3d}" if case.status != "error" else "–"
        share = f"{share_text(case.share):>8s}" if case.compared else " " * 8
        self._write(f"{case.status:10s} {case.name:32s} {compared:>11s} {share}  {_remark(case)}", COLOURS[case.status])

    def law(self, text: str) -> None:
        """The law that runs now, in one line of a terminal that the next one replaces; elsewhere nothing."""
        if self._stream.isatty():
            self._stream.write(f"\r\x1b[K{text}")
            self._stream.flush()
            self._line = True

    def _end_line(self) -> None:
        """Clear the line that shows which law runs."""
        if self._line:
            self._stream.write("\r\x1b[K")
            self._line = False

    def summary(self, report: Report) -> None:
        """The differences at length, the laws that do not hold, the counts, and the result in one sentence.

        If that is more than a screen holds, the result stands above it too.
        """
        self._end_line()
        details = _all_details(report)
        if len(details) > shutil.get_terminal_size().lines:
            self._write("", "")
            self._result(report)
        for line in [*details, ""]:
            self._write(line, "")
        for text in report.warnings:
            self._write(f"warning: {text}", COLOURS["ambiguous"])
        if report.contrast:
            self._write(report.contrast, "")
        if self._rich:
            self._counts(report)
        self._result(report)

    def _result(self, report: Report) -> None:
        hidden = " (cases that were not given are not listed)" if self._hidden else ""
        self._write(report.sentence + hidden, COLOURS["agrees" if report.agrees else "differs"])

    def _counts(self, report: Report) -> None:
        from rich.console import Console
        from rich.table import Table

        table = Table(title=f"{report.candidate}, {report.dtype}, {report.seconds:.0f} s")
        table.add_column("cases of")
        for status in STATUSES:
            table.add_column(status, justify="right", style=COLOURS[status])
        for column in ("tensors compared", "largest share of a budget"):
            table.add_column(column, justify="right")
        for kind, label in (("op", "operations"), ("model", "models"), ("training", "training")):
            group = [case for case in report.cases if case.kind == kind]
            counts = [str(sum(case.status == status for case in group) or "") for status in STATUSES]
            share = max((case.share for case in group), default=0.0)
            if group:
                table.add_row(label, *counts, str(sum(case.compared for case in group)), share_text(share))
        Console(file=self._stream).print(table)


def _all_details(report: Report) -> list[str]:
    """The lines of every kind of difference, of its smallest case, and of every law that does not hold."""
    kinds = _kinds(report.cases)
    lines: list[str] = []
    for cases in kinds[:MAX_DETAILS]:
        lines += ["", *_details(cases)]
    hidden = sum(len(cases) for cases in kinds[MAX_DETAILS:])
    if hidden:
        differ = "1 more case differs" if hidden == 1 else f"{hidden} more cases differ"
        lines += ["", f"{differ} in other ways (--json, --html show them all)"]
    for law in report.laws:
        if law.status in ("differs", "error"):
            lines += ["", *_law(law)]
    return lines


def _kinds(cases: list[CaseReport]) -> list[list[CaseReport]]:
    """The cases that differ, those of one operation, first tensor and variant together, the smallest case first."""
    kinds: dict[tuple[str | None, ...], list[CaseReport]] = {}
    for case in cases:  # tiny ones come first
        if case.status == "differs":
            first = case.first.tensor if case.first else case.sentence
            kinds.setdefault((case.kind, case.operation, first, case.variant), []).append(case)
    return list(kinds.values())


def _others(cases: list[CaseReport]) -> str:
    """How many cases differ as the first of them does. What no variant explains may have several causes."""
    more = "1 more case" if len(cases) == 2 else f"{len(cases) - 1} more cases"
    first = cases[0].first
    if first is None or cases[0].variant is not None:
        return f"the same in {more}"
    return f"{first.tensor} differs first in {more}"


def _remark(case: CaseReport) -> str:
    if case.status == "error":
        return case.sentence
    if case.status == "differs":
        variant = f"; agrees with variant {quoted(case.variant)}" if case.variant else ""
        return (f"first: {case.first.tensor} ({case.first.direction})" if case.first else case.sentence) + variant
    if case.status == "ambiguous":
        return "; ".join(case.ambiguous)
    return case.sentence


def _details(cases: list[CaseReport]) -> list[str]:
    """One kind of difference at length, in the first of its cases."""
    case = cases[0]
    lines = [f"{case.name}: {case.describes}"]
    if case.first is not None:
        lines += _divergence(case.first)
    named = variant_lines(case)
    lines += [f"   {'' if i else 'variant':16s} {text}" for i, text in enumerate(named)]
    if case.sentence:
        lines.append(f"   besides          {case.sentence}")
    lines += [f"   ambiguous        {text}" for text in case.ambiguous]
    if case.hint:
        lines.append(f"   next             {case.hint}")
    if len(cases) > 1:
        lines.append(f"   also             {_others(cases)}")
    if case.reproduce:
        lines += ["   reproduce", *(f"      {line}" for line in case.reproduce.splitlines())]
    return lines


def _divergence(first: Divergence) -> list[str]:
    lines = [
        f"   first difference {first.tensor} ({first.direction})",
        f"   last agreeing    {first.last_agreeing or 'none before it was given'}",
    ]
    if first.note:
        lines.append(f"   what it is       {first.note}")
    if first.index is not None:
        lines.append(f"   worst element    {list(first.index)}: {first.place}" if first.place else "")
        lines.append(f"                    got {first.got:.9g}, expected {first.expected:.9g}")
    if math.isfinite(first.error):
        of = "relative L2 error" if first.allowed else "wrong elements:"
        allowed = f", allowed {first.allowed:.3g}" if first.allowed else ""
        lines.append(f"   size             {of} {first.error:.3g}{allowed}; {share_text(first.share)} of the budget")
    return [line for line in lines if line]


def _law(law: LawReport) -> list[str]:
    head = f"law {law.law} of {law.operation}: {'does not hold' if law.status == 'differs' else law.status}"
    return [head, f"   {law.sentence}", *(f"      {line}" for line in law.reproduce.splitlines())]
