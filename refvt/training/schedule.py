"""Schedules: the learning rate (linear warm-up and a cosine, joined in one of two ways) and the ponder weight."""

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
    schedule: str = "product",
) -> float:
    """Return the learning rate of step 0, 1, … of a run.

    e is the time in epochs: whole epochs if ``per`` is "epoch" (as in the paper), fractions of them if it is "step".
    W is warmup_epochs and u the unit of time, an epoch or a step. With cosine(e) = ½ (1 + cos(π e / epochs)), the rate
    is base times this, by ``schedule``::

        "product"      cosine(e) · (warmup_start + (1 − warmup_start) · e / W)    for e < W, then cosine(e)
        "consecutive"  warmup_start + (1 − warmup_start) · min(1, e / (W − u))    for e < W, then cosine(e − W)

    "consecutive" is the schedule of the released configurations: the warm-up reaches the base rate in its last epoch,
    then the cosine begins with the length of the whole run, so that it does not reach zero. (In their framework W is a
    whole number, at least 2.)

    Sources: "product" is MMCV's linear warm-up, which multiplies the regular rate; "consecutive" is MMEngine's
    LinearLR, then its CosineAnnealingLR. The cosine is that of Loshchilov and Hutter 2017 (arXiv 1608.03983), without
    restarts.
    """
    e = step // steps_per_epoch if per == "epoch" else step / steps_per_epoch
    if schedule == "consecutive":
        if e < warmup_epochs:
            last = warmup_epochs - (1 if per == "epoch" else 1 / steps_per_epoch)
            return base * (warmup_start + (1 - warmup_start) * (min(1, e / last) if e else 0))
        return base * 0.5 * (1 + math.cos(math.pi * (e - warmup_epochs) / epochs))
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
