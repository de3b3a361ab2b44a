"""Exercises of the notebook 10: one token's loop, and the threads of a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from refvt import backends
from refvt.notebooks.answers import RIGHT, Exercise, compare

__all__ = ["MACHINES"]


def _check_one_token(answer: Any) -> str:
    """answer: a function one_token(states, k, scale, center, limit, y, ponder, halting_layer) that fills row k."""
    rng = np.random.default_rng(10)
    reference = backends.get("reference").halt_tokens
    for L, N, D in ((3, 5, 4), (1, 2, 3), (6, 7, 2)):
        states = rng.normal(0.8, 0.4, (L, N, D))
        expected, _ = reference.forward(states, 10.0, 10.0, 0.01)
        found = np.full((N, D), np.nan), np.full(N, np.nan), np.full(N, -1)
        for k in rng.permutation(N):
            answer(states, int(k), 10.0, 10.0, 0.99, *found)
        for name, got, right in zip(("y", "ponder", "halting_layer"), found, expected, strict=True):
            if sentence := compare(name, got, right):
                return sentence
    return RIGHT


def _check_threads(answer: Any) -> str:
    """answer: a function launch(N, threads) that returns (blocks, idle threads)."""
    for N, threads in ((473, 128), (128, 128), (1, 32), (1569, 256), (129, 128)):
        blocks = (N + threads - 1) // threads
        expected = np.array([blocks, blocks * threads - N])
        if sentence := compare(f"launch({N}, {threads})", answer(N, threads), expected):
            return sentence
    return RIGHT


MACHINES: dict[str, Exercise] = {
    "one token": Exercise(
        "Write one_token(states, k, scale, center, limit, y, ponder, halting_layer), which fills row k of the results.",
        """def one_token(states, k, scale, center, limit, y, ponder, halting_layer):
    L, used = len(states), 0.0
    y[k] = 0
    for layer in range(1, L + 1):
        h = 1.0 if layer == L else 1 / (1 + np.exp(-(scale * states[layer - 1, k, 0] - center)))
        stops = used + h > limit
        weight = 1 - used if stops else h
        y[k] += weight * states[layer - 1, k]
        if stops:
            ponder[k], halting_layer[k] = layer + weight, layer
            return
        used += h""",
        _check_one_token,
    ),
    "blocks of threads": Exercise(
        "Write launch(N, threads), which returns the number of blocks for N tokens, and how many threads idle.",
        """def launch(N, threads):
    blocks = -(-N // threads)  # N / threads, rounded up
    return blocks, blocks * threads - N""",
        _check_threads,
    ),
}
