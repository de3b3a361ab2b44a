"""A report as JUnit XML, which continuous integration servers read: every case and every law is a test case."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from refvt.conformance.report import CaseReport, LawReport, Report, describe_case, describe_law
from refvt.files import MARK

__all__ = ["junit_xml"]

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # characters that XML 1.0 has not


def junit_xml(report: Report) -> str:
    """The report as the text of a JUnit XML file.

    A case that differs is a failure, with the first divergence as text; "error" is an error, "not given" is skipped.
    An ambiguous case passes, and says so in its ``system-out``.
    """
    root = ET.Element("testsuites", name=_clean(f"refvt check {report.candidate}"))
    cases = _suite(root, f"cases {report.dtype}", [case.status for case in report.cases], report.cases)
    for case in report.cases:
        _case(cases, f"refvt.{case.kind}", case.name, case, describe_case(case))
    if report.laws:
        laws = _suite(root, f"laws {report.dtype}", [law.status for law in report.laws], report.laws)
        for law in report.laws:
            _case(laws, f"refvt.law.{law.operation}", law.law, law, describe_law(law))
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + f"\n{MARK['.xml']}\n"


def _suite(root: ET.Element, name: str, statuses: list[str], found: list[CaseReport] | list[LawReport]) -> ET.Element:
    counts = {"failures": "differs", "errors": "error", "skipped": "not given"}
    attributes = {key: str(statuses.count(status)) for key, status in counts.items()}
    attributes |= {"name": name, "tests": str(len(statuses)), "time": f"{sum(item.seconds for item in found):.3f}"}
    return ET.SubElement(root, "testsuite", attributes)


def _case(suite: ET.Element, group: str, name: str, item: CaseReport | LawReport, text: str) -> None:
    element = ET.SubElement(suite, "testcase", classname=group, name=_clean(name), time=f"{item.seconds:.3f}")
    text = _clean(text)
    head = text.splitlines()[0] if text else item.status
    if item.status == "not given":
        ET.SubElement(element, "skipped", message=_clean(item.sentence) or "not given")
    elif item.status in ("differs", "error"):
        kind = "failure" if item.status == "differs" else "error"
        ET.SubElement(element, kind, message=head, type=item.status).text = text
    elif item.status == "ambiguous":
        ET.SubElement(element, "system-out").text = text


def _clean(text: str) -> str:
    """Text without the characters that XML cannot hold."""
    return _NOT_XML.sub("�", text)
