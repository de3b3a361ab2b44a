"""Named arrays that are views of one vector in memory.

A model has about a hundred small parameters. As views of one vector they can be updated in a few long passes and summed
over processes in one call, and still be read by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Self

from refvt import backends
from refvt.array import Array

__all__ = ["Vector"]


class Vector:
    """A vector [n] and the arrays by name that are C-contiguous views of it, in the order of ``shapes``.

    A write to either changes both. They are arrays of ``backend``: in main memory or on the GPU. ``places`` holds the
    slice of the vector that belongs to each name.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], dtype: str, backend: str = "jit") -> None:
        self.shapes, self.backend = dict(shapes), backend
        self.ops = backends.get(backend)
        self.vector: Array = self.ops.arrays.zeros(sum(math.prod(shape) for shape in shapes.values()), dtype)
        self.arrays: dict[str, Array] = {}
        self.places: dict[str, slice] = {}
        start = 0
        for name, shape in shapes.items():
            self.places[name] = slice(start, start + math.prod(shape))
            self.arrays[name] = self.vector[self.places[name]].reshape(shape)
            start = self.places[name].stop

    def set(self, values: Mapping[str, Array]) -> Self:
        """Copy arrays of the same names and shapes in. KeyError for a missing name, ValueError for another shape."""
        for name, array in self.arrays.items():
            if tuple(values[name].shape) != self.shapes[name]:
                raise ValueError(f"{name}: expected shape {self.shapes[name]}, got {tuple(values[name].shape)}")
            self.ops.arrays.write(array, values[name])
        return self

    def clear(self) -> None:
        """Set all numbers to 0."""
        self.ops.arrays.fill(self.vector, 0)

    def add(self, values: Mapping[str, Array], factor: float) -> None:
        """Add ``factor`` times arrays of the same names and shapes, which must be arrays of the same backend."""
        for name, array in self.arrays.items():
            self.ops.arrays.add_scaled(array, values[name], factor)

    def numpy(self) -> Array:
        """Return the vector in main memory: itself if it is there, else a copy."""
        array: Array = self.ops.arrays.to_numpy(self.vector)
        return array
