"""The HTML page of a report: one file, well-formed, escaped, and with what a person looks for."""

import re
from html.parser import HTMLParser

from refvt.conformance.report import CaseReport, LawReport, Report, TensorReport
from refvt.plots.check_page import check_page
from tests.conformance.test_junit import FIRST, report

VOID = {"meta", "br"}


class Outline(HTMLParser):
    """Checks that elements are closed in order; keeps tags with their attributes, and the text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def page(case):
    text = check_page(Report("mine:port", "float32", [case]))
    return text, Outline(text)


def test_the_page_is_one_file_and_escapes_what_others_wrote():
    evil = '"><script>alert(1)</script>'
    one = report()
    one.cases[1].tensors = [TensorReport(evil, "forward", "differs", share=3.0, note=evil)]
    one.cases[1].neighbourhood = ([[1.0, float("nan")]], [[1.0, 2.0]])
    one.cases[1].not_given = (evil,)
    one.candidate = evil
    one.cases[1].variant = evil
    text = check_page(one)
    outline = Outline(text)
    assert not {"script", "img", "link", "iframe"} & {tag for tag, _ in outline.tags}
    assert not re.search(r"https?:|url\(|@import|src=", text)
    assert evil in outline.text


def test_a_case_that_differs_is_open_and_explains_itself():
    tensors = [
        TensorReport("y", "forward", "agrees", share=0.05),
        TensorReport("d(k)", "backward", "agrees", share=0.95),
        TensorReport("d(q)", "backward", "differs", share=17.2),
    ]
    near = ([[1.0, 2.5], [3.0, 4.0]], [[1.0, 2.0], [3.0, 4.0]])
    case = CaseReport("bad", "op", "describes", "differs", tensors=tensors, first=FIRST, variant="ponder=r")
    case.neighbourhood, case.reproduce, case.not_given, case.total = near, "print(1 < 2)", ("z",), 4
    text, outline = page(case)
    assert ("details", {"class": "case", "open": None}) in outline.tags
    tiles = re.findall(r'<li class="([^"]+)"[^>]*>([^<]+)</li>', text.split("Forward, in")[1])
    assert tiles == [("s0", "✓ y 5 %"), ("s3", "✓ d(k) 95 %"), ("bad first", "✗ d(q) 17×")]
    assert "agrees with the variant ponder=r.ponder=r: ρ = r: the layers are not counted." in outline.text
    assert 'agrees with variant "ponder=r"' in outline.text
    for said in ("last agreeing", "print(1 < 2)", "1 tensor was not given", "head 0", "got − expected"):
        assert said in outline.text
    assert text.count("worst") - text.split("</style>")[0].count("worst") >= 3
    assert re.search(r'<td class="h2 worst">0\.5</td>', text)


def test_colours_are_for_both_schemes_and_every_status_has_a_symbol():
    text, _ = page(CaseReport("x", "op", "", "ambiguous", ambiguous=["close"]))
    assert "prefers-color-scheme: dark" in text
    statuses = Outline(check_page(report())).text
    assert all(
        f"{symbol} {name}" in statuses
        for symbol, name in zip("✓✗≈–!", ("agrees", "differs", "ambiguous", "not given", "error"), strict=True)
    )


def test_laws_are_listed_with_the_program():
    text = check_page(Report("x", "float32", [], [LawReport("gelu", "gelu_is_half_odd", "differs", "off", "a <- b")]))
    assert "gelu is half odd" in text
    assert "a &lt;- b" in text


def test_hint_contrast_and_warnings_are_on_the_page():
    case = CaseReport("bad", "op", "describes", "differs", hint="give <more>", warnings=("names: <odd>",))
    outline = Outline(check_page(Report("x", "float32", [case], contrast="all 2 models have a fused token")))
    for said in ("Next: give <more>", "Warning: names: <odd>", "All 2 models have a fused token."):
        assert said in outline.text
