"""``check``: hold an implementation against the golden cases, and say where it first differs."""

from __future__ import annotations

from typing import Any

from refvt.conformance.report import Report

__all__ = ["check"]


def check(candidate: Any, dtype: str = "float32", cases: str = "*", laws: bool = False) -> Report:
    """Compare a candidate with every golden case whose name matches; returns the report."""
    raise NotImplementedError
