"""An operation of any column as one that takes and gives NumPy arrays, so that laws and tools need not know devices."""

from __future__ import annotations

from typing import Any

import numpy as np

from refvt.backends import Backend, Implementation
from refvt.ops.laws import LawBroken

__all__ = ["on_host"]


def on_host(backend: Backend, operation: str) -> Implementation:
    """The operation itself where arrays live in main memory; else with uploads before and downloads after.

    The law that nothing is mutated cannot see the device: here every upload is compared with what it was made of.
    """
    op = backend.operations[operation]
    moves = backend.arrays
    if moves.__name__ == "refvt.backends.reference.arrays":
        return op

    def up(value: Any) -> Any:
        floats = isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.ndim > 0
        return moves.from_numpy(value) if floats else value

    def down(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(down(part) for part in value)
        return None if value is None else moves.to_numpy(value)

    def unchanged(given: dict[str, Any], uploaded: dict[str, Any]) -> None:
        for name, value in uploaded.items():
            if value is not given[name] and not np.array_equal(moves.to_numpy(value), given[name], equal_nan=True):
                raise LawBroken(f"{operation}: {name} was written to on the device")

    def forward(keep: bool = True, **arguments: Any) -> Any:
        uploaded = {name: up(value) for name, value in arguments.items()}
        if op.backward is None:
            results: Any = down(op.forward(**uploaded))
        else:
            found, cache = op.forward(**uploaded, keep=keep)
            results = (down(found), cache)
        unchanged(arguments, uploaded)
        return results

    def backward(*cotangents_and_cache: Any) -> Any:
        *cotangents, cache = cotangents_and_cache
        given = {f"d{i}": value for i, value in enumerate(cotangents)}
        uploaded = {name: up(value) for name, value in given.items()}
        gradients = down(op.backward(*uploaded.values(), cache)) if op.backward is not None else None
        unchanged(given, uploaded)
        return gradients

    return Implementation(op.operation, forward, None if op.backward is None else backward)
