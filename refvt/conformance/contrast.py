"""What the cases that differ have in common, and those that agree have not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from refvt.conformance.golden import Case
from refvt.conformance.report import CaseReport

__all__ = ["contrast"]

Property = Callable[[Mapping[str, Any], Case], bool]

# what a case has (text after "has" or "have"), and how to tell from its configuration
PROPERTIES: dict[str, Property] = {
    "a Glimpser block": lambda c, case: c["glimpser_depth"] > 0,
    "two Glimpser blocks or more": lambda c, case: c["glimpser_depth"] > 1,
    "a block that selects patches": lambda c, case: any(rate < 1 for rate in c["keep_rates"]),
    "a Glimpser block after one that selects": lambda c, case: any(rate < 1 for rate in c["keep_rates"][:-1]),
    "a fused token": lambda c, case: bool(c["fuse_dropped"]) and any(rate < 1 for rate in c["keep_rates"]),
    "cls_skip=True": lambda c, case: bool(c["cls_skip"]),
    "halted_keys=masked": lambda c, case: c["halted_keys"] == "masked",
    "halted_keys=zero": lambda c, case: c["halted_keys"] == "zero",
    "several joint layers": lambda c, case: c["depth"] - c["glimpser_depth"] > 1,
    "several clips": lambda c, case: case.tensors["clips"]["shape"][0] > 1,
    "several frames": lambda c, case: c["num_frames"] > 1,
    "several heads": lambda c, case: c["num_heads"] > 1,
    "frames that are not square": lambda c, case: c["image_size"][0] != c["image_size"][1],
    "several colours": lambda c, case: c["channels"] > 1,
    "an epsilon other than 0.01": lambda c, case: c["epsilon"] != 0.01,
    "a halting scale other than 10": lambda c, case: c["halting_scale"] != 10,
    "soft labels": lambda c, case: len(case.tensors["labels"]["shape"]) > 1,
    "label smoothing": lambda c, case: case.settings.get("label_smoothing", 0) > 0,
    "DropPath": lambda c, case: case.settings.get("drop_path", 0) > 0,
}


def contrast(reports: Sequence[CaseReport], cases: Mapping[str, Case]) -> str:
    """What all models that differ have and no model that agrees has, in a sentence; an empty text if there is nothing.

    Two that differ are needed, and two that agree, or one that agrees beside five that differ: less says little.
    """
    models = [report for report in reports if report.kind == "model" and report.name in cases]
    differing = [cases[report.name] for report in models if report.status == "differs"]
    agreeing = [cases[report.name] for report in models if report.holds]
    if len(differing) < 2 or len(agreeing) < (1 if len(differing) >= 5 else 2):
        return ""
    found = []
    for text, holds in PROPERTIES.items():
        with_it = [holds(case.config or {}, case) for case in differing]
        without = [holds(case.config or {}, case) for case in agreeing]
        if all(with_it) and not any(without):
            found.append(text)
    if not found:
        return ""
    listed = ", ".join(found[:3])
    others = f"none of the {len(agreeing)} that agree has" if len(agreeing) > 1 else "the one that agrees has not"
    return f"all {len(differing)} models that differ have {listed}; {others}"
