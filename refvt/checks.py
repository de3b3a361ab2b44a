"""Checks of arguments that several parts of refvt share."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Iterable
from typing import Any

__all__ = ["NotFiniteError", "at_most", "brief", "check_int", "is_number", "is_whole", "printable", "words_of"]

_BRIEF, _LISTED = 200, 20  # characters of a value, and items of a list, in a message
_WORDS = 1000  # characters of an error from another library in a message


class NotFiniteError(ValueError):
    """A number that a result depends on became NaN or infinite: the result is none."""


def check_int(name: str, value: int, minimum: int = 1) -> int:
    """Return ``value`` as an int. TypeError if it is not an integer, ValueError if it is below ``minimum``."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected a whole number, got {brief(value)}") from None
    if number < minimum:
        raise ValueError(f"{name}: expected at least {minimum}, got {brief(number)}")
    return number


def is_whole(value: Any, lowest: int = 0, highest: float = math.inf) -> bool:
    """Whether a value read from JSON is a whole number in a range; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest


def is_number(value: Any, lowest: float = -math.inf, highest: float = math.inf) -> bool:
    """Whether a value read from JSON is a finite number in a range; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max and lowest <= value <= highest


def brief(value: Any) -> str:
    """Return the repr of a value for a message: no control characters, and not megabytes of it."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a whole number of thousands of digits, or a deep nest
        text = f"a large {type(value).__name__}"
    return _cut(text, _BRIEF)


def words_of(error: BaseException) -> str:
    """Return what an error from another library says, shortened; the name of its type if it says nothing."""
    return _cut(str(error) or type(error).__name__, _WORDS)


def _cut(text: str, most: int) -> str:
    text = printable(text)
    return text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"


def printable(text: str) -> str:
    """Return a text of others in which nothing can steer a terminal: control characters become their escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def at_most(lines: Iterable[str], most: int = _LISTED) -> list[str]:
    """Return the first lines of a list, and how many more there are."""
    listed = list(lines)
    return listed if len(listed) <= most else [*listed[:most], f"… and {len(listed) - most} more"]
