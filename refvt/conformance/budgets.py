"""How much a candidate may err, derived from how much PyTorch itself errs.

For every tensor of every case the manifest holds the relative L2 error of PyTorch's own float32 run against the
float64 truth, the largest of eight runs that add in different orders (and, for models, round every named tensor once
more at random). A candidate rounds in yet another way and may err ``MULTIPLE`` = 8 times that. Why 8: in the worst case
all of a tensor's error comes from one early rounding, so that candidate and runs err like |z|, |z1| … |z8| of one
normal distribution; the chance that |z| > 8 · max |zi| is E[P(|zi| < |z|/8)^8] < E[(|z|/10)^8] = 105 · 10⁻⁸, one false
alarm in a million tensors.
The error of one and the same computation scales with the unit of rounding, so the budget of a float64 candidate is the
float32 one times eps64/eps32.

The floor covers tensors of few operations, where PyTorch may round nothing at all: ``FLOOR`` = 4 units of rounding on
Σ|terms|, which is ``condition`` times the norm of the result (1, its smallest value, where it is not known): one for
each of product, sum, gain and result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from refvt.array import Array

__all__ = ["FLOOR", "MULTIPLE", "Comparison", "compare"]

MULTIPLE = 8.0  # of PyTorch's own error
FLOOR = 4.0  # units of rounding on Σ|terms|


@dataclass(frozen=True)
class Comparison:
    """One tensor against the truth: relative L2 error (absolute where the truth is zero) and what is allowed."""

    name: str
    error: float
    allowed: float

    @property
    def share(self) -> float:
        """The share of the budget that was used; above 1 it does not hold."""
        return self.error / self.allowed if self.error == self.error else float("inf")

    @property
    def holds(self) -> bool:
        return self.share <= 1


def compare(name: str, actual: Any, truth: Array, entry: dict[str, Any], eps: float) -> Comparison:
    """Compare one tensor with its golden value. entry: its line of the manifest; eps: the candidate's rounding unit."""
    unit = float(np.finfo(np.float32).eps)
    torch_error = float(entry.get("float32_error") or 0.0) * (eps / unit)
    allowed = MULTIPLE * torch_error + FLOOR * eps * float(entry.get("condition") or 1.0)
    actual = np.asarray(actual)
    if actual.shape != truth.shape:
        return Comparison(f"{name} (shape {list(actual.shape)}, expected {list(truth.shape)})", float("inf"), allowed)
    if truth.dtype.kind in "biu":  # decisions and indices are right or wrong
        wrong = float(np.not_equal(actual, truth).sum())
        return Comparison(name, wrong, 0.5)
    difference = float(np.linalg.norm(actual.astype(np.float64) - truth))
    norm = float(np.linalg.norm(truth))
    return Comparison(name, difference / norm if norm > 0 else difference, allowed)
