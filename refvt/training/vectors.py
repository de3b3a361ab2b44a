"""Many small arrays by name that are one vector in memory.

A model's hundred parameters are small. As views of one vector they can be updated in a few long passes, added up
between processes in one call, and still be read by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Self

import numpy as np

from refvt.ops import Array

__all__ = ["Vector"]


class Vector:
    """``arrays`` by name, C-contiguous views of ``vector`` [n], one after another in the order of ``shapes``.

    What is written into either is seen in both.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> None:
        self.vector: Array = np.zeros(sum(math.prod(shape) for shape in shapes.values()), dtype)
        self.arrays: dict[str, Array] = {}
        self.places: dict[str, slice] = {}
        start = 0
        for name, shape in shapes.items():
            self.places[name] = slice(start, start + math.prod(shape))
            self.arrays[name] = self.vector[self.places[name]].reshape(shape)
            start = self.places[name].stop

    def set(self, values: Mapping[str, Array]) -> Self:
        """Copy arrays of the same names and shapes in. KeyError for a missing name."""
        for name, array in self.arrays.items():
            array[...] = values[name]
        return self
