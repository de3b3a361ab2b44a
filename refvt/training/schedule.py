"""Schedules: the learning rate (linear warm-up, half a cosine to zero) and the ponder weight."""

from __future__ import annotations

import math

__all__ = ["learning_rate_at", "ponder_weight_at"]


def learning_rate_at(
    step: int,
    steps_per_epoch: int,
    epochs: int,
    base: float,
    warmup_epochs: float = 0.0,
    warmup_start: float = 0.1,
    per: str = "step",
) -> float:
    """Return the learning rate of step 0, 1, … of a run.

    e is the time in epochs: whole epochs if ``per`` is "epoch" (as in the paper), fractions of them if it is "step".

        cosine(e)        = base · ½ (1 + cos(π e / epochs))
        learning_rate(e) = cosine(e) · (warmup_start + (1 − warmup_start) · e / warmup_epochs)   for e < warmup_epochs
                           cosine(e)                                                             afterwards

    Source: the warm-up that multiplies the regular rate is that of the released configurations' framework
    (MMCV's linear warm-up); the cosine is that of Loshchilov and Hutter 2017 (arXiv 1608.03983), without restarts.
    """
    e = step // steps_per_epoch if per == "epoch" else step / steps_per_epoch
    cosine = base * 0.5 * (1 + math.cos(math.pi * e / epochs))
    if e < warmup_epochs:
        cosine *= warmup_start + (1 - warmup_start) * e / warmup_epochs
    return cosine


def ponder_weight_at(step: int, steps_per_epoch: int, weight: float, warmup_epochs: float) -> float:
    """Return the weight of the ponder loss at a step: weight · min(1, e / warmup_epochs), with e the time in epochs.

    It is the whole weight from the first step if warmup_epochs is 0.
    """
    e = step / steps_per_epoch
    return weight if e >= warmup_epochs else weight * e / warmup_epochs
