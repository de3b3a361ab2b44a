"""Moves on device arrays that are no operations of the model: what ``host`` is for NumPy, for the ``cuda`` column."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
from numba import cuda

from refvt.array import Array
from refvt.backends import DeviceError
from refvt.backends.cuda.device_array import DeviceArray, layout_of
from refvt.backends.cuda.driver import LEGACY_STREAM, driver
from refvt.backends.cuda.graphs import GraphCache as GraphCache
from refvt.backends.cuda.kernel import cell, copied, empty, fill, kernel, read_only, rows_there, there, upload
from refvt.backends.cuda.matmul import plain
from refvt.backends.progress import compilation_shown

IN_MAIN_MEMORY = False
DLPACK_DEVICES = (2, 13)  # DLPack's kDLCUDA and kDLCUDAManaged
FULL = "CUDA_ERROR_OUT_OF_MEMORY"
COMPLAINTS = {FULL} | {  # and those after which a process has lost its GPU
    f"CUDA_ERROR_{name}"
    for name in (
        "ASSERT",
        "CONTEXT_IS_DESTROYED",
        "DEVICE_UNAVAILABLE",
        "ECC_UNCORRECTABLE",
        "HARDWARE_STACK_ERROR",
        "ILLEGAL_ADDRESS",
        "ILLEGAL_INSTRUCTION",
        "INVALID_ADDRESS_SPACE",
        "INVALID_PC",
        "LAUNCH_FAILED",
        "LAUNCH_TIMEOUT",
        "MISALIGNED_ADDRESS",
        "NVLINK_UNCORRECTABLE",
        "SYSTEM_NOT_READY",
        "UNKNOWN",
    )
}


def from_numpy(array: Any, dtype: str | None = None) -> Array:
    """A device array of the given dtype; one that is on the device already stays there."""
    result: Array = upload(array, dtype)
    return result


def to_numpy(array: Any) -> Array:
    """A copy in main memory, contiguous; what lies there already is returned as it is."""
    result: Array = array.copy_to_host() if isinstance(array, DeviceArray) else np.asarray(array)
    return result


def zeros(shape: int | tuple[int, ...], dtype: Any) -> Array:
    return fill(empty(shape, dtype), 0)


def write(x: Any, values: Any) -> None:
    """x ← values, of the same shape, from the host or the device; x is contiguous."""
    x.write(values if isinstance(values, DeviceArray) else np.ascontiguousarray(values, x.dtype))


@kernel("f f x")
def _add_scaled(total, x, factor):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < total.shape[0]:
        total[i] += factor * x[i]


def add_scaled(total: Array, x: Array, factor: float) -> None:
    """total ← total + factor · x, of one shape, both contiguous."""
    _add_scaled.each(total.size, total.reshape(-1), x.reshape(-1), total.dtype.type(factor))


def columns(x: Any, start: int, stop: int) -> Array:
    """x[:, start:stop] as a view."""
    view: Array = x.columns(start, stop)
    return view


def column(x: Any, i: int) -> Array:
    """x[:, i] as a view."""
    view: Array = x.column(i)
    return view


@kernel("i i i")
def _take(x, index, y):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < y.shape[0]:
        y[i] = x[index[i]]


def take(x: Array, index: Array) -> Array:
    """x[index], of integers."""
    y = empty(index.shape[0], np.int64)
    _take.each(index.shape[0], read_only(x), index, y)
    return y


@kernel("I I I")
def _pick(table, places, rows):  # type: ignore[no-untyped-def]
    f, j = cell()
    if f < rows.shape[0] and j < rows.shape[1]:
        chosen = 0
        if j > places.shape[1]:
            chosen = table.shape[1] - 1
        elif j > 0:
            chosen = 1 + places[f, j - 1]
        rows[f, j] = table[f, chosen]


def take_patches(table: Array, places: Array, tail: int = 0) -> Array:
    """Of each row its first number, those at 1 + places, and its last if ``tail`` is 1: indices of a frame's rows.

    table [n, 1+S+tail], places [n, k] → [n, 1+k+tail].
    """
    n, k = places.shape
    rows = empty((n, 1 + k + tail), np.int64)
    _pick.cells(n, 1 + k + tail, read_only(table), places, rows)
    return rows


@kernel("I n i")
def _turn(rows, T, y):  # type: ignore[no-untyped-def]
    f, place = cell()
    m = rows.shape[1]
    if f < rows.shape[0] and place < m:
        y[f // T * m * T + place * T + f % T] = rows[f, place]


def frames_to_patches(rows: Array, T: int) -> Array:
    """From frame after frame to place after place: [B·T, m] → [B·m·T] flat, the T of one place next to one another."""
    n, m = rows.shape
    y = empty(n * m, np.int64)
    _turn.cells(n, m, rows, T, y)
    return y


@kernel("F i F n n")
def _place(part, there, whole, top, left):  # type: ignore[no-untyped-def]
    r, c = cell()
    if r < rows_there(there, part.shape[0]) and c < part.shape[1]:
        whole[top + r, left + c] = part[r, c]


def _matrix(x: Array) -> Array:
    return x.reshape(-1, 1) if len(x.shape) == 1 else x


def join_columns(parts: Sequence[Array]) -> Array:
    """The opposite of ``columns``: [n, D1], [n, D2], … → [n, D1 + D2 + …]; no copy if they lie side by side."""
    first: Any = parts[0]
    layout, at = layout_of((first.shape[0], sum(part.shape[1] for part in parts)), first.dtype), first.address
    beside = all(part.owner is first.owner and part.strides == layout[2] for part in cast(Any, parts))
    for part in cast(Any, parts):
        beside, at = beside and part.address == at, at + part.shape[1] * part.itemsize
    if beside:
        return cast(Array, DeviceArray(first.address, layout, first.owner))
    whole = empty((parts[0].shape[0], sum(part.shape[1] for part in parts)), parts[0].dtype)
    left = 0
    for part in parts:
        _place.cells(part.shape[0], part.shape[1], part, there(part), whole, 0, left)
        left += part.shape[1]
    return whole


def join_rows(parts: Sequence[Array]) -> Array:
    """[n1, …], [n2, …], … → [n1 + n2 + …, …]; one or two axes."""
    whole = empty((sum(part.shape[0] for part in parts), *parts[0].shape[1:]), parts[0].dtype)
    target, top = _matrix(whole), 0
    for part in parts:
        matrix = _matrix(part)
        _place.cells(matrix.shape[0], matrix.shape[1], matrix, there(part), target, top, 0)
        top += part.shape[0]
    return whole


@kernel("F F F")
def _add(x, y, total):  # type: ignore[no-untyped-def]
    r, c = cell()
    if r < x.shape[0] and c < x.shape[1]:
        total[r, c] = x[r, c] + y[r, c]


def add(*terms: Array | None) -> Array:
    """The sum of those terms that are not None (at least one must be); one or two axes."""
    present = [term for term in terms if term is not None]
    total = present[0]
    for term in present[1:]:
        left, right = _matrix(total), _matrix(term)
        both = empty(left.shape, left.dtype)
        _add.cells(left.shape[0], left.shape[1], left, right, both)
        total = both.reshape(tuple(term.shape))
    return total


def matmul(a: Array, b: Array) -> Array:
    """a b, of two weights: the weight of b followed by a."""
    return plain(a, b)


@kernel("F n f")
def _add_to_column(x, column, values):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < x.shape[0]:
        x[i, column] += values[i]


def add_to_column(x: Array, column: int, values: Array) -> Array:
    """A copy of x with values added to one column."""
    result = copied(x)
    _add_to_column.each(x.shape[0], result, column, values)
    return result


@kernel("f i")
def _not_finite(x, found):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    # NaN fails every comparison; whoever finds one writes the same 1
    if i < x.shape[0] and not abs(x[i]) < x.dtype.type(np.inf):
        found[0] = 1


def wait() -> None:
    """Until the device has done all it was asked: kernels run while the interpreter goes on."""
    driver().wait()


def on_device(array: Any) -> DeviceArray | None:
    """An array that lies on the device as the kernels take it, without a copy; None for anything else.

    Any library's array will do that speaks DLPack (PyTorch, CuPy, JAX) or has ``__cuda_array_interface__``. By DLPack
    our stream waits for the work that fills it; by the other we do, if it names its stream.
    """
    if isinstance(array, DeviceArray):
        return array
    if hasattr(array, "__dlpack_device__"):
        kind, number = array.__dlpack_device__()
        if kind in DLPACK_DEVICES:
            if number != 0:
                raise ValueError(f"expected an array on the first GPU that this process sees, got one on GPU {number}")
            return _by_dlpack(array)
    found = getattr(array, "__cuda_array_interface__", None)
    if found is None:
        return None
    if found.get("stream"):
        driver().wait(found["stream"])
    strides = found.get("strides")
    layout = layout_of(tuple(found["shape"]), np.dtype(found["typestr"]), None if strides is None else tuple(strides))
    return DeviceArray(int(found["data"][0]), layout, array)


def _by_dlpack(array: Any) -> DeviceArray:
    from cuda.core.utils import StridedMemoryView

    exported = StridedMemoryView.from_dlpack(array, stream_ptr=LEGACY_STREAM)  # keeps the memory alive
    dtype, strides = np.dtype(exported.dtype), exported.strides
    in_bytes = None if strides is None else tuple(dtype.itemsize * stride for stride in strides)
    return DeviceArray(int(exported.ptr), layout_of(tuple(exported.shape), dtype, in_bytes), exported)


@contextmanager
def session() -> Iterator[None]:
    """Held around work on the GPU: what its driver complains of is said in one sentence, as a DeviceError.

    And a line on stderr says so if kernels have to be compiled first.
    """
    try:
        with compilation_shown():
            yield
    except DeviceError:
        raise
    except Exception as error:
        found = re.search(r"CUDA_ERROR_\w+", str(error))
        if found is None or found[0] not in COMPLAINTS:
            raise  # a driver that is too old, a mistake of ours: what it says itself is of more use
        raise DeviceError(_complaint(found[0])) from error


def _complaint(name: str) -> str:
    if name != FULL:
        return (
            f"cuda: the GPU stopped answering ({name}): what lay in its memory is lost, and this process cannot use it "
            "any more; start it anew"
        )
    try:
        free, total = (size / 2**20 for size in driver().memory())
    except Exception:  # what is left to say does not depend on it
        return "cuda: the GPU's memory is full: give fewer clips at once, or a smaller model"
    room = f"{free:.0f} of {total:.0f} MiB are free"
    return f"cuda: the GPU's memory is full ({room}): give fewer clips at once, or a smaller model"


def check_clips(clips: DeviceArray, dtype: str) -> None:
    """ValueError or TypeError unless clips on the device have the model's dtype, are contiguous and finite."""
    if clips.dtype != np.dtype(dtype):
        raise TypeError(f"clips: expected {dtype} on the device, as the model computes in it, got {clips.dtype}")
    if not clips.contiguous:
        raise ValueError("clips: expected a contiguous array on the device, got a strided view; copy it first")
    found = fill(empty(1, np.int64), 0)
    _not_finite.each(clips.size, clips.reshape(-1), found)
    if to_numpy(found)[0]:
        raise ValueError(f"clips: expected finite numbers in {dtype}, got NaN or infinite values")
