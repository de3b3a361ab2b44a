"""What the ``cuda`` rooms share: how kernels are declared and launched, sums across a warp, and sums down a column.

A *kernel* is a function that every thread of a grid runs; threads come in blocks, and 32 neighbours in a block (a warp)
walk in step. Four habits hold in all rooms:

- one kernel for float32 and float64: numbers take the dtype of the arrays (a bare ``1.0`` would be a float64, and drag
  the arithmetic of a float32 kernel with it);
- an optional array that is absent is an array of no elements: kernels know no None;
- no atomic additions of floats: every sum is added in one order, so that a run is the same as the run before;
- results are fresh arrays; index arrays, gains and biases may come from the host and are uploaded here.

Under ``NUMBA_ENABLE_CUDASIM=1`` all of this runs in numba-cuda's simulator, one Python thread per GPU thread: warps,
blocks and tiles are made tiny there, so that small arrays still fill several of them.
"""

from __future__ import annotations

import struct
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, NamedTuple, cast

import numpy as np
from numba import cuda

from refvt.array import Array
from refvt.backends.cuda.device_array import DeviceArray, empty
from refvt.backends.cuda.driver import AXES, INTEGERS, SIMULATED, STRIDED, driver
from refvt.backends.cuda.memory import DriverError

__all__ = [
    "KERNELS",
    "SIMULATED",
    "THREADS",
    "WARP",
    "WATCHERS",
    "Kernel",
    "Launch",
    "absent",
    "as_many",
    "cell",
    "column_sums",
    "copied",
    "copies_used",
    "copy",
    "device_function",
    "empty",
    "fill",
    "kernel",
    "lane_and_row",
    "read_only",
    "rows_there",
    "rows_told",
    "scaled",
    "there",
    "upload",
    "warp_max",
    "warp_sum",
]

WARP = 4 if SIMULATED else 32
THREADS = 8 if SIMULATED else 128  # of a block, where nothing asks for more
LANES = 4 if SIMULATED else 32  # neighbouring columns a block of ``cells`` covers
ROWS_A_PART = 3 if SIMULATED else 128  # rows that one partial sum of ``column_sums`` covers


