"""All the laws of every operation, collected from the rooms."""

from __future__ import annotations

from importlib import import_module

from refvt.ops import FAMILIES, operations
from refvt.ops.laws import GENERIC_LAWS, Law

__all__ = ["laws_of"]


def laws_of(operation: str) -> tuple[Law, ...]:
    """The generic laws (for an operation with a backward: all of them) and those of the operation's own room."""
    signature = operations()[operation]
    generic = (
        GENERIC_LAWS
        if signature.has_backward
        else tuple(law for law in GENERIC_LAWS if law.__name__ == "nothing_is_mutated")
    )
    own: dict[str, tuple[Law, ...]] = {}
    for room in FAMILIES:
        own.update(import_module(f"refvt.ops.{room}.laws").LAWS)
    return (*generic, *own[operation])
