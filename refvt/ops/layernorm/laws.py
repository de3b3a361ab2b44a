"""What must hold for any LayerNorm."""

from __future__ import annotations

import numpy as np

from refvt.ops.laws import Computes, Inputs, Law, agree, backward, cotangents, forward

__all__ = ["LAWS"]


def normalises(op: Computes, inputs: Inputs) -> None:
    """With weight 1 and bias 0 every row of y has mean 0 and mean square v/(v + 1e-6), v the variance of x."""
    x = inputs["x"]
    D = x.shape[1]
    plain = {**inputs, "weight": np.ones_like(inputs["weight"]), "bias": np.zeros_like(inputs["bias"])}
    y = forward(op, plain)[0]["y"]
    variance = x.astype(np.float64).var(axis=1)
    # centring x cancels digits: an error of eps·|x| in x − mean grows by 1/√(variance + 1e-6)
    blown = 1 + np.abs(x).max(axis=1) / np.sqrt(variance + 1e-6)
    agree("layernorm: mean", y.mean(axis=1), np.zeros(len(y)), blown * (1 + np.abs(y).max(axis=1)), D)
    square = np.square(y).mean(axis=1)
    agree("layernorm: mean square", square, variance / (variance + 1e-6), np.square(blown), D)


def zero_says_bias(op: Computes, inputs: Inputs) -> None:
    """LayerNorm(0) = bias: what attention still sees of a halted token in the ``zero`` variant."""
    y = forward(op, {**inputs, "x": np.zeros_like(inputs["x"])})[0]["y"]
    agree("layernorm: LayerNorm(0)", y, np.broadcast_to(inputs["bias"], y.shape), 0, 1)


def rows_are_independent(op: Computes, inputs: Inputs) -> None:
    """A row gives the same result alone and among others."""
    y = forward(op, inputs)[0]["y"]
    alone = forward(op, {**inputs, "x": inputs["x"][:1]})[0]["y"]
    scale = (1 + np.abs(y[:1])) * (1 + np.abs(inputs["x"][:1]).max() / (np.std(inputs["x"][:1]) + 1e-3))
    agree("layernorm: one row alone", alone, y[:1], scale, y.shape[1])


def gradient_does_not_move_the_mean(op: Computes, inputs: Inputs) -> None:
    """Adding a constant to a row changes nothing, so every row of dx sums to zero."""
    results, cache = forward(op, inputs)
    dx = backward(op, cotangents(op, results, seed=11), cache)["x"]
    x = inputs["x"].astype(np.float64)
    largest = np.abs(cotangents(op, results, seed=11)["y"] * inputs["weight"]).max(axis=1)
    scale = largest / np.sqrt(x.var(axis=1) + 1e-6) * x.shape[1]
    blown = 1 + np.abs(x).max(axis=1) / np.sqrt(x.var(axis=1) + 1e-6)
    agree("layernorm: row sums of dx", dx.sum(axis=1), np.zeros(len(dx)), scale * blown, x.shape[1])


LAWS: dict[str, tuple[Law, ...]] = {
    "layernorm": (normalises, zero_says_bias, rows_are_independent, gradient_does_not_move_the_mean)
}
