"""The error that a candidate is allowed, derived from the error of PyTorch itself.

For every tensor of every case the manifest holds the relative L2 error of PyTorch's own float32 run against the
float64 truth. It is the largest of eight runs that sum in different orders (for models, these runs also round every
named tensor once more at random). A candidate rounds in yet another way; it is allowed ``MULTIPLE`` = 8 times this
error. Why 8: in the worst case all of a tensor's error comes from one early rounding. The errors of the candidate and
of the eight runs are then |z|, |z1| … |z8|, drawn from one normal distribution, and the probability that
|z| > 8 · max |zi| is E[P(|zi| < |z|/8)^8] < E[(|z|/10)^8] = 105 · 10⁻⁸: one false alarm in a million tensors.
The error of a computation is proportional to the unit of rounding, so the budget of a float64 candidate is that of a
float32 candidate times eps64/eps32. For float16 and bfloat16 the manifest holds the errors of PyTorch's runs in these
dtypes, from arguments that were rounded too; the larger of the measured and the scaled error is taken.

The floor covers tensors of few operations, where PyTorch may round nothing at all: ``FLOOR`` = 4 units of rounding on
Σ|terms|, one for each of product, sum, gain and result. Σ|terms| is ``condition`` times the norm of the result;
``condition`` is at least 1, and 1 is taken if it is unknown.

One wrong element among a million changes the L2 norm by a thousandth of an element, which bfloat16 would hide. So every
element has a budget too. The manifest's *peak* is the largest error of one element in PyTorch's runs, relative to the
root mean square of the tensor. An element may err ``MULTIPLE`` times the peak: if all errors come from one early
rounding, the largest error of an element is proportional to |z| as the norm is, and the probability is the same; if
they come from many roundings, the largest of many errors varies less than one error does, so it is smaller still. The
floor of an element is ``FLOOR`` units of rounding on the root mean square and on the element itself, times
``condition``. Without a peak (files of an earlier format) one element may hold the whole error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["DTYPES", "FLOOR", "MULTIPLE", "Budget", "budget_of"]

MULTIPLE = 8.0  # of PyTorch's own error
FLOOR = 4.0  # units of rounding on Σ|terms|
DTYPES = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""The dtypes of candidates and their units of rounding (eps)."""


@dataclass(frozen=True)
class Budget:
    """The allowed error of a tensor: relative L2, and of one element as a multiple of the root mean square.

    element_floor: what one element may err in addition, relative to itself. With ``absolute`` both are absolute errors,
    for a truth that is zero up to rounding.
    """

    tensor: float
    element: float
    element_floor: float
    absolute: bool = False


def budget_of(entry: Mapping[str, Any], dtype: str, size: int) -> Budget:
    """The budget of a tensor of ``size`` elements, from its entry in the manifest; dtype: one of ``DTYPES``."""
    error, peak = _measured(entry, "float32", size)
    scale = DTYPES[dtype] / DTYPES["float32"]
    error, peak = error * scale, peak * scale
    if f"{dtype}_error" in entry and dtype != "float32":
        measured = _measured(entry, dtype, size)
        error, peak = max(error, measured[0]), max(peak, measured[1])
    floor = FLOOR * DTYPES[dtype] * float(entry.get("condition") or 1.0)
    return Budget(MULTIPLE * error + floor, MULTIPLE * peak + floor, floor, bool(entry.get("absolute")))


def _measured(entry: Mapping[str, Any], dtype: str, size: int) -> tuple[float, float]:
    """PyTorch's relative L2 error and peak in this dtype."""
    error = float(entry.get(f"{dtype}_error") or 0.0)
    spread = 1.0 if entry.get("absolute") else math.sqrt(max(size, 1))
    return error, float(entry.get(f"{dtype}_peak", error * spread))
