"""The machine and the packages that numbers were measured with."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_info

__all__ = ["describe_machine", "installed_version"]


def describe_machine(threads: int, with_torch: bool) -> dict[str, Any]:
    """Date, processor, cores, threads used, versions of packages and BLAS libraries, for the head of a report.

    with_torch: list PyTorch, if it is installed, because it took part.
    """
    packages = {"python": platform.python_version()}
    for package in ("numpy", "numba", "numba-cuda", *(["torch"] if with_torch else [])):
        found = installed_version(package)
        if found is not None:
            packages[package] = found
    blas = {
        " ".join(str(lib[key]) for key in ("internal_api", "version", "architecture") if lib.get(key))
        for lib in threadpool_info()
        if lib["user_api"] == "blas"
    }
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "packages": packages,
        "blas": sorted(blas),
    }


def installed_version(package: str) -> str | None:
    """Version of an installed package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """Name of the processor, as Linux gives it; elsewhere what Python knows of it."""
    if Path("/proc/cpuinfo").is_file():
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
