"""Exercises of the notebooks: each compares a reader's answer with refvt.

An answer is a function, or numbers. ``check_exercise`` never raises for a wrong answer: it returns a sentence that says
what differs, and prints nothing, so that a notebook shows it as the value of a cell.
"""

from __future__ import annotations

from typing import Any

from refvt.notebooks.answers import Exercise
from refvt.notebooks.checking import CHECKING
from refvt.notebooks.halting import HALTING
from refvt.notebooks.machines import MACHINES
from refvt.notebooks.training import TRAINING

__all__ = ["EXERCISES", "Exercise", "check_exercise", "solution"]

EXERCISES: dict[str, Exercise] = {**HALTING, **TRAINING, **CHECKING, **MACHINES}
"""The exercises of the notebooks, by name."""


def check_exercise(name: str, answer: Any) -> str:
    """Say whether an answer is right: "Right.", or what differs.

    ValueError for an unknown exercise. An answer that raises, or that returns something else than was asked for, is
    wrong, and the sentence says how.
    """
    if name not in EXERCISES:
        raise ValueError(f"exercise: expected one of {', '.join(EXERCISES)}, got {name!r}")
    try:
        return EXERCISES[name].check(answer)
    except Exception as error:
        return f"Not yet: your answer raised {type(error).__name__}: {error}"


def solution(name: str) -> str:
    """Return the text of a solution. ValueError for an unknown exercise."""
    if name not in EXERCISES:
        raise ValueError(f"exercise: expected one of {', '.join(EXERCISES)}, got {name!r}")
    return EXERCISES[name].solution
