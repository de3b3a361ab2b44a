"""How CUDA kernels are declared and launched.

A *kernel* is a function that every thread of a grid runs; threads come in blocks, and 32 neighbours in a block (a warp)
run in step. All operations follow four rules:

- one kernel for float32 and float64: numbers take the dtype of the arrays (a bare ``1.0`` would be a float64, and turn
  the arithmetic of a float32 kernel into double precision);
- an optional array that is absent is an array of no elements: kernels know no None;
- no atomic additions of floats: every sum is added in one order, so that results are the same in every run;
- results are fresh arrays; index arrays, gains and biases may come from the host and are uploaded (``upload.py``).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, overload

import numpy as np
from numba import cuda

from refvt.backends.cuda.arguments import Kind, kinds_of, layout_of_words
from refvt.backends.cuda.device_array import DeviceArray
from refvt.backends.cuda.driver import driver
from refvt.backends.cuda.memory import DriverError
from refvt.backends.cuda.sizes import LANES, THREADS, WARP

__all__ = ["KERNELS", "WATCHERS", "Kernel", "Launch", "device_function", "kernel"]


@dataclass
class Kernel:
    """A kernel, the kinds of its arguments, and the shape of its grid."""

    function: Callable[..., None]
    arguments: tuple[Kind, ...]
    name: str
    threads: int = THREADS  # of a block, at most: the registers of a multiprocessor must suffice for them
    repeatable: bool = True  # a second launch with the same arguments leaves the same results
    # the loaded kernel and the layout of its words: by dtype, and by the kinds of arguments it was called with
    _loaded: dict[Any, tuple[Any, struct.Struct]] = field(default_factory=dict)

    def ptx(self, dtype: Any, capability: tuple[int, int]) -> str:
        """The kernel in PTX, for floats of a dtype and GPUs of a compute capability; needs no GPU."""
        from numba import types

        real = getattr(types, np.dtype(dtype).name)
        signature = types.void(*(kind.numba_type(real) for kind in self.arguments))
        ptx, _ = cuda.compile_ptx(self.function, signature, cc=capability)
        return str(ptx)

    def layout(self, dtype: Any) -> struct.Struct:
        """How the arguments lie in memory, for floats of a dtype."""
        return layout_of_words(self.arguments, dtype)

    def blocks(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        *arguments: Any,
        multiply_adds: Callable[[], int] | None = None,
    ) -> None:
        """Launch a grid of blocks of the given shapes; an empty grid launches nothing.

        multiply_adds: counts the multiply-adds, for kernels that have more of them than the arrays have numbers.
        """
        if not all(grid):
            return
        words: list[Any] = []
        kinds: list[str | None] = []
        for argument in arguments:
            if type(argument) is DeviceArray:
                words += argument.words
                kinds.append(argument.kind)
            else:
                words.append(argument)
                kinds.append(None)
        found = self._loaded.get(tuple(kinds))
        if found is None:
            found = self._load(tuple(kinds))
        try:
            driver().launch(found[0], grid, block, found[1], words)
        except DriverError as error:
            raise DriverError(f"kernel {self.name}, {error}") from error
        if WATCHERS:
            again = partial(driver().launch, found[0], grid, block, found[1], words) if self.repeatable else None
            work = 0 if multiply_adds is None else multiply_adds()
            for watcher in WATCHERS:
                watcher(Launch(self.name, arguments, again, work))

    def _load(self, kinds: tuple[str | None, ...]) -> tuple[Any, struct.Struct]:
        """The kernel, loaded for arguments of these kinds; TypeError if it was not declared for them.

        Contiguous and strided matrices go to the same loaded kernel.
        """
        named = zip(self.arguments, kinds, strict=False)
        floats = [kind for declared, kind in named if declared.is_float_array]
        dtype = np.dtype((floats[0] or "?")[-1] if floats else np.int64)
        expected = [declared.accepted(dtype) for declared in self.arguments]
        if len(kinds) != len(expected) or any(kind not in those for kind, those in zip(kinds, expected, strict=True)):
            raise TypeError(f"kernel {self.name}: expected {[those[0] for those in expected]}, got {list(kinds)}")
        if dtype not in self._loaded:
            self._loaded[dtype] = driver().load(self, dtype), self.layout(dtype)
        found = self._loaded[kinds] = self._loaded[dtype]
        return found

    def each(self, count: int, *arguments: Any) -> None:
        """Launch one thread per item; the kernel reads its item from ``cuda.grid(1)``."""
        self.blocks((-(-count // THREADS),), (THREADS,), *arguments)

    def cells(self, rows: int, columns: int, *arguments: Any) -> None:
        """Launch one thread per element of a matrix, neighbours along a row; the kernel reads ``cell()``."""
        height = THREADS // LANES
        self.blocks((-(-rows // height), -(-columns // LANES)), (LANES, height), *arguments)

    def warps(self, rows: int, *arguments: Any) -> None:
        """Launch one warp per row; the kernel reads ``lane_and_row()``."""
        self.blocks((-(-rows // (THREADS // WARP)),), (THREADS,), *arguments)


class Launch(NamedTuple):
    """One launch of a kernel, as watchers see it; ``again`` repeats it."""

    name: str
    arguments: tuple[Any, ...]
    again: Callable[[], None] | None  # None: a second launch would give other results
    multiply_adds: int


WATCHERS: list[Callable[[Launch], None]] = []  # called at every launch
KERNELS: list[Kernel] = []  # every kernel of the modules imported so far, for the table of registers


@overload
def kernel(function: Callable[..., None]) -> Kernel: ...
@overload
def kernel(
    *, name: str | None = None, threads: int = THREADS, repeatable: bool = True
) -> Callable[[Callable[..., None]], Kernel]: ...
def kernel(
    function: Callable[..., None] | None = None,
    *,
    name: str | None = None,
    threads: int = THREADS,
    repeatable: bool = True,
) -> Any:
    """Declare a kernel: ``@kernel``, or ``@kernel(name=…)``. Its arguments are those of its annotations.

    It is compiled at its first launch. Its default name is ``<folder>.<function>``, for example ``halting.accumulate``.
    """
    if function is None:
        return partial(kernel, name=name, threads=threads, repeatable=repeatable)
    folder = function.__module__.split(".")[-2]
    declared = Kernel(
        function, kinds_of(function), name or f"{folder}.{function.__name__.strip('_')}", threads, repeatable
    )
    KERNELS.append(declared)
    return declared


def device_function(function: Callable[..., Any]) -> Any:
    """Declare a function that kernels call; it becomes part of them."""
    return cuda.jit(device=True)(function)
