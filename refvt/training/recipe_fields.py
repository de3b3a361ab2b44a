"""Which values the fields of a recipe may have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from refvt.checks import brief, is_number
from refvt.training.optimiser import OPTIMISERS

__all__ = ["DATA", "check_fields"]

DATA = ("digits", "videos")

WHOLE = {"epochs": 1, "batch": 1, "micro_batch": 1, "seed": 0}  # field: smallest value
NUMBERS = {  # field: (smallest, largest) value
    "learning_rate": (0.0, math.inf),
    "adam_epsilon": (0.0, math.inf),
    "weight_decay": (0.0, math.inf),
    "clip_epsilon": (0.0, math.inf),
    "warmup_epochs": (0.0, math.inf),
    "warmup_start": (0.0, 1.0),
    "ponder_weight": (0.0, math.inf),
    "ponder_warmup_epochs": (0.0, math.inf),
    "motion_weight": (0.0, math.inf),
    "label_smoothing": (0.0, 1.0),
    "drop_path": (0.0, 1.0),
    "halting_start": (-math.inf, math.inf),
    "changing_ponder": (-math.inf, math.inf),
    "change_threshold": (0.0, math.inf),
}
SWITCHES = ("decay_norms_and_biases", "decay_embeddings", "divide_labels", "static_twins")
CHOICES = {
    "data": DATA,
    "init": ("paper", "scratch"),
    "optimiser": OPTIMISERS,
    "lr_schedule": ("product", "consecutive"),
    "lr_per": ("epoch", "step"),
    "twins_from": ("clip", "video"),
}


def check_fields(values: Mapping[str, Any]) -> None:
    """Check the fields of a recipe, all but config and backbone; TypeError or ValueError that names a wrong one."""

    def check(ok: bool, name: str, expected: str, error: type[Exception] = ValueError) -> None:
        if not ok:
            raise error(f"{name}: expected {expected}, got {brief(values[name])}")

    check(isinstance(values["data_settings"], dict), "data_settings", "an object of settings by name", TypeError)
    for name, choices in CHOICES.items():
        check(values[name] in choices, name, f"one of {', '.join(choices)}")
    for name, lowest in WHOLE.items():
        check(isinstance(values[name], int) and not isinstance(values[name], bool), name, "a whole number", TypeError)
        check(values[name] >= lowest, name, f"at least {lowest}")
    for name, (low, high) in NUMBERS.items():
        check(is_number(values[name]), name, "a finite number", TypeError)
        check(low <= values[name] <= high, name, f"a number from {low:g} to {high:g}")
    for name in SWITCHES:
        check(isinstance(values[name], bool), name, "true or false", TypeError)
    betas = values["betas"]
    check(isinstance(betas, tuple | list) and len(betas) == 2, "betas", "two numbers", TypeError)
    check(all(is_number(b) and 0 <= b < 1 for b in betas), "betas", "two numbers from 0 to below 1")
    if values["max_grad_norm"] is not None:
        check(is_number(values["max_grad_norm"]), "max_grad_norm", "a finite number or null", TypeError)
        check(values["max_grad_norm"] > 0, "max_grad_norm", "a number above 0")
    for name in ("drop_path", "label_smoothing"):
        check(values[name] < 1, name, "a number below 1")
    check(values["batch"] % values["micro_batch"] == 0, "micro_batch", f"a divisor of batch {values['batch']}")
    check(values["warmup_epochs"] <= values["epochs"], "warmup_epochs", f"at most the {values['epochs']} epochs")
