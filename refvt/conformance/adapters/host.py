"""Adapters that give the operations of any backend NumPy arguments and results, as laws and tools expect."""

from __future__ import annotations

from typing import Any

import numpy as np

from refvt.backends import Backend, ForwardOnly, Implementation
from refvt.ops.laws import LawBroken

__all__ = ["on_host"]


def on_host(backend: Backend, operation: str) -> Implementation | ForwardOnly:
    """An operation that takes and returns NumPy arrays.

    If the backend's arrays are NumPy arrays, this is the operation itself. Otherwise it is wrapped: arguments are
    uploaded to the device and results downloaded. The law that nothing is mutated cannot see the device, so after each
    call the wrapper compares every uploaded array with its original. LawBroken if the operation wrote to one of them.
    """
    op = backend[operation]
    if backend.arrays.IN_MAIN_MEMORY:
        return op
    arrays, in_place = backend.arrays, op.operation.in_place

    def upload(name: str, value: Any) -> Any:
        is_float = isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.ndim > 0
        return arrays.from_numpy(value) if is_float or name in in_place else value

    def download(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(download(part) for part in value)
        return None if value is None else arrays.to_numpy(value)

    def check_unchanged(given: dict[str, Any], uploaded: dict[str, Any]) -> None:
        for name, value in uploaded.items():
            if name in in_place:
                given[name][...] = arrays.to_numpy(value)
            elif value is not given[name] and not np.array_equal(arrays.to_numpy(value), given[name], equal_nan=True):
                raise LawBroken(f"{operation}: {name} was mutated on the device")

    def forward_only(**arguments: Any) -> Any:
        uploaded = {name: upload(name, value) for name, value in arguments.items()}
        results = download(op.forward(**uploaded))
        check_unchanged(arguments, uploaded)
        return results

    if isinstance(op, ForwardOnly):
        return ForwardOnly(op.operation, forward_only)
    backward_of = op.backward

    def forward(keep: bool = True, **arguments: Any) -> Any:
        uploaded = {name: upload(name, value) for name, value in arguments.items()}
        results, cache = op.forward(**uploaded, keep=keep)
        check_unchanged(arguments, uploaded)
        return download(results), cache

    def backward(*cotangents_and_cache: Any) -> Any:
        *cotangents, cache = cotangents_and_cache
        given = {f"d{i}": value for i, value in enumerate(cotangents)}
        uploaded = {name: upload(name, value) for name, value in given.items()}
        gradients = download(backward_of(*uploaded.values(), cache))
        check_unchanged(given, uploaded)
        return gradients

    return Implementation(op.operation, forward, backward)
