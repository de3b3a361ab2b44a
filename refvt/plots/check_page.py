"""The report of ``refvt check`` as one HTML page that needs no network and no script.

For every case: the first divergence, the values around its worst element, the variant that agrees, the program that
shows it again, and the chain of tensors in the order of computation, with the share of its budget that each used.
"""

from __future__ import annotations

import math
from html import escape
from importlib.resources import files

from refvt.conformance.report import (
    STATUSES,
    CaseReport,
    Divergence,
    LawReport,
    Report,
    TensorReport,
    count_text,
    quoted,
    share_text,
)
from refvt.files import MARK

__all__ = ["check_page"]

SYMBOLS = {"agrees": "✓", "differs": "✗", "ambiguous": "≈", "not given": "–", "error": "!"}
STEPS = ((0.1, "s0"), (0.3, "s1"), (0.6, "s2"), (1.0, "s3"))  # shares of a budget, and the colours up to them
LEGEND = (("s0", "✓ to 10 %"), ("s1", "✓ to 30 %"), ("s2", "✓ to 60 %"), ("s3", "✓ to 100 %"))
ORDER = ("differs", "error", "ambiguous", "agrees", "not given")


def check_page(report: Report) -> str:
    """The report as the text of an HTML file. Whatever comes from the candidate is escaped."""
    title = f"{report.candidate} against refvt"
    css = files("refvt.plots").joinpath("check_page.css").read_text(encoding="utf-8")
    cases = sorted(report.cases, key=lambda case: ORDER.index(case.status))
    parts = [
        f"<title>{escape(title)}</title><style>{css}</style></head><body><main>",
        _head(report, title),
        f'<p class="contrast">{escape(_sentence(report.contrast))}.</p>' if report.contrast else "",
        "<h2>Cases</h2>" if cases else "",
        _legend() if cases else "",
        *(_case(case, opened=i == 0 and case.status in ("differs", "error")) for i, case in enumerate(cases)),
        _laws(report.laws),
    ]
    meta = MARK[".html"] + '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    body = "\n".join(part for part in parts if part)
    return f'<!DOCTYPE html>\n<html lang="en"><head>{meta}{body}\n</main></body></html>\n'


def _head(report: Report, title: str) -> str:
    status = ("agrees", "differs", "error")[report.exit_code]
    counts = {status: sum(case.status == status for case in report.cases) for status in STATUSES}
    listed = "".join(
        f'<li class="{_class(status)}">{SYMBOLS[status]} {count_text(status, count)}</li>'
        for status, count in counts.items()
        if count
    )
    return (
        f'<h1>{escape(title)}</h1><p class="verdict {status}">{SYMBOLS[status]} {escape(report.sentence)}</p>'
        f'<ul class="counts" aria-label="cases by status">{listed}</ul>'
        f'<p class="faint">Computed in {escape(report.dtype)}, in {report.seconds:.0f} s. '
        "Open a case with Enter or a click.</p>"
    )


def _legend() -> str:
    tiles = "".join(f'<li class="{name}">{text}</li>' for name, text in LEGEND)
    tiles += '<li class="bad">✗ above its budget</li><li class="amb">≈ after a decision within rounding</li>'
    said = "Each tensor shows the share of its error budget that it used; the truth is float64."
    return f'<p class="faint">{said}</p><ol class="chain" aria-label="legend">{tiles}</ol>'


# ---- one case


def _case(case: CaseReport, opened: bool) -> str:
    share = share_text(case.share) if case.compared else ""
    compared = f"{case.compared} of {case.total}"
    summary = (
        f'<span class="status {_class(case.status)}">{SYMBOLS[case.status]} {case.status}</span>'
        f'<span class="case-name">{escape(case.name)}</span><span class="num">{compared}</span>'
        f'<span class="num">{share}</span><span class="remark faint">{escape(_remark(case))}</span>'
    )
    body = [f"<p>{escape(_sentence(case.describes))}</p>"]
    if case.sentence:
        body.append(f"<p>{escape(case.sentence)}</p>")
    body += [f'<p class="ambiguous">≈ {escape(text)}</p>' for text in case.ambiguous]
    body += [f'<p class="warning">Warning: {escape(text)}</p>' for text in case.warnings]
    if case.first is not None:
        body.append(_first(case.first))
    if case.hint:
        body.append(f'<p class="hint">Next: {escape(case.hint)}</p>')
    if case.variant is not None:
        said = f"All that was given agrees with the variant <b>{escape(case.variant)}</b>."
        means = (f"<br>{escape(name)}: {escape(text)}" for name, text in case.variant_means.items())
        body.append(f'<p class="variant">{said}{"".join(means)}</p>')
    if case.neighbourhood is not None:
        body.append(_neighbourhood(*case.neighbourhood))
    if case.reproduce:
        body.append(f"<h3>To see it again</h3>{_program(case.reproduce)}")
    body += [_chain(case, direction) for direction in ("forward", "backward")]
    if case.not_given:
        names = "".join(f"<li><code>{escape(name)}</code></li>" for name in case.not_given)
        count = len(case.not_given)
        head = f"{count} tensors were not given" if count > 1 else "1 tensor was not given"
        body.append(f'<details><summary>{head}</summary><ul class="names">{names}</ul></details>')
    return (
        f'<details class="case"{" open" if opened else ""}><summary>{summary}</summary>'
        f'<div class="body">{"".join(body)}</div></details>'
    )


