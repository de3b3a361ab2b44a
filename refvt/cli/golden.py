"""``refvt golden``: compare a backend with the golden files of the PyTorch run, or write these files again."""

from __future__ import annotations

import argparse
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import refvt
from refvt import backends
from refvt.cli.options import add_backend, add_dtype, add_json

if TYPE_CHECKING:
    from refvt.conformance.report import CaseReport

__all__ = ["HELP", "add_arguments", "run"]

HELP = "Work with the golden files of the PyTorch run."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the actions of ``refvt golden`` and their options."""
    actions = parser.add_subparsers(required=True, metavar="ACTION", dest="action")
    verify = actions.add_parser("verify", help="compare a backend with every golden case (needs no torch)")
    add_backend(verify, default="reference")
    add_dtype(verify, default="float64")
    verify.add_argument("--golden", type=Path, default=None, help="another folder of golden files")
    verify.add_argument("--tiny", action="store_true", help="only the tiny cases, for slow machines")
    add_json(verify, "print every case as JSON")
    generate = actions.add_parser("generate", help="write the golden files again (needs torch and a checkout)")
    generate.add_argument("--out", type=Path, default=None, help="folder to write, default: golden/data")
    generate.add_argument(
        "--overwrite", action="store_true", help="replace files of these names that are no golden files; others stay"
    )
    generate.add_argument("--check", action="store_true", help="compare with the files that exist, change nothing")
    export = actions.add_parser("export", help="write the cases as .npy files, for a program in any language")
    export.add_argument("folder", metavar="DIR", type=Path, help="a folder that is empty or not there yet")
    export.add_argument("--cases", metavar="GLOB", default="*", help="only cases whose names match, such as 'tiny-*'")
    add_dtype(export)


def run(options: argparse.Namespace) -> int:
    """Verify, generate or export; 0, or 1 if a case does not hold. ValueError or OSError for a wrong request."""
    return {"verify": _verify, "generate": _generate, "export": _export}[options.action](options)


def _verify_all(backend: str, dtype: str, directory: Path | None = None, tiny: bool = False) -> list[CaseReport]:
    """Results of all golden cases, or of the tiny ones; without a folder those that come with refvt."""
    from refvt.conformance.golden import load_manifest
    from refvt.conformance.verify import verify

    cases = [case for case in load_manifest(directory).values() if case.tiny or not tiny]
    return verify(cases, backend, dtype)


def _print_verification(results: list[CaseReport], label: str) -> int:
    """Print a short table with a label, the backend and the dtype; returns the number of cases that failed."""
    print(f"   {label:20s}cases   hold   tensors compared   largest share of the error budget")
    for kind, name in (("op", "operations"), ("model", "models"), ("training", "training")):
        group = [r for r in results if r.kind == kind]
        worst = max((r for r in group if r.worst), key=lambda r: r.share, default=None)
        share = f"{worst.share:6.1%}  {worst.name}: {worst.worst.name}" if worst and worst.worst else "–"
        compared = sum(r.compared for r in group)
        print(f"   {name:20s}{len(group):5d}{sum(r.holds for r in group):7d}{compared:19d}   {share}")
    for result in results:
        for note in result.ambiguous:
            print(f"   ambiguous: {result.name}: {note}")
        if not result.holds:
            print(f"   FAILED {result.name}: {_reason(result)}")
    return sum(not r.holds for r in results)


def _reason(result: CaseReport) -> str:
    if result.first is None:
        return result.sentence or "nothing was compared"
    first = result.first
    return f"{first.tensor}: error {first.error:.3g}, allowed {first.allowed:.3g}"


def _verify(options: argparse.Namespace) -> int:
    backends.get(options.backend)  # one that is missing is one error, not one per case
    results = _verify_all(options.backend, options.dtype, options.golden, options.tiny)
    if not options.json:
        return 1 if _print_verification(results, f"{options.backend}, {options.dtype}") else 0
    table = [
        {
            "case": r.name,
            "holds": r.holds,
            "status": r.status,
            "problem": None if r.holds else _reason(r),
            "ambiguous": r.ambiguous,
            "compared": r.compared,
            "worst": None if r.worst is None else r.worst.name,
            "share_of_budget": None if r.worst is None else r.share,
        }
        for r in results
    ]
    print(json.dumps(table, indent=1))
    return 0 if all(r.holds for r in results) else 1


def _generate(options: argparse.Namespace) -> int:
    checkout = Path(refvt.__file__).resolve().parent.parent
    if not (checkout / "golden" / "generate.py").is_file():
        raise ValueError("golden generate: needs a checkout of the repository; an installed package only verifies")
    if find_spec("torch") is None:
        raise ModuleNotFoundError('golden generate: needs PyTorch: pip install "refvt[torch]"')
    sys.path.insert(0, str(checkout))
    from golden.generate import main as generate

    arguments = ["--check"] if options.check else []
    arguments += ["--overwrite"] if options.overwrite else []
    arguments += [] if options.out is None else ["--out", str(options.out)]
    return int(generate(arguments) or 0)


def _export(options: argparse.Namespace) -> int:
    from refvt.conformance.checking import select_cases
    from refvt.conformance.exchange import export

    count = export(options.folder, select_cases(options.cases), options.dtype)
    print(f"{count} cases in {options.folder}; write results to {options.folder}/<case>/results/<name>.npy")
    print(f"then: refvt check {options.folder}")
    return 0
