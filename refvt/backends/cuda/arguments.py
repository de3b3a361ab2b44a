"""Types of kernel arguments, and how arguments are packed for a launch.

A kernel declares its arguments by annotations, ``def _scale(x: Matrix, gain: Vector, y: Matrix) -> None``; the
decorator ``kernel`` reads them. "Float" means the dtype that the kernel is compiled for, float32 or float64: one
declaration serves both. To a type checker all of these types are ``Any``.

numba passes an array as 5 + 2 · axes words of eight bytes (two that are always zero here, number of elements, bytes of
one element, address, shape, strides) and a number as one word.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, TypeAlias, get_args, get_type_hints

import numpy as np

__all__ = [
    "Array3",
    "Array5",
    "Flags",
    "IndexMatrix",
    "Indices",
    "Int",
    "Kind",
    "Matrix",
    "Real",
    "StridedVector",
    "Vector",
    "kinds_of",
    "layout_of_words",
]


class Kind(NamedTuple):
    """Kind of an argument: number of axes (0: a number), dtype (None: the kernel's float), may it be strided."""

    axes: int
    dtype: str | None = None
    strided: bool = False

    @property
    def is_float_array(self) -> bool:
        """Whether the argument's dtype decides what the kernel is compiled for."""
        return self.axes > 0 and self.dtype is None

    def numba_type(self, real: Any) -> Any:
        """The numba type of the argument in a kernel for floats of numba type ``real``."""
        from numba import types

        element = real if self.dtype is None else getattr(types, self.dtype)
        return types.Array(element, self.axes, "A" if self.strided else "C") if self.axes else element

    def accepted(self, dtype: Any) -> tuple[str | None, ...]:
        """The values of ``DeviceArray.kind`` that fit; None stands for a number."""
        if not self.axes:
            return (None,)
        letter = np.dtype(self.dtype or dtype).char
        layouts = "cs" if self.strided else "c"
        return tuple(f"{self.axes}{layout}{letter}" for layout in layouts)

    def words(self, dtype: Any) -> str:
        """The argument's words as a format of ``struct``."""
        if self.axes:
            return f"{5 + 2 * self.axes}q"
        return {"f": "f4x", "d": "d", "?": "?7x"}.get(np.dtype(self.dtype or dtype).char, "q")


Matrix: TypeAlias = Annotated[Any, Kind(2, strided=True)]  # float, two axes; rows may be those of a wider matrix
Vector: TypeAlias = Annotated[Any, Kind(1)]  # float, contiguous
StridedVector: TypeAlias = Annotated[Any, Kind(1, strided=True)]  # float, for example a column of a matrix
Array3: TypeAlias = Annotated[Any, Kind(3)]  # float, three axes, contiguous
Array5: TypeAlias = Annotated[Any, Kind(5)]  # float, five axes, contiguous
Real: TypeAlias = Annotated[Any, Kind(0)]  # a float number
IndexMatrix: TypeAlias = Annotated[Any, Kind(2, "int64")]
Indices: TypeAlias = Annotated[Any, Kind(1, "int64")]
Flags: TypeAlias = Annotated[Any, Kind(1, "bool")]
Int: TypeAlias = Annotated[Any, Kind(0, "int64")]


def kinds_of(function: Callable[..., Any]) -> tuple[Kind, ...]:
    """The kinds of a kernel's arguments, from its annotations; TypeError if one is not from this file."""
    hints = get_type_hints(function, include_extras=True)
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    kinds = []
    for name in names:
        found = [extra for extra in get_args(hints.get(name)) if isinstance(extra, Kind)]
        if not found:
            raise TypeError(
                f"kernel {function.__name__}: {name}: expected a type of arguments.py, got {hints.get(name)}"
            )
        kinds.append(found[0])
    return tuple(kinds)


def layout_of_words(kinds: tuple[Kind, ...], dtype: Any) -> struct.Struct:
    """How the arguments of a kernel for floats of ``dtype`` lie in memory."""
    return struct.Struct("<" + "".join(kind.words(dtype) for kind in kinds))
