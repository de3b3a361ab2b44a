"""The type of every array in refvt: the one module that all others may import."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

__all__ = ["Array"]

Array = NDArray[Any]
"""An array of any shape and dtype: a NumPy array, or what the backend computes with in its place."""
