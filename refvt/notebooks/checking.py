"""Exercises of the notebook 09: predict what differs first, find a tie, write a law."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refvt import backends
from refvt.array import Array
from refvt.notebooks.answers import RIGHT, Exercise

__all__ = ["CHECKING", "halt_tokens_with"]

Halting = Callable[[Array, float, float, float], tuple[Array, Array, Array]]

MISTAKES = ("remainder", "tie", "ponder")
"""Mistakes that ``halt_tokens_with`` can make."""


def halt_tokens_with(mistake: str | None = None) -> Halting:
    """A plain ``halt_tokens(states, scale, center, epsilon)`` with one mistake, or with none.

    "remainder": a token that halts keeps its own score as weight. "tie": it halts where the sum is 1 − ε or more.
    "ponder": ρ counts the layers from 0. Returns y [N, D], ponder [N] and halting_layer [N]. ValueError for another
    mistake.
    """
    if mistake not in (None, *MISTAKES):
        raise ValueError(f"mistake: expected None or one of {', '.join(MISTAKES)}, got {mistake!r}")

    def halt_tokens(states: Array, scale: float, center: float, epsilon: float) -> tuple[Array, Array, Array]:
        L, N, D = states.shape
        y, ponder, halting_layer = np.zeros((N, D)), np.zeros(N), np.zeros(N, np.int64)
        limit = 1 - epsilon
        for k in range(N):
            used = 0.0
            for layer in range(1, L + 1):
                x = states[layer - 1, k].astype(np.float64)
                h = 1.0 if layer == L else 1 / (1 + np.exp(-(scale * x[0] - center)))
                if used + h > limit or (mistake == "tie" and used + h == limit):
                    remainder = h if mistake == "remainder" else 1 - used
                    y[k] += remainder * x
                    ponder[k], halting_layer[k] = layer + remainder - (mistake == "ponder"), layer
                    break
                y[k] += h * x
                used += h
        return y, ponder, halting_layer

    return halt_tokens


def _check_first_tensors(answer: Any) -> str:
    """answer: for each of three mistakes the first tensor that differs."""
    expected = {"no remainder": "y", "ponder = N − 1 + r": "ponder", "remainder detached": "d(states)"}
    if not isinstance(answer, dict) or set(answer) != set(expected):
        return f"Not yet: expected a dict with the keys {', '.join(expected)}."
    wrong = [name for name, tensor in expected.items() if answer[name] != tensor]
    return RIGHT if not wrong else f"Not yet: {len(wrong)} of 3 are wrong, the first is {wrong[0]!r}."


def _check_tie(answer: Any) -> str:
    """answer: (states, scale, center, epsilon) for which > and ≥ halt in different layers."""
    if not isinstance(answer, tuple) or len(answer) != 4:
        return "Not yet: expected (states, scale, center, epsilon)."
    states, scale, center, epsilon = answer
    states = np.asarray(states, dtype=np.float64)
    (_, _, strict), _ = backends.get("reference").halt_tokens.forward(states, scale, center, epsilon)
    _, _, loose = halt_tokens_with("tie")(states, scale, center, epsilon)
    if np.array_equal(strict, loose):
        return f"Not yet: with > and with ≥ the tokens halt in the same layers, {strict.tolist()}."
    return RIGHT


def _check_law(answer: Any) -> str:
    """answer: a function weights_sum_to_one(halt_tokens, states, scale, center, epsilon) that returns True or False."""
    rng = np.random.default_rng(9)
    for L, N in ((1, 3), (3, 5), (6, 8)):
        arguments = rng.normal(0.8, 0.4, (L, N, 4)), 10.0, 10.0, 0.01
        if not bool(answer(halt_tokens_with(), *arguments)):
            return f"Not yet: a right implementation is refused, with {N} tokens and {L} layers."
    states = np.full((3, 2, 4), 0.95)
    if bool(answer(halt_tokens_with("remainder"), states, 10.0, 10.0, 0.01)):
        return "Not yet: an implementation without the remainder is accepted."
    return RIGHT


CHECKING: dict[str, Exercise] = {
    "first tensors": Exercise(
        "For each of three mistakes: which of y, ponder, halting_layer, d(states) differs first?",
        'answer = {"no remainder": "y", "ponder = N − 1 + r": "ponder", "remainder detached": "d(states)"}',
        _check_first_tensors,
    ),
    "tie": Exercise(
        "Find (states, scale, center, epsilon) for which > and ≥ halt in different layers.",
        """states = np.ones((2, 1, 2))  # the score of layer 1 is σ(10 · 1 − 10) = 0.5, exactly
answer = states, 10.0, 10.0, 0.5  # the limit is 1 − 0.5 = 0.5, exactly""",
        _check_tie,
    ),
    "law of weights": Exercise(
        "Write weights_sum_to_one(halt_tokens, states, scale, center, epsilon), which returns True or False.",
        """def weights_sum_to_one(halt_tokens, states, scale, center, epsilon):
    same = np.ones_like(states)
    same[:, :, 0] = states[:, :, 0]  # the logits stay: the tokens halt where they did
    y, _, _ = halt_tokens(same, scale, center, epsilon)
    return bool(np.allclose(y[:, 1:], 1))  # a mean of ones""",
        _check_law,
    ),
}
