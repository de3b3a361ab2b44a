"""The error that a candidate is allowed, derived from the error of PyTorch itself.

For every tensor of every case the manifest holds the relative L2 error of PyTorch's own float32 run against the
float64 truth. It is the largest of eight runs that sum in different orders (for models, these runs also round every
named tensor once more at random). A candidate rounds in yet another way; it is allowed ``MULTIPLE`` = 8 times this
error. Why 8: in the worst case all of a tensor's error comes from one early rounding. The errors of the candidate and
of the eight runs are then |z|, |z1| … |z8|, drawn from one normal distribution, and the probability that
|z| > 8 · max |zi| is E[P(|zi| < |z|/8)^8] < E[(|z|/10)^8] = 105 · 10⁻⁸: one false alarm in a million tensors.
The error of a computation is proportional to the unit of rounding, so the budget of a float64 candidate is that of a
float32 candidate times eps64/eps32.

The floor covers tensors of few operations, where PyTorch may round nothing at all: ``FLOOR`` = 4 units of rounding on
Σ|terms|, one for each of product, sum, gain and result. Σ|terms| is ``condition`` times the norm of the result;
``condition`` is at least 1, and 1 is taken if it is unknown.
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
    """Error of one tensor (relative L2, or absolute if the truth is zero), and the error that is allowed."""

    name: str
    error: float
    allowed: float

    @property
    def share(self) -> float:
        """The error as a share of the allowed error: above 1 the comparison fails, NaN counts as infinite."""
        return self.error / self.allowed if self.error == self.error else float("inf")

    @property
    def holds(self) -> bool:
        """True if the error is within the budget."""
        return self.share <= 1


def compare(name: str, actual: Any, truth: Array, entry: dict[str, Any], eps: float) -> Comparison:
    """Compare one tensor with its golden value.

    entry: the tensor's entry in the manifest; eps: the unit of rounding of the candidate's dtype. A wrong shape counts
    as an infinite error. Integers and booleans must be equal: their error is the number of differing elements.
    """
    unit = float(np.finfo(np.float32).eps)
    torch_error = float(entry.get("float32_error") or 0.0) * (eps / unit)
    allowed = MULTIPLE * torch_error + FLOOR * eps * float(entry.get("condition") or 1.0)
    actual = np.asarray(actual)
    if actual.shape != truth.shape:
        return Comparison(f"{name} (shape {list(actual.shape)}, expected {list(truth.shape)})", float("inf"), allowed)
    if truth.dtype.kind in "biu":  # decisions and indices must be exact
        wrong = float(np.not_equal(actual, truth).sum())
        return Comparison(name, wrong, 0.5)
    difference = float(np.linalg.norm(actual.astype(np.float64) - truth))
    norm = float(np.linalg.norm(truth))
    return Comparison(name, difference / norm if norm > 0 else difference, allowed)
