"""``refvt info``: versions, backends, presets and where the golden files are."""

from __future__ import annotations

import argparse
import json
import platform

import refvt
from refvt import backends
from refvt.cli.options import add_json
from refvt.environment import installed_version
from refvt.model.config import PRESETS

__all__ = ["HELP", "add_arguments", "run"]

HELP = "Print versions, backends, presets and where the golden files are."
PACKAGES = ("numpy", "numba", "scipy", "imageio", "safetensors", "threadpoolctl", "av", "matplotlib", "torch")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``refvt info``."""
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Print what is installed; 0."""
    from refvt.conformance.golden import GoldenError, golden_directory, load_manifest

    try:
        golden: str | None = str(golden_directory())
        cases = len(load_manifest())
    except GoldenError as error:
        golden, cases = str(error), 0
    report = {
        "refvt": refvt.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "packages": {package: installed_version(package) for package in PACKAGES},
        "backends": list(backends.available()),
        "default_backend": backends.default(),
        "presets": list(PRESETS),
        "golden": golden,
        "golden_cases": cases,
    }
    if options.json:
        print(json.dumps(report, indent=1))
        return 0
    for name, value in report.items():
        if isinstance(value, dict):
            value = ", ".join(f"{package} {found or '(not installed)'}" for package, found in value.items())
        print(f"{name:16s} {', '.join(value) if isinstance(value, list) else value}")
    return 0
