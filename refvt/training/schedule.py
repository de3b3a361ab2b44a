"""What changes from step to step: the learning rate (linear warm-up, half a cosine to zero) and the ponder weight."""

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
    """The rate of step 0, 1, … of a run.

    With e the time in epochs, whole ones where ``per`` is "epoch" (the paper's) and to the step where it is "step":

        cosine(e) = base · ½ (1 + cos(π e / epochs))
        rate(e)   = cosine(e) · (warmup_start + (1 − warmup_start) · e / warmup_epochs)   while e < warmup_epochs

    Source: the warm-up that multiplies the regular rate is that of the released configurations' framework
    (MMCV's linear warm-up); the cosine that of Loshchilov and Hutter 2017 (arXiv 1608.03983), without restarts.
    """
    e = step // steps_per_epoch if per == "epoch" else step / steps_per_epoch
    cosine = base * 0.5 * (1 + math.cos(math.pi * e / epochs))
    if e < warmup_epochs:
        cosine *= warmup_start + (1 - warmup_start) * e / warmup_epochs
    return cosine


def ponder_weight_at(step: int, steps_per_epoch: int, weight: float, warmup_epochs: float) -> float:
    """weight · min(1, e / warmup_epochs), e the time in epochs; the whole weight from the start where that is 0."""
    e = step / steps_per_epoch
    return weight if e >= warmup_epochs else weight * e / warmup_epochs
