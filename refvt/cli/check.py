"""``refvt check``: does another implementation agree with refvt, and if not, where does it differ first, and why."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from refvt.cli.check_table import Printer
from refvt.cli.options import add_overwrite
from refvt.conformance.budgets import DTYPES
from refvt.conformance.report import Report
from refvt.files import refuse_strangers, write_whole

__all__ = ["HELP", "add_arguments", "run"]

HELP = "Compare an implementation with refvt: where does it differ first, and is it rounding, a variant or a bug?"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``refvt check``."""
    parser.add_argument(
        "candidate",
        metavar="CANDIDATE",
        help="a backend (reference, jit, cuda), file.py:object, module:object, or an exchange folder",
    )
    parser.add_argument(
        "--dtype", choices=list(DTYPES), default=None, help="what the candidate computes in; default: float32"
    )
    parser.add_argument("--cases", metavar="GLOB", default="*", help="only cases whose names match, such as '*halt*'")
    parser.add_argument("--laws", action="store_true", help="also run the laws of its operations (needs hypothesis)")
    parser.add_argument(
        "--timeout", type=float, default=120.0, metavar="SECONDS", help="limit for one case; default: 120"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole report as JSON ('-': to the output)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one self-contained page")
    add_overwrite(parser)
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write JUnit XML, as CI servers read it")


def run(options: argparse.Namespace) -> int:
    """Check; 0: all that was given agrees, 1: something differs, 2: it could not be checked."""
    from refvt.conformance.checking import check

    to_output = options.json is not None and str(options.json) == "-"
    files = [None if to_output else options.json, options.html, options.junit]
    refuse_strangers([file for file in files if file is not None], options.overwrite)
    printer = Printer(sys.stderr if to_output else sys.stdout)
    report = check(
        options.candidate,
        options.dtype,
        options.cases,
        options.laws,
        timeout=options.timeout,
        progress=printer.case,
        law_progress=printer.law,
    )
    printer.summary(report)
    text = json.dumps({"generator": "refvt", **report.as_dict()}, indent=1, ensure_ascii=False) + "\n"
    if to_output:
        sys.stdout.write(text)
    elif options.json is not None:
        _write(options.json, text)
    if options.html is not None:
        from refvt.plots.check_page import check_page

        _write(options.html, check_page(report))
    if options.junit is not None:
        from refvt.conformance.junit import junit_xml

        _write(options.junit, junit_xml(report))
    if report.exit_code == 2:
        print(f"refvt: check: nothing could be compared: {_reason(report)}", file=sys.stderr)
    return report.exit_code


def _reason(report: Report) -> str:
    """Why nothing could be compared: what most cases say, errors first."""
    for status in ("error", "not given"):
        said = [case.sentence for case in report.cases if case.status == status and case.sentence]
        said = [text for text in said if not text.startswith("the candidate has no")] or said
        if said:
            return max(said, key=said.count)
    return "it gave none of the tensors of these cases"


def _write(path: Path, text: str) -> None:
    write_whole(path, text.encode("utf-8"))
