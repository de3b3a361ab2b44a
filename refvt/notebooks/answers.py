"""What all exercises of the notebooks share: their form, and comparisons that end in a sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from refvt.array import Array

__all__ = ["RIGHT", "Exercise", "compare", "first"]

RIGHT = "Right."


@dataclass(frozen=True)
class Exercise:
    """One exercise: what is asked, the text of a solution, and the check of an answer."""

    question: str
    solution: str
    check: Callable[[Any], str]


def compare(what: str, got: Any, expected: Array) -> str | None:
    """Say how an array differs from the expected one; None if it agrees to rounding."""
    found = np.asarray(got, dtype=np.float64) if np.asarray(got).dtype.kind in "biuf" else None
    if found is None:
        return f"Not yet: {what} should be numbers, got {type(got).__name__}."
    if found.shape != expected.shape:
        return f"Not yet: {what} should have the shape {expected.shape}, got {found.shape}."
    wrong = ~np.isclose(found, expected, rtol=1e-9, atol=1e-12)
    if not wrong.any():
        return None
    place = tuple(int(i) for i in np.argwhere(wrong)[0])
    where = f"{what}[{', '.join(map(str, place))}]" if place else what
    return (
        f"Not yet: {where} should be {expected[place]:.6g}, got {found[place]:.6g}; {int(wrong.sum())} values differ."
    )


def first(*found: str | None) -> str:
    """The first sentence that says what differs, else "Right."."""
    return next((sentence for sentence in found if sentence is not None), RIGHT)
