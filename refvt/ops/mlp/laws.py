"""What must hold for any exact GELU and any MLP."""

from __future__ import annotations

import numpy as np

from refvt.ops.laws import Computes, Inputs, Law, LawBroken, agree, forward

__all__ = ["LAWS"]


def gelu_is_half_odd(op: Computes, inputs: Inputs) -> None:
    """gelu(x) − gelu(−x) = x, since Φ(x) + Φ(−x) = 1."""
    x = inputs["x"]
    minus = forward(op, {**inputs, "x": -x})[0]["y"]
    agree("gelu: gelu(x) − gelu(−x)", forward(op, inputs)[0]["y"] - minus, x, np.abs(x), 8)


def gelu_tail_is_relative(op: Computes, inputs: Inputs) -> None:
    """Left of zero gelu(x) = −|x| Φ(−|x|) keeps its relative accuracy: Mills' bounds on Φ hold for x ≤ −1."""
    x = -1 - np.abs(inputs["x"])
    x = x[x > -8]  # beyond that, Φ leaves the normal range of float32
    y = forward(op, {**inputs, "x": x})[0]["y"].astype(np.float64)
    x = x.astype(np.float64)
    density = np.exp(-x * x / 2) / np.sqrt(2 * np.pi)
    upper, lower = -density, -density * x * x / (1 + x * x)  # x·Φ(x) lies between −φ and −φ·x²/(1+x²)
    slack = 64 * np.finfo(inputs["x"].dtype).eps * (1 + x * x) * density
    if not ((y >= upper - slack) & (y <= lower + slack) & (y < 0)).all():
        raise LawBroken("gelu: the negative tail leaves Mills' bounds")


def mlp_rows_are_independent(op: Computes, inputs: Inputs) -> None:
    """Reversing the rows reverses the results."""
    rows = {n: inputs[n][::-1].copy() for n in ("x", "residual", "gain") if inputs.get(n) is not None}
    y, reversed_y = forward(op, inputs)[0]["y"], forward(op, {**inputs, **rows})[0]["y"]
    hidden = np.abs(inputs["x"]) @ np.abs(inputs["fc1_weight"]).T + np.abs(inputs["fc1_bias"])
    terms = hidden @ np.abs(inputs["fc2_weight"]).T + np.abs(inputs["fc2_bias"]) + np.abs(y)
    if inputs.get("gain") is not None:
        terms = terms * (1 + np.abs(inputs["gain"])[:, None])
    count = inputs["fc1_weight"].shape[0] + inputs["fc1_weight"].shape[1]
    agree("mlp: rows", reversed_y[::-1], y, terms + np.abs(y), count)


LAWS: dict[str, tuple[Law, ...]] = {
    "gelu": (gelu_is_half_odd, gelu_tail_is_relative),
    "mlp": (mlp_rows_are_independent,),
}
