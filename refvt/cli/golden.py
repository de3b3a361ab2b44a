"""``refvt golden``: hold a backend against the golden files of the PyTorch run, or write them anew."""

from __future__ import annotations

import argparse
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import refvt
from refvt import backends

__all__ = ["add_arguments", "print_verification", "verify_all"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The actions of ``refvt golden`` and their options."""
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    verify = actions.add_parser("verify", help="hold a backend against every golden case (needs no torch)")
    verify.add_argument("--backend", default="reference", choices=list(backends.BACKENDS))
    verify.add_argument("--dtype", default="float64", choices=["float64", "float32"])
    verify.add_argument("--golden", type=Path, default=None, help="another folder of golden files")
    verify.add_argument("--tiny", action="store_true", help="only the tiny cases, for slow machines")
    verify.add_argument("--json", action="store_true", help="print every case as JSON")
    verify.set_defaults(run=_verify)
    generate = actions.add_parser("generate", help="write the golden files anew (needs torch and a checkout)")
    generate.add_argument("--out", type=Path, default=None, help="folder to write, default: golden/data")
    generate.add_argument("--check", action="store_true", help="compare with the files there are, change nothing")
    generate.set_defaults(run=_generate)


def verify_all(backend: str, dtype: str, directory: Path | None = None, tiny: bool = False) -> list[Any]:
    """The results of all golden cases, or of the tiny ones; those that come with refvt if no folder is given."""
    from refvt.conformance.golden import load_manifest
    from refvt.conformance.verify import verify

    cases = [case for case in load_manifest(directory).values() if case.tiny or not tiny]
    return verify(cases, backend, dtype)


def print_verification(results: list[Any], dtype: str) -> int:
    """A short table; returns how many cases failed."""
    print(f"   {dtype}   cases   hold   comparisons   largest share of the error budget")
    for kind, label in (("op", "operations"), ("model", "models"), ("training", "training")):
        group = [r for r in results if r.case.kind == kind]
        worst = max((r for r in group if r.worst), key=lambda r: r.worst.share, default=None)
        share = f"{worst.worst.share:6.1%}  {worst.case.name}: {worst.worst.name}" if worst else "–"
        compared = sum(len(r.comparisons) for r in group)
        print(f"   {label:10s}{len(group):5d}{sum(r.holds for r in group):7d}{compared:14d}   {share}")
    for result in results:
        for note in result.ambiguous:
            print(f"   ambiguous: {result.case.name}: {note}")
        if not result.holds:
            reason = result.problem or (
                f"{result.worst.name}: error {result.worst.error:.3g}, allowed {result.worst.allowed:.3g}"
                if result.worst
                else "nothing was compared"
            )
            print(f"   FAILED {result.case.name}: {reason}")
    return sum(not r.holds for r in results)


def _verify(options: argparse.Namespace) -> int:
    backends.get(options.backend)  # one that is not there is one error, not one per case
    results = verify_all(options.backend, options.dtype, options.golden, options.tiny)
    if not options.json:
        return 1 if print_verification(results, options.dtype) else 0
    table = [
        {
            "case": r.case.name,
            "holds": r.holds,
            "problem": r.problem,
            "ambiguous": r.ambiguous,
            "comparisons": len(r.comparisons),
            "largest_error": max((c.error for c in r.comparisons), default=None),
            "worst": None if r.worst is None else r.worst.name,
            "share_of_budget": None if r.worst is None else r.worst.share,
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
    arguments += [] if options.out is None else ["--out", str(options.out)]
    return int(generate(arguments) or 0)
