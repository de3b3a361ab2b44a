"""What must hold for any linear layer."""

from __future__ import annotations

import numpy as np

from refvt.ops.laws import Computes, Inputs, Law, LawBroken, agree, backward, cotangents, forward

__all__ = ["LAWS"]


def affine(op: Computes, inputs: Inputs) -> None:
    """y(2x) − y(x) = y(x) − y(0): doubling is exact, so only the sums round."""
    x = inputs["x"]
    y = {factor: forward(op, {**inputs, "x": factor * x})[0]["y"] for factor in (0, 1, 2)}
    gain = 1 if inputs.get("gain") is None else np.abs(inputs["gain"])[:, None]
    terms = gain * (np.abs(2 * x) @ np.abs(inputs["weight"]).T + np.abs(inputs["bias"]))
    if inputs.get("residual") is not None:
        terms = terms + np.abs(inputs["residual"])
    agree("linear: affine in x", y[2] - y[1], y[1] - y[0], 4 * terms, x.shape[1] + 4)


def a_dropped_row_is_its_residual(op: Computes, inputs: Inputs) -> None:
    """With gain 0 a row is its residual to the last bit, and no gradient reaches x, weight and bias."""
    x, bias = inputs["x"], inputs["bias"]
    residual = inputs.get("residual")
    if residual is None:
        residual = np.zeros((len(x), len(bias)), dtype=x.dtype)
    results, cache = forward(op, {**inputs, "residual": residual, "gain": np.zeros(len(x), dtype=x.dtype)})
    gradients = backward(op, cotangents(op, results, seed=12), cache)
    if not np.array_equal(results["y"], residual):
        raise LawBroken("linear: with gain 0 the result is not the residual")
    for name in ("x", "weight", "bias"):
        if gradients[name].any():
            raise LawBroken(f"linear: with gain 0 a gradient reaches {name}")


LAWS: dict[str, tuple[Law, ...]] = {"linear": (affine, a_dropped_row_is_its_residual)}