@dataclass
class Kernel:
    """A kernel, the types of its arguments (see ``kernel``), and how its grid is laid out."""

    function: Callable[..., None]
    arguments: str
    name: str
    threads: int = THREADS  # of a block, at most: so many must find registers
    repeatable: bool = True  # launched twice with the same arguments it leaves what it leaves launched once
    # the loaded kernel and where its words lie: by its dtype, and by the kinds of arguments it was called with
    _loaded: dict[Any, tuple[Any, struct.Struct]] = field(default_factory=dict)

    def ptx(self, dtype: Any, capability: tuple[int, int]) -> str:
        """The kernel in PTX, for floats of a dtype and GPUs of a compute capability; needs no GPU."""
        from numba import types

        number = getattr(types, np.dtype(dtype).name)
        letters: dict[str, Any] = {"x": number, "n": types.int64}
        for letter, axes in AXES.items():
            kind = getattr(types, INTEGERS[letter]) if letter in INTEGERS else number
            letters[letter] = types.Array(kind, axes, "A" if letter in STRIDED else "C")
        signature = types.void(*(letters[letter] for letter in self.arguments))
        ptx, _ = cuda.compile_ptx(self.function, signature, cc=capability)
        return str(ptx)

    def layout(self, dtype: Any) -> struct.Struct:
        """How the arguments lie in words of eight bytes: an array is 5 + 2 · axes of them, a number is one."""
        number = {"f": "f4x", "d": "d", "?": "?7x"}.get(np.dtype(dtype).char, "q")
        words = {letter: f"{5 + 2 * axes}q" for letter, axes in AXES.items()} | {"x": number, "n": "q"}
        return struct.Struct("<" + "".join(words[letter] for letter in self.arguments))

    def blocks(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        *arguments: Any,
        multiply_adds: Callable[[], int] | None = None,
    ) -> None:
        """A grid of blocks of the given shapes; nothing at all if the grid is empty.

        ``multiply_adds`` counts the work, for kernels that have more of it than the arrays have numbers.
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
        """Compiled and loaded for arguments of these kinds. TypeError if they are not what the kernel was declared for.

        Kernels for all kinds that differ in nothing but whether their matrices have gaps are one.
        """
        named = zip(self.arguments, kinds, strict=False)
        floats = [kind for letter, kind in named if letter in AXES and letter not in INTEGERS]
        dtype = np.dtype((floats[0] or "?")[-1] if floats else np.int64)
        expected: list[tuple[str | None, ...]] = []
        for letter in self.arguments:
            kind = f"{AXES.get(letter)}%s{np.dtype(INTEGERS.get(letter, dtype)).char}"
            strided = letter in STRIDED
            expected.append((None,) if letter in "xn" else (kind % "c", kind % "s") if strided else (kind % "c",))
        if len(kinds) != len(expected) or any(kind not in those for kind, those in zip(kinds, expected, strict=True)):
            raise TypeError(f"kernel {self.name} takes {[those[0] for those in expected]}, got {list(kinds)}")
        if dtype not in self._loaded:
            self._loaded[dtype] = driver().load(self, dtype), self.layout(dtype)
        found = self._loaded[kinds] = self._loaded[dtype]
        return found

    def each(self, count: int, *arguments: Any) -> None:
        """One thread per item: the kernel reads its item from ``cuda.grid(1)``."""
        self.blocks((-(-count // THREADS),), (THREADS,), *arguments)

    def cells(self, rows: int, columns: int, *arguments: Any) -> None:
        """One thread per element of a matrix, neighbours side by side in a row: the kernel reads ``cell()``."""
        height = THREADS // LANES
        self.blocks((-(-rows // height), -(-columns // LANES)), (LANES, height), *arguments)

    def warps(self, rows: int, *arguments: Any) -> None:
        """One warp per row: the kernel reads ``lane_and_row()``."""
        self.blocks((-(-rows // (THREADS // WARP)),), (THREADS,), *arguments)


class Launch(NamedTuple):
    """One launch of a kernel, as a watcher is told of it; ``again`` does the same once more."""

    name: str
    arguments: tuple[Any, ...]
    again: Callable[[], None] | None  # None: a second time would be another thing
    multiply_adds: int


WATCHERS: list[Callable[[Launch], None]] = []  # told of every launch
KERNELS: list[Kernel] = []  # every kernel of every room that was imported, for the page of registers


def kernel(
    arguments: str, name: str | None = None, threads: int = THREADS, repeatable: bool = True
) -> Callable[[Callable[..., None]], Kernel]:
    """Declare a kernel. Compiled at its first call for the arrays it meets; ``arguments`` says what those may be.

    One letter each: F a float matrix, f a float vector, v one that may have gaps (as a column has), 3 and 5 float
    arrays of so many axes, x a float number, I an integer matrix, i an integer vector, b a vector of booleans, n an
    integer number.
    """

    def declare(function: Callable[..., None]) -> Kernel:
        room = function.__module__.split(".")[-2]
        full = name or f"{room}.{function.__name__.strip('_')}"
        declared = Kernel(function, arguments.replace(" ", ""), full, threads, repeatable)
        KERNELS.append(declared)
        return declared

    return declare


def device_function(function: Callable[..., Any]) -> Any:
    """A function that kernels call: it becomes part of them."""
    return cuda.jit(device=True)(function)


@device_function
def cell() -> tuple[int, int]:
    """The row and column of this thread, in a kernel launched by ``cells``."""
    return (
        cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y,
        cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x,
    )


@device_function
def rows_there(there, n):  # type: ignore[no-untyped-def]
    """How many of n rows there are: ``there`` [1] says so, or nothing does and it is all of them."""
    return min(there[0], n) if there.shape[0] > 0 else n


@device_function
def lane_and_row() -> tuple[int, int]:
    """The place of this thread in its warp and the row its warp works on, in a kernel launched by ``warps``.

    The row may lie beyond the last one. Such a warp must not return early: the simulator's warps wait for one another.
    """
    return cuda.threadIdx.x % WARP, (cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x) // WARP


if SIMULATED:  # no shuffles there: the lanes meet in shared memory, all warps of the block at once

    def _warp_values(value: Any) -> Any:
        values = cuda.shared.array(THREADS, np.float64)
        i = cuda.threadIdx.x
        cuda.syncthreads()
        values[i] = value
        cuda.syncthreads()
        first = i - i % WARP
        return values[first : first + WARP].copy()

    @device_function
    def warp_sum(value: Any) -> Any:
        """The sum of the value over the lanes of the warp, in every lane."""
        return type(value)(_warp_values(value).sum())

    @device_function
    def warp_max(value: Any) -> Any:
        """The largest value among the lanes of the warp, in every lane."""
        return type(value)(_warp_values(value).max())

else:

    @device_function
    def warp_sum(value: Any) -> Any:
        """The sum of the value over the lanes of the warp, in every lane: five exchanges with ever nearer lanes."""
        distance = WARP // 2
        while distance > 0:
            value += cuda.shfl_xor_sync(0xFFFFFFFF, value, distance)
            distance //= 2
        return value

    @device_function
    def warp_max(value: Any) -> Any:
        """The largest value among the lanes of the warp, in every lane."""
        distance = WARP // 2
        while distance > 0:
            value = max(value, cuda.shfl_xor_sync(0xFFFFFFFF, value, distance))
            distance //= 2
        return value


_COPIES: dict[Any, Array] = {}  # of arrays that never change, by their id; of short lists of indices, by their bytes
SHORT = 1024  # so many indices at most: offsets of clips, rows of CLS
MOST_COPIES = 1 << 14


@cache
def absent(dtype: Any, ndim: int) -> Array:
    """The array of no elements that a kernel is given for an optional array that is not there."""
    return empty((0,) * ndim, dtype)


def there(x: Any) -> Array:
    """For a kernel: how many of the rows of an array there are, where only the device has counted; else nothing."""
    return absent(np.int64, 1) if x.count is None else x.count


def rows_told(x: Any) -> int:
    """How many of the rows of an array there are; asks the device if only it knows."""
    return int(x.shape[0]) if x.count is None else min(int(x.count.copy_to_host()[0]), int(x.shape[0]))


def as_many(x: Any, y: Any) -> Array:
    """y, which has as many rows as x has."""
    y.count = x.count
    return cast(Array, y)


def upload(array: Any, dtype: Any = None) -> Array:
    """A host array on the device, contiguous and of the given dtype; a device array as it is.

    TypeError if a device array would have to change its dtype.
    """
    if isinstance(array, DeviceArray):
        if dtype is not None and array.dtype != dtype:
            raise TypeError(f"expected a device array of {np.dtype(dtype)}, got {array.dtype}")
        return cast(Array, array)
    return _copy_of(np.ascontiguousarray(array, dtype=dtype))


class _Used(threading.local):
    copies: list[Array] | None = None


_used = _Used()


@contextmanager
def copies_used() -> Iterator[list[Array]]:
    """Inside, a list of all copies that ``read_only`` hands out to this thread: who keeps it, keeps them."""
    _used.copies = []
    try:
        yield _used.copies
    finally:
        _used.copies = None


def read_only(array: Any, dtype: Any = np.int64) -> Array:
    """``upload`` for arrays that kernels only read, indices mostly: what is the same as before is not copied again.

    Copies are kept of arrays that nobody may write to, for as long as these live, and of short lists of indices.
    """
    if isinstance(array, DeviceArray):
        return upload(array, dtype)
    found = _COPIES.get(id(array))
    if found is None or dtype != found.dtype:
        found = _kept_copy(array, dtype)
    if _used.copies is not None:
        _used.copies.append(found)
    return found


def _kept_copy(array: Any, dtype: Any) -> Array:
    host = np.ascontiguousarray(array, dtype=dtype)
    key: Any = None
    if host.dtype == np.int64 and host.ndim == 1 and len(host) <= SHORT:
        key = host.tobytes()
        found = _COPIES.get(key)
        if found is not None:
            return found
    elif host is array and host.base is None and not host.flags.writeable:
        key = id(array)
        weakref.finalize(array, _COPIES.pop, key, None).atexit = False
    copy = _copy_of(host)
    if key is not None:
        while len(_COPIES) >= MOST_COPIES:
            with suppress(StopIteration, RuntimeError):  # another thread may be at it
                _COPIES.pop(next(iter(_COPIES)), None)
        _COPIES[key] = copy
    return copy


def _copy_of(host: Array) -> Array:
    device = empty(host.shape, host.dtype)
    device.write(host)  # type: ignore[attr-defined]
    return device


@kernel("f x")
def _fill(x, value):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < x.shape[0]:
        x[i] = value


def fill(x: Array, value: float) -> Array:
    """Set every element of a contiguous array; returns it."""
    if x.size:
        _fill.each(x.size, x.reshape(-1), x.dtype.type(value))
    return x


@kernel("F F")
def _copy(x, y):  # type: ignore[no-untyped-def]
    r, c = cell()
    if r < y.shape[0] and c < y.shape[1]:
        y[r, c] = x[r, c]


def copy(x: Array, y: Array) -> None:
    """y ← x, matrices of one shape."""
    _copy.cells(x.shape[0], x.shape[1], x, y)


def copied(x: Array) -> Array:
    """A fresh contiguous copy of a matrix."""
    y = empty(x.shape, x.dtype)
    copy(x, y)
    return y


@kernel("F f F")
def _scale(x, gain, y):  # type: ignore[no-untyped-def]
    r, c = cell()
    if r < y.shape[0] and c < y.shape[1]:
        y[r, c] = gain[r] * x[r, c]


def scaled(x: Array, gain: Array) -> Array:
    """gain · x, row by row: x [n, D], gain [n]."""
    y = empty(x.shape, x.dtype)
    _scale.cells(x.shape[0], x.shape[1], x, gain, y)
    return y


@kernel("F F n F")
def _partial_sums(x, factor, height, sums):  # type: ignore[no-untyped-def]
    """sums[p, j] = Σ over the p-th ``height`` rows of x[i, j]; behind them, if asked for, Σ x[i, j] · factor[i, j]."""
    p, c = cell()
    if p < sums.shape[0] and c < sums.shape[1]:
        total, D = x.dtype.type(0), x.shape[1]
        for i in range(p * height, min((p + 1) * height, x.shape[0])):
            total += x[i, c] if c < D else x[i, c - D] * factor[i, c - D]
        sums[p, c] = total


def column_sums(x: Array, factor: Array | None = None) -> Array:
    """Σ over rows of x, [n, D] → [D]; with ``factor`` [n, D] those of x and behind them those of x · factor, [2D].

    Parts of so many rows first, then the parts: enough threads for the first, and rounding does not pile up.
    """
    n, D = x.shape
    width = D if factor is None else 2 * D
    if n == 0:
        return fill(empty(width, x.dtype), 0)
    factor = absent(x.dtype, 2) if factor is None else factor
    while True:
        parts = -(-n // ROWS_A_PART)
        sums = empty((parts, width), x.dtype)
        _partial_sums.cells(parts, width, x, factor, ROWS_A_PART, sums)
        if parts == 1:
            return sums.reshape(width)
        x, n, factor = sums, parts, absent(x.dtype, 2)
