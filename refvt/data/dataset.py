"""What training and evaluation ask of a set of labelled clips."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from refvt.ops import Array

__all__ = ["Dataset"]


class Dataset(Protocol):
    """Labelled clips. index 0 … len − 1; rng None asks for the evaluation form (centre clip, no augmentation)."""

    num_classes: int
    multi_label: bool

    def __len__(self) -> int: ...

    def clip(self, index: int, rng: np.random.Generator | None = None) -> Array:
        """float32 [C, T, H, W], normalised."""
        ...

    def target(self, index: int) -> int | Array:
        """A class number, or float32 [K] for multi-label."""
        ...