def _remark(case: CaseReport) -> str:
    if case.first is not None:
        variant = f"; agrees with variant {quoted(case.variant)}" if case.variant else ""
        return f"first {case.first.tensor} ({case.first.direction}){variant}"
    return case.sentence


def _first(first: Divergence) -> str:
    rows = [
        ("first difference", f"<code>{escape(first.tensor)}</code>, {first.direction}"),
        ("last agreeing", f"<code>{escape(first.last_agreeing)}</code>" if first.last_agreeing else "none was given"),
    ]
    if first.note:
        rows.append(("what it is", escape(first.note)))
    if first.index is not None:
        rows.append(("worst element", f'<span class="num">{list(first.index)}</span> {escape(first.place)}'))
        rows.append(
            ("values", f'got <b class="num">{_number(first.got)}</b>, expected <b>{_number(first.expected)}</b>')
        )
    allowed = f", allowed {_number(first.allowed)}" if first.allowed else ""
    rows.append(("error", f"{_number(first.error)}{allowed}; {share_text(first.share)} of the budget"))
    listed = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in rows)
    return f"<h3>Where it first differs</h3><dl>{listed}</dl>"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.6g}"


def _chain(case: CaseReport, direction: str) -> str:
    """The tensors of one direction, in the order of computation."""
    tensors = [tensor for tensor in case.tensors if tensor.direction == direction]
    if not tensors:
        return ""
    first = case.first.tensor if case.first is not None else None
    tiles = "".join(_tile(tensor, tensor.name == first) for tensor in tensors)
    title = f"{direction.capitalize()}, in the order of computation"
    return f'<h3>{title}</h3><ol class="chain">{tiles}</ol>'


def _tile(tensor: TensorReport, first: bool) -> str:
    kind = {"differs": "bad", "ambiguous": "amb"}.get(tensor.status)
    kind = kind or next((name for limit, name in STEPS if tensor.share <= limit), "bad")
    mark = ' first" aria-label="first difference' if first else ""
    note = f' title="{escape(tensor.note)}"' if tensor.note else ""
    name = escape(tensor.name)
    return f'<li class="{kind}{mark}"{note}>{SYMBOLS[tensor.status]} {name} {share_text(tensor.share)}</li>'


def _neighbourhood(got: list[list[float]], expected: list[list[float]]) -> str:
    """Three small tables: the values around the worst element, the truth, and the difference."""
    difference = [[a - b for a, b in zip(*rows, strict=True)] for rows in zip(got, expected, strict=True)]
    sizes = [[math.inf if math.isnan(value) else abs(value) for value in row] for row in difference]
    largest = max((size for row in sizes for size in row), default=0.0)
    tables = "".join(
        f'<figure><figcaption>{name}</figcaption><div class="scroll" tabindex="0" role="group" aria-label="{name}">'
        f"{_table(values, sizes, largest, digits)}</div></figure>"
        for name, values, digits in (("got", got, 4), ("expected", expected, 4), ("got − expected", difference, 2))
    )
    return f'<h3>Around the worst element</h3><div class="maps">{tables}</div>'


def _table(values: list[list[float]], sizes: list[list[float]], largest: float, digits: int) -> str:
    rows = []
    for row, of in zip(values, sizes, strict=True):
        cells = "".join(
            f'<td class="{_heat(size, largest)}">{value:.{digits}g}</td>' for value, size in zip(row, of, strict=True)
        )
        rows.append(f"<tr>{cells}</tr>")
    return f"<table>{''.join(rows)}</table>"


def _heat(size: float, largest: float) -> str:
    if not largest or not size:
        return ""
    share = 1.0 if size == largest else size / largest
    return "h2 worst" if share == 1 else "h2" if share > 0.5 else "h1" if share > 0.05 else ""


# ---- laws


def _laws(laws: list[LawReport]) -> str:
    if not laws:
        return ""
    ordered = sorted(laws, key=lambda law: ORDER.index(law.status))
    return "<h2>Laws</h2>" + "".join(_law(law) for law in ordered)


def _law(law: LawReport) -> str:
    program = _program(law.reproduce) if law.reproduce else ""
    return (
        f'<details class="case"{" open" if program else ""}><summary>'
        f'<span class="status {_class(law.status)}">{SYMBOLS[law.status]} {law.status}</span>'
        f'<span class="case-name">{escape(law.operation)}</span><span></span><span></span>'
        f'<span class="remark">{escape(law.law.replace("_", " "))}</span></summary>'
        f'<div class="body"><p>{escape(law.sentence or "It holds for every input that was tried.")}</p>{program}</div>'
        "</details>"
    )


def _program(text: str) -> str:
    return f'<pre tabindex="0"><code>{escape(text)}</code></pre>'


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _class(status: str) -> str:
    return status.replace(" ", "-")
