"""Exercises of the notebook 08: what a model costs, what halting saves, and the loss."""

from __future__ import annotations

from typing import Any

import numpy as np

from refvt import backends
from refvt.model import flops
from refvt.model.config import HaltingVTConfig
from refvt.notebooks.answers import RIGHT, Exercise, compare

__all__ = ["TRAINING"]

PONDER_WEIGHT, MOTION_WEIGHT = 5e-4, 1.0


def _check_cost(answer: Any) -> str:
    """answer: a function joint_cost(n, D) that returns the multiply-adds of a joint block with n living tokens."""
    for D, heads in ((384, 6), (64, 4), (12, 3)):
        config = HaltingVTConfig(width=D, num_heads=heads)
        for n in (1, 49, 1569):
            expected = flops.joint_multiply_adds(config, np.array(n))
            if sentence := compare(f"joint_cost({n}, {D})", answer(n, D), expected):
                return sentence
    return RIGHT


def _check_saved(answer: Any) -> str:
    """answer: a function saved(tokens_per_layer, D): the share of the joint blocks that halting saves."""
    for D, heads, tokens in ((64, 4, [97, 61, 44, 43]), (64, 4, [65, 65, 65, 65]), (384, 6, [473, 200, 90, 3])):
        config = HaltingVTConfig(width=D, num_heads=heads)
        spent = flops.joint_multiply_adds(config, np.array(tokens)).sum()
        full = len(tokens) * flops.joint_multiply_adds(config, np.array(tokens[0]))
        if sentence := compare(f"saved({tokens}, {D})", answer(list(tokens), D), np.asarray(1 - spent / full)):
            return sentence
    return RIGHT


def _check_loss(answer: Any) -> str:
    """answer: a function total_loss(logits, labels, ponder, motion_logits, moving) that returns the whole loss."""
    rng = np.random.default_rng(8)
    table = backends.get("reference")
    for B, N, K in ((2, 5, 3), (4, 7, 8)):
        logits, motion_logits = 3 * rng.standard_normal((B, K)), 3 * rng.standard_normal((B, 2))
        labels, moving = rng.integers(0, K, B), np.arange(B) % 2
        ponder = rng.uniform(2, 4, (B, N))
        recognition, _ = table.cross_entropy.forward(logits, np.eye(K)[labels])
        motion, _ = table.motion_loss.forward(motion_logits, moving)
        expected = recognition + PONDER_WEIGHT * ponder.mean() + MOTION_WEIGHT * motion
        got = answer(logits.copy(), labels.copy(), ponder.copy(), motion_logits.copy(), moving.copy())
        if sentence := compare("the loss", got, np.asarray(expected)):
            return sentence
    return RIGHT


TRAINING: dict[str, Exercise] = {
    "cost of a joint block": Exercise(
        "Write joint_cost(n, D): the multiply-adds of one joint block with n living tokens of width D, F = 4 D.",
        """def joint_cost(n, D):
    linear = n * (3 * D * D + D * D + 2 * D * 4 * D)  # qkv, proj, the two layers of the MLP
    attention = 2 * n * n * D  # q kᵀ, and weights times v
    return linear + attention""",
        _check_cost,
    ),
    "saved by halting": Exercise(
        "Write saved(tokens_per_layer, D): the share of the joint blocks' multiply-adds that halting saves.",
        """def saved(tokens_per_layer, D):
    def cost(n):
        return 12 * n * D * D + 2 * n * n * D

    full = len(tokens_per_layer) * cost(tokens_per_layer[0])
    return 1 - sum(cost(n) for n in tokens_per_layer) / full""",
        _check_saved,
    ),
    "the whole loss": Exercise(
        "Write total_loss(logits, labels, ponder, motion_logits, moving) with the weights 5e-4 and 1.",
        """def total_loss(logits, labels, ponder, motion_logits, moving):
    def cross_entropy(z, right):
        z = z - z.max(axis=1, keepdims=True)
        log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
        return -log_p[np.arange(len(z)), right].mean()

    return cross_entropy(logits, labels) + 5e-4 * ponder.mean() + 1.0 * cross_entropy(motion_logits, moving)""",
        _check_loss,
    ),
}
