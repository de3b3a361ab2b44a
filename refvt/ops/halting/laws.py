"""What must hold for any token halting."""

from __future__ import annotations

import numpy as np

from refvt.ops.laws import Computes, Inputs, Law, LawBroken, agree, backward, cotangents, forward

__all__ = ["LAWS"]


def a_halting_token_uses_all(op: Computes, inputs: Inputs) -> None:
    """For every token used + weight = used_next, exactly 1 if it halts; in the last layer all tokens halt."""
    results, _ = forward(op, inputs)
    used, halted = inputs["used"], results["halted"]
    total = results["used_next"]
    agree("halt: used + weight", used + results["weight"], total, np.abs(used) + np.abs(results["weight"]), 2)
    if (total[halted] != 1).any():
        raise LawBroken("halt: a token halted with used_next ≠ 1")
    if inputs["last"] and inputs.get("forced") is None and not halted.all():
        raise LawBroken("halt: a token survived the last layer")


def the_comparison_is_strict(op: Computes, inputs: Inputs) -> None:
    """Where nothing is forced, a token halts if and only if used + h > 1 − ε, as seen in the results."""
    if inputs.get("forced") is not None or inputs["last"]:
        return
    results, _ = forward(op, inputs)
    alive = ~results["halted"]
    limit = 1 - inputs["epsilon"]
    slack = 4 * np.finfo(results["weight"].dtype).eps
    if not (results["used_next"][alive] <= limit + slack).all():  # NaN fails too
        raise LawBroken("halt: a token with used + h above 1 − ε goes on")
    z = inputs["scale"] * inputs["logit"].astype(np.float64) - inputs["center"]
    h = np.where(z >= 0, 1, np.exp(-np.abs(z))) / (1 + np.exp(-np.abs(z)))
    rounding = slack * (1 + np.abs(inputs["scale"] * inputs["logit"]) + abs(inputs["center"]))
    if (inputs["used"] + h < limit - rounding)[results["halted"]].any():
        raise LawBroken("halt: a token with used + h below 1 − ε halted")


def no_gradient_through_the_comparison(op: Computes, inputs: Inputs) -> None:
    """The weight of a halting token is 1 − used: its score gets no gradient, ``used`` gets −dweight."""
    results, cache = forward(op, inputs)
    u = cotangents(op, results, seed=19)
    gradients = backward(op, u, cache)
    halted = results["halted"]
    if gradients["logit"][halted].any():
        raise LawBroken("halt: the score of a halting token got a gradient")
    if not np.array_equal(gradients["used"][halted], -u["weight"][halted]):
        raise LawBroken("halt: du of a halting token is not −dweight")


def accumulation_is_bilinear(op: Computes, inputs: Inputs) -> None:
    """Weight 0 leaves y unchanged; a doubled weight adds twice as much."""
    y, x, weight = inputs["y"], inputs["x"], inputs["weight"]
    if not np.array_equal(forward(op, {**inputs, "weight": np.zeros_like(weight)})[0]["y_next"], y):
        raise LawBroken("accumulate: weight 0 changed y")
    twice = forward(op, {**inputs, "y": np.zeros_like(y), "weight": 2 * weight})[0]["y_next"]
    agree("accumulate: twice the weight", twice, 2 * weight[:, None] * x, np.abs(2 * weight[:, None] * x), 2)


def weights_are_a_distribution(op: Computes, inputs: Inputs) -> None:
    """Weights sum to one: equal states give that state as the output. And 2 ≤ ρ ≤ L + 1, unless forced."""
    states = inputs["states"]
    L, N, D = states.shape
    same = np.ones_like(states)
    same[:, :, 0] = states[:, :, 0]  # the logits stay as they are
    results, _ = forward(op, {**inputs, "states": same})
    agree("halt_tokens: the weights' sum", results["y"][:, 1:], np.ones((N, D - 1)), 2 * L, L)
    ponder, layer = results["ponder"], results["halting_layer"]
    if inputs.get("forced") is None:
        slack = 4 * L * np.finfo(states.dtype).eps
        if not ((ponder >= 2 - slack) & (ponder <= L + 1 + slack)).all():  # NaN fails too
            raise LawBroken(f"halt_tokens: ponder outside [2, L + 1]: {ponder.min()} … {ponder.max()}")
    if (layer < 1).any() or (layer > L).any():
        raise LawBroken("halt_tokens: a halting layer outside 1 … L")


def nothing_after_halting_matters(op: Computes, inputs: Inputs, poison: float = np.nan) -> None:
    """States after N_k may be anything, even NaN: no bit of y or ρ changes, and they get no gradient."""
    results, cache = forward(op, inputs)
    gradient = backward(op, cotangents(op, results, seed=20), cache)["states"]
    later = np.arange(1, len(inputs["states"]) + 1)[:, None] > results["halting_layer"]  # [L, N]
    poisoned = inputs["states"].copy()
    poisoned[later] = poison
    again, _ = forward(op, {**inputs, "states": poisoned})
    if any(not np.array_equal(results[name], again[name]) for name in results):
        raise LawBroken("halt_tokens: a state after halting changed the result")
    if gradient[later].any():
        raise LawBroken("halt_tokens: a state after halting got a gradient")


def closed_form_gradient(op: Computes, inputs: Inputs) -> None:
    """The gradient is h g_y for l < N_k, on channel 0 plus γ h (1 − h) (g_y · (x^l − x^N_k) − g_ρ); r g_y at N_k."""
    states = inputs["states"]
    results, cache = forward(op, inputs)
    u = cotangents(op, results, seed=21)
    gradient = backward(op, u, cache)["states"]
    L, N, D = states.shape
    layer, g_y, g_rho = results["halting_layer"], u["y"].astype(np.float64), u["ponder"]
    x = states.astype(np.float64)
    z = inputs["scale"] * x[:, :, 0] - inputs["center"]
    h = np.where(z >= 0, 1, np.exp(-np.abs(z))) / (1 + np.exp(-np.abs(z)))
    before = np.arange(1, L + 1)[:, None] < layer  # [L, N]
    at = np.arange(1, L + 1)[:, None] == layer
    remainder = 1 - (h * before).sum(axis=0)
    final = x[layer - 1, np.arange(N)]  # x^N_k [N, D]
    expected = (h * before + remainder * at)[:, :, None] * g_y
    push = ((x - final) * g_y).sum(axis=2) - g_rho  # [L, N]
    expected[:, :, 0] += np.where(before, inputs["scale"] * h * (1 - h) * push, 0)
    largest = (np.abs(x).max() * 2 * np.abs(g_y).sum(axis=1) + np.abs(g_rho)) * (1 + inputs["scale"])  # [N]
    # the score is recomputed here: its own error is eps times its argument
    blown = 4 + np.abs(inputs["scale"] * x[:, :, 0]).max() + abs(inputs["center"])
    agree("halt_tokens: closed form", gradient, expected, (largest * blown)[None, :, None], L + D)


LAWS: dict[str, tuple[Law, ...]] = {
    "halt": (a_halting_token_uses_all, the_comparison_is_strict, no_gradient_through_the_comparison),
    "accumulate": (accumulation_is_bilinear,),
    "halt_tokens": (weights_are_a_distribution, nothing_after_halting_matters, closed_form_gradient),
}
