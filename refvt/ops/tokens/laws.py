"""What must hold for any gather and any segment mean."""

from __future__ import annotations

import numpy as np

from refvt.ops.laws import Computes, Inputs, Law, LawBroken, agree, backward, cotangents, forward

__all__ = ["LAWS"]


def gather_copies_bits(op: Computes, inputs: Inputs) -> None:
    """Every row of y is a row of x, to the last bit, or zero."""
    y = forward(op, inputs)[0]["y"]
    for i, j in enumerate(inputs["index"]):
        if not np.array_equal(y[i], inputs["x"][j] if j >= 0 else np.zeros_like(y[i])):
            raise LawBroken(f"gather: row {i} is not row {j} of x")


def permutation_goes_and_comes_back(op: Computes, inputs: Inputs) -> None:
    """Gathering by a permutation and passing the result back as a gradient gives x again."""
    x = inputs["x"]
    order = np.random.default_rng(len(x)).permutation(len(x))
    results, cache = forward(op, {"x": x, "index": order})
    if not np.array_equal(backward(op, {"y": results["y"]}, cache)["x"], x):
        raise LawBroken("gather: a permutation's adjoint is not its inverse")


def nothing_flows_to_the_unread(op: Computes, inputs: Inputs) -> None:
    """Rows that are not in the index get no gradient; the gradients of zero rows are dropped."""
    results, cache = forward(op, inputs)
    u = cotangents(op, results, seed=16)
    dx = backward(op, u, cache)["x"]
    unread = np.setdiff1d(np.arange(len(inputs["x"])), inputs["index"])
    if dx[unread].any():
        raise LawBroken(f"gather: rows {unread[:5]} were not read but got a gradient")
    read = u["y"][inputs["index"] >= 0]
    agree("gather: the sum of the gradient", dx.sum(axis=0), read.sum(axis=0), np.abs(read).sum(axis=0), len(read) + 1)


def mean_of_equals(op: Computes, inputs: Inputs) -> None:
    """The mean of a single row is that row to the last bit; the mean of equal rows is that row, to rounding."""
    x, offsets = inputs["x"], inputs["offsets"]
    lengths = np.diff(offsets)
    singles = np.flatnonzero(lengths == 1)
    if not np.array_equal(forward(op, inputs)[0]["y"][singles], x[offsets[singles]]):
        raise LawBroken("segment_mean: a segment of one row is not that row")
    rows = x[offsets[:-1]]
    same = forward(op, {**inputs, "x": np.repeat(rows, lengths, axis=0)})[0]["y"]
    agree("segment_mean: a segment of equal rows", same, rows, np.abs(rows), int(lengths.max()) + 1)


LAWS: dict[str, tuple[Law, ...]] = {
    "gather": (gather_copies_bits, permutation_goes_and_comes_back, nothing_flows_to_the_unread),
    "segment_mean": (mean_of_equals,),
}
