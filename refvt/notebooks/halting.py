"""Exercises of the notebooks 04 and 05: one token's life, and the gradient through the remainder."""

from __future__ import annotations

from typing import Any

import numpy as np

from refvt import backends
from refvt.array import Array
from refvt.notebooks.answers import RIGHT, Exercise, compare, first
from refvt.notebooks.example import worked_example

__all__ = ["HALTING"]


def _check_halting_layer(answer: Any) -> str:
    """answer: the halting layers of the five tokens of the worked example."""
    example = worked_example()
    (_, _, layers), _ = backends.get("reference").halt_tokens.forward(*example[:4])
    sentence = compare("the halting layers", answer, layers)
    if sentence is None or np.shape(answer) != layers.shape or np.asarray(answer).dtype.kind not in "iuf":
        return first(sentence)
    wrong = int(np.count_nonzero(np.asarray(answer) != layers))  # not which: the answer is a prediction
    return f"Not yet: {wrong} of {len(layers)} differ."


def _check_halt_tokens(answer: Any) -> str:
    """answer: a function halt_tokens(states, scale, center, epsilon) -> (y, ponder, halting_layer)."""
    rng = np.random.default_rng(3)
    reference = backends.get("reference").halt_tokens
    for center, L in ((10.0, 3), (5.0, 6), (0.0, 1)):
        states = rng.normal(0.6, 0.4, (L, 7, 4))
        expected, _ = reference.forward(states, 10.0, center, 0.01)
        found = answer(states.copy(), 10.0, center, 0.01)
        if not isinstance(found, tuple) or len(found) != 3:
            return "Not yet: expected three results, y, ponder and halting_layer."
        names = ("y", "ponder", "halting_layer")
        for name, got, right in zip(names, found, expected, strict=True):
            if sentence := compare(name, got, right):
                return sentence
    return RIGHT


def _check_logit_gradient(answer: Any) -> str:
    """answer: a function of (states, scale, center, epsilon, dy, dponder) that returns dL/dx[0], [L, N]."""
    rng = np.random.default_rng(5)
    reference = backends.get("reference").halt_tokens
    for L in (3, 5):
        states = rng.normal(0.7, 0.4, (L, 6, 4))
        dy, dponder = rng.standard_normal((6, 4)), rng.standard_normal(6)
        (_, _, layers), cache = reference.forward(states, 10.0, 10.0, 0.01)
        full = reference.backward(dy, dponder, cache)
        # without what reaches channel 0 as a term of y
        weights = _weights(states, layers)
        expected = full[:, :, 0] - weights * dy[:, 0]
        if sentence := compare("the gradient", answer(states.copy(), 10.0, 10.0, 0.01, dy, dponder), expected):
            return sentence
    return RIGHT


def _weights(states: Array, layers: Array) -> Array:
    """The weight of every layer in every token's output [L, N], zero after it has halted."""
    L, N, _ = states.shape
    score = 1 / (1 + np.exp(-(10.0 * states[:, :, 0] - 10.0)))  # [L, N]
    before = np.arange(1, L + 1)[:, None] < layers
    weights = np.where(before, score, 0.0)
    weights[layers - 1, np.arange(N)] = 1 - weights.sum(axis=0)
    return weights


HALTING: dict[str, Exercise] = {
    "halting layers": Exercise(
        "In which layer does each token of the worked example halt?",
        "answer = [3, 1, 2, 3, 3]",
        _check_halting_layer,
    ),
    "halt_tokens": Exercise(
        "Write halt_tokens(states, scale, center, epsilon), which returns y, ponder and halting_layer.",
        """def halt_tokens(states, scale, center, epsilon):
    L, N, D = states.shape
    y, ponder, halting_layer = np.zeros((N, D)), np.zeros(N), np.zeros(N, int)
    for k in range(N):
        used = 0.0
        for layer in range(1, L + 1):
            x = states[layer - 1, k]
            h = 1.0 if layer == L else 1 / (1 + np.exp(-(scale * x[0] - center)))
            if used + h > 1 - epsilon:
                remainder = 1 - used
                y[k] += remainder * x
                ponder[k], halting_layer[k] = layer + remainder, layer
                break
            y[k] += h * x
            used += h
    return y, ponder, halting_layer""",
        _check_halt_tokens,
    ),
    "gradient of the logit": Exercise(
        "Write logit_gradient(states, scale, center, epsilon, dy, dponder): the gradient that reaches each halting "
        "logit through the score, [L, N].",
        """def logit_gradient(states, scale, center, epsilon, dy, dponder):
    L, N, _ = states.shape
    gradient = np.zeros((L, N))
    for k in range(N):
        h = 1 / (1 + np.exp(-(scale * states[:, k, 0] - center)))
        h[-1] = 1
        sums = np.cumsum(h)
        last = int(np.argmax(sums > 1 - epsilon))  # N_k − 1
        for layer in range(last):
            better = dy[k] @ (states[layer, k] - states[last, k])
            gradient[layer, k] = scale * h[layer] * (1 - h[layer]) * (better - dponder[k])
    return gradient""",
        _check_logit_gradient,
    ),
}
