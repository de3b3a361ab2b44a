"""What must hold for any compaction: the next block is the one that plain loops over tokens give."""

from __future__ import annotations

from typing import Any

import numpy as np

from refvt.array import Array
from refvt.ops.laws import Computes, Inputs, Law, LawBroken, forward

__all__ = ["LAWS", "next_block_by_hand"]


def next_block_by_hand(inputs: Inputs) -> dict[str, Any]:
    """The results of ``compact`` and the new halting_layer, token by token."""
    halted, tokens, N = inputs["halted"], inputs["tokens"], inputs["N"]
    B, layers = inputs["counts"].shape[1], inputs["halting_layer"].copy()
    has_cls = {int(token) // N for token, stops in zip(tokens, halted, strict=True) if not stops and token % N == 0}
    for token, stops in zip(tokens, halted, strict=True):
        if stops:
            layers[token] = inputs["layer"]
    found: dict[str, Any] = {"tokens": [], "survivor_rows": [], "entering_rows": [], "query_rows": []}
    counts = np.zeros((2, B), np.int64)
    for b in range(B):
        lives = [
            (row, token)
            for row, (token, stops) in enumerate(zip(tokens, halted, strict=True))
            if token // N == b and not stops and (b in has_cls or not inputs["leave_early"])
        ]
        counts[:, b] = len(lives), b in has_cls
        found["tokens"] += [token for _, token in lives]
        found["survivor_rows"] += [row for row, _ in lives]
        if not lives or (inputs["cls_only"] and b not in has_cls):
            continue
        first = len(found["entering_rows"])
        found["entering_rows"] += [row for row, _ in lives]
        found["query_rows"] += [first] if inputs["cls_only"] else range(first, len(found["entering_rows"]))
        if inputs["ghosts"] and len(lives) < N:
            found["entering_rows"].append(-1)
    return {**found, "counts": counts, "backend_counts": counts, "halting_layer": layers}


def compact_is_the_plain_loop(op: Computes, inputs: Inputs) -> None:
    """Every survivor, ghost and query stands in the row where a loop over the tokens puts it."""
    record = inputs["halting_layer"].copy()
    results, _ = forward(op, {**inputs, "halting_layer": record})
    expected = next_block_by_hand(inputs)
    _agree("halting_layer", record, expected["halting_layer"])
    for name, value in results.items():
        if value is None:  # nothing moves: rows 0, 1, …
            value = np.arange(len(inputs["tokens"]))
        _agree(name, value, expected[name])


def mask_halted_is_the_plain_loop(op: Computes, inputs: Inputs) -> None:
    """A halted token becomes a zero row and, if masked, no key; its halting layer is recorded once."""
    halted, layer = inputs["halted"], inputs["layer"]
    record = inputs["halting_layer"].copy()
    results, _ = forward(op, {**inputs, "halting_layer": record})
    expected = [layer if h and was == 0 else was for h, was in zip(halted, inputs["halting_layer"], strict=True)]
    _agree("halting_layer", record, expected)
    _agree("entering_rows", results["entering_rows"], [-1 if h else i for i, h in enumerate(halted)])
    bias = [-np.inf if h else 0.0 for h in halted] if inputs["masked"] else None
    if (results["key_bias"] is None) != (bias is None):
        raise LawBroken(f"mask_halted: key_bias: expected {bias}, got {results['key_bias']}")
    if bias is not None:
        _agree("key_bias", results["key_bias"], bias)


def _agree(what: str, actual: Array, expected: Any) -> None:
    if np.shape(actual) != np.shape(expected) or not np.array_equal(actual, expected):
        raise LawBroken(f"{what}: expected {np.asarray(expected).tolist()}, got {np.asarray(actual).tolist()}")


LAWS: dict[str, tuple[Law, ...]] = {
    "compact": (compact_is_the_plain_loop,),
    "mask_halted": (mask_halted_is_the_plain_loop,),
}
