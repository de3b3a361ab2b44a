"""What must hold for any Adam."""

from __future__ import annotations

import math

import numpy as np

from refvt.array import Array
from refvt.ops.laws import Computes, Inputs, Law, LawBroken, agree, forward

__all__ = ["LAWS"]


def the_norm_is_the_sum_of_squares(op: Computes, inputs: Inputs) -> None:
    """``squared_norm`` is Σ x², up to rounding in the precision of x."""
    x = inputs["x"]
    exact = math.fsum(float(value) ** 2 for value in x)
    total = np.asarray(forward(op, inputs)[0]["total"], dtype=x.dtype)
    agree("squared_norm", total, exact, exact, len(x) + 2)


def _by_hand(inputs: Inputs) -> tuple[Array, Array, Array]:
    """w, m and v after a step, number by number in double precision, as the formulas are printed."""
    names = ("w", "m", "v", "gradient")
    found = {name: inputs[name].astype(np.float64).tolist() for name in names}
    t, eta, b1, b2 = (inputs[name] for name in ("step", "learning_rate", "beta1", "beta2"))
    decay_of = np.repeat(inputs["decays"], np.diff(inputs["run_offsets"]))
    for i, decays in enumerate(decay_of):
        w, g = found["w"][i], inputs["clip"] * found["gradient"][i]
        decay = inputs["weight_decay"] if decays else 0.0
        if inputs["decoupled"]:
            w -= eta * decay * w
        else:
            g += decay * w
        m = found["m"][i] = b1 * found["m"][i] + (1 - b1) * g
        v = found["v"][i] = b2 * found["v"][i] + (1 - b2) * g * g
        found["w"][i] = w - eta * (m / (1 - b1**t)) / (math.sqrt(v / (1 - b2**t)) + inputs["epsilon"])
    w, m, v = (np.array(found[name]) for name in names[:3])
    return w, m, v


def a_step_is_the_printed_formula(op: Computes, inputs: Inputs) -> None:
    """w, m and v after ``adam_step`` are those of the formulas, up to rounding; nothing else has changed."""
    given = {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in inputs.items()}
    forward(op, given)
    w, m, v = _by_hand(inputs)
    clipped = np.abs(inputs["clip"] * inputs["gradient"]) + inputs["weight_decay"] * np.abs(inputs["w"])
    agree("adam_step: m", given["m"], m, np.abs(inputs["m"]) + clipped, 6)
    agree("adam_step: v", given["v"], v, np.abs(inputs["v"]) + clipped**2, 8)
    # the quotient m / (√v + ε): the error of m, which may cancel, in units of the denominator
    b1, b2, t = inputs["beta1"], inputs["beta2"], inputs["step"]
    denominator = np.sqrt(v / (1 - b2**t)) + inputs["epsilon"]
    size = inputs["learning_rate"] / (1 - b1**t) * (np.abs(inputs["m"]) + clipped) / denominator
    relative_v = (np.abs(inputs["v"]) + clipped**2) / np.maximum(np.abs(v), np.finfo(np.float64).tiny)
    agree("adam_step: w", given["w"], w, np.abs(inputs["w"]) + size * (1 + relative_v), 16)
    if not np.array_equal(given["gradient"], inputs["gradient"]):
        raise LawBroken("adam_step: the gradient was written to")


LAWS: dict[str, tuple[Law, ...]] = {
    "squared_norm": (the_norm_is_the_sum_of_squares,),
    "adam_step": (a_step_is_the_printed_formula,),
}
