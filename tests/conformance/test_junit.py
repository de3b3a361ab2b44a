"""JUnit XML of a report: well-formed whatever a candidate says, and the counts are right."""

import xml.etree.ElementTree as ET

from refvt.conformance.junit import junit_xml
from refvt.conformance.report import CaseReport, Divergence, LawReport, Report, TensorReport

FIRST = Divergence(
    "d(q)", "backward", "y", (0, 1), "head 0", 1.5, float("nan"), float("inf"), 1e-6, float("inf"), "<note>"
)


def report():
    return Report(
        "mine:<port>",
        "float32",
        [
            CaseReport("good", "op", "fine", "agrees", tensors=[TensorReport("y", "forward", "agrees")]),
            CaseReport("bad", "op", "wrong & wrong", "differs", first=FIRST, variant="ponder=r", reproduce="a < b"),
            CaseReport("raises", "model", "", "error", sentence="ValueError: \x1b[31m & <b>]]>\x00"),
            CaseReport("absent", "model", "", "not given", sentence="the candidate has no model"),
            CaseReport("tie", "model", "", "ambiguous", ambiguous=["a token halts within rounding"], seconds=1.25),
        ],
        [LawReport("gelu", "adjoint", "differs", "off by 1", "check_law(...)"), LawReport("gelu", "odd", "agrees")],
    )


def test_cases_and_laws():
    root = ET.fromstring(junit_xml(report()))
    cases, laws = root
    assert (cases.attrib | {"name": ""}) == {
        "name": "",
        "tests": "5",
        "failures": "1",
        "errors": "1",
        "skipped": "1",
        "time": "1.250",
    }
    found = {case.get("name"): case for case in cases}
    assert list(found) == ["good", "bad", "raises", "absent", "tie"]
    assert len(found["good"]) == 0
    failure = found["bad"].find("failure")
    assert failure.get("message") == "bad: d(q) differs first (backward)"
    for said in (
        "last agreeing: y",
        "<note>",
        "[0, 1], head 0",
        'agrees with variant "ponder=r": ρ = r: the layers',
        "a < b",
    ):
        assert said in failure.text
    assert "\x00" not in found["raises"].find("error").text
    assert "& <b>]]>" in found["raises"].find("error").text
    assert found["absent"].find("skipped").get("message") == "the candidate has no model"
    assert "within rounding" in found["tie"].find("system-out").text
    assert [law.get("classname") for law in laws] == ["refvt.law.gelu"] * 2
    assert "check_law" in laws[0].find("failure").text


def test_a_report_without_laws_has_one_suite():
    assert len(ET.fromstring(junit_xml(Report("x", "float64")))) == 1
