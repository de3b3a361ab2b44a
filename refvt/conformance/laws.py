"""All laws of an operation: the generic ones and those of its own folder."""

from __future__ import annotations

from importlib import import_module

from refvt.ops import FAMILIES, operations
from refvt.ops.laws import GENERIC_LAWS, Law

__all__ = ["laws_of"]


def laws_of(operation: str) -> tuple[Law, ...]:
    """The laws of an operation of the table, each called as ``law(op, inputs)``.

    An operation without a backward has only one generic law: nothing is mutated.
    """
    signature = operations()[operation]
    generic = tuple(law for law in GENERIC_LAWS if signature.has_backward or law.__name__ == "nothing_is_mutated")
    special: dict[str, tuple[Law, ...]] = {}
    for family in FAMILIES:
        special.update(import_module(f"refvt.ops.{family}.laws").LAWS)
    return (*generic, *special[operation])
