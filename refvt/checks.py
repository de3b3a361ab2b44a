"""Checks of arguments that several parts of refvt share."""

from __future__ import annotations

import operator

__all__ = ["check_int"]


def check_int(name: str, value: int, minimum: int = 1) -> int:
    """Return ``value`` as an int. TypeError if it is not an integer, ValueError if it is below ``minimum``."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected a whole number, got {value!r}") from None
    if number < minimum:
        raise ValueError(f"{name}: expected at least {minimum}, got {number}")
    return number
