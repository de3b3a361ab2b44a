"""Tiles of attention: their sizes and layout in shared memory, and the device functions that work on them.

Shared memory holds, one behind the other, the tiles of rows that a block owns, the tiles of rows that it walks along,
and the weights between the two. ``Layout`` says where each of them begins. Thread (row, x) of a tile computes the
weights of HEIGHT rows and of every ACROSS-th column, and the channels of every ACROSS-th group of four.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from refvt.backends.cuda.arguments import Indices, Int, Matrix, Real
from refvt.backends.cuda.intrinsics import at, load4
from refvt.backends.cuda.kernel import device_function
from refvt.backends.cuda.sizes import SIMULATED, WARP

__all__ = [
    "ACROSS",
    "BACKWARD",
    "FORWARD",
    "HEIGHT",
    "LINES",
    "SHORT",
    "Layout",
    "add_mixture",
    "add_products",
    "clear",
    "layout_for",
    "place",
    "row_max",
    "row_sum",
    "rows_of_block",
    "sync_warp",
    "tile_functions",
]


class _Sizes(NamedTuple):
    across: int  # threads that share a row of a tile
    height: int  # rows of a thread
    # (owned, walked) rows of a tile; the first pair that fits in shared memory is taken
    forward: tuple[tuple[int, int], ...]
    backward: tuple[tuple[int, int], ...]
    short: tuple[int, int]  # where no segment is longer: larger tiles would be nearly empty


_GPU = _Sizes(8, 4, ((64, 32), (32, 16), (16, 8)), ((32, 32), (16, 16), (16, 8)), (16, 8))
_SIMULATOR = _Sizes(2, 2, ((8, 4),), ((8, 4),), (4, 4))
ACROSS, HEIGHT, FORWARD, BACKWARD, SHORT = _SIMULATOR if SIMULATED else _GPU
LINES = WARP // ACROSS  # distance between the rows of a thread; a warp has LINES · HEIGHT rows
SHARED = 48 * 1024  # bytes of shared memory that a block may use by default


@device_function
def place() -> tuple[int, int]:
    """The first row of this thread in a tile, and its index x among the threads that share its rows.

    Neighbouring threads have neighbouring rows and the same x, so that half a warp, which reads 16 bytes per thread,
    reads eight different addresses at most: what shared memory delivers at once.
    """
    thread = cuda.threadIdx.x & 1023  # tells the compiler that it is not negative
    line = thread // (2 * ACROSS) * 2 + thread % 2
    return line // LINES * (LINES * HEIGHT) + line % LINES, thread // 2 % ACROSS


if SIMULATED:  # without shuffles: the threads meet in shared memory

    def _row_values(value: Any) -> Any:
        values = cuda.shared.array(64, np.float64)
        i = cuda.threadIdx.x
        cuda.syncthreads()
        values[i] = value
        cuda.syncthreads()
        return values[[i ^ (2 * other) for other in range(ACROSS)]]

    @device_function
    def row_max(value: Any) -> Any:
        """Largest value among the threads that share this thread's rows, in all of them."""
        return type(value)(_row_values(value).max())

    @device_function
    def row_sum(value: Any) -> Any:
        """Sum of the value over the threads that share this thread's rows, in all of them."""
        return type(value)(_row_values(value).sum())

    @device_function
    def sync_warp() -> None:
        """Wait until all threads of this warp have written to shared memory."""
        cuda.syncthreads()

else:

    @device_function
    def row_max(value: Any) -> Any:
        """Largest value among the threads that share this thread's rows, in all of them."""
        distance = ACROSS
        while distance > 1:
            value = max(value, cuda.shfl_xor_sync(0xFFFFFFFF, value, distance))
            distance //= 2
        return value

    @device_function
    def row_sum(value: Any) -> Any:
        """Sum of the value over the threads that share this thread's rows, in all of them."""
        distance = ACROSS
        while distance > 1:
            value += cuda.shfl_xor_sync(0xFFFFFFFF, value, distance)
            distance //= 2
        return value

    @device_function
    def sync_warp() -> None:
        """Wait until all threads of this warp have written to shared memory."""
        cuda.syncwarp()


@device_function
def rows_of_block(offsets: Indices, others: Indices, height: Int) -> Any:
    """(top, bottom) of the rows that this block owns, none if bottom ≤ top, and (first, last) of the other side.

    The grid: segments, heads, tiles of the longest segment. Blocks beyond the end of a shorter segment own no rows.
    """
    segment = cuda.blockIdx.x
    top = offsets[segment] + cuda.blockIdx.z * height
    return top, min(top + height, offsets[segment + 1]), others[segment], others[segment + 1]


@device_function
def clear(sums: Any) -> None:
    """sums [rows, columns] ← 0."""
    for r in range(sums.shape[0]):
        for c in range(sums.shape[1]):
            sums[r, c] = 0


@device_function
def add_products(shared: Any, a: Int, b: Int, pitch: Int, groups: Int, sums: Any) -> None:
    """sums [HEIGHT, columns] += A Bᵀ, of two tiles that begin at a and b in shared memory.

    Four channels of each row at a time: HEIGHT + columns reads feed 4 · HEIGHT · columns multiply-adds.
    """
    row, x = place()
    left = cuda.local.array((HEIGHT, 4), sums.dtype)
    right = cuda.local.array(4, sums.dtype)
    e = 0
    while e < 4 * groups:  # numba's range with a step would cost as much again as the addresses
        for r in range(HEIGHT):
            left[r, 0], left[r, 1], left[r, 2], left[r, 3] = load4(shared, a + (row + r * LINES) * pitch + e)
        for c in range(sums.shape[1]):
            right[0], right[1], right[2], right[3] = load4(shared, b + (x + c * ACROSS) * pitch + e)
            for u in range(4):
                for r in range(HEIGHT):
                    sums[r, c] += left[r, u] * right[u]
        e += 4


@device_function
def add_mixture(
    shared: Any, weights: Int, weight_pitch: Int, count: Int, tile: Int, pitch: Int, groups: Int, sums: Any
) -> None:
    """sums [HEIGHT, channels] += W X, of weights [rows, count] and a tile [count, d] in shared memory.

    A thread has several groups of four neighbouring channels of each of its rows. A group beyond the last channel
    repeats the last group and is not written.
    """
    row, x = place()
    left = cuda.local.array((HEIGHT, 4), sums.dtype)
    right = cuda.local.array(4, sums.dtype)
    j = 0
    while j < count:
        for r in range(HEIGHT):
            left[r, 0], left[r, 1], left[r, 2], left[r, 3] = load4(
                shared, weights + (row + r * LINES) * weight_pitch + j
            )
        for u in range(4):
            for g in range(sums.shape[1] // 4):
                group = min(x + g * ACROSS, groups - 1)
                right[0], right[1], right[2], right[3] = load4(shared, tile + (j + u) * pitch + group * 4)
                for r in range(HEIGHT):
                    for c in range(4):
                        sums[r, g * 4 + c] += left[r, u] * right[c]
        j += 4


class Layout(NamedTuple):
    """Sizes of tiles, and where they begin in shared memory, in numbers; for heads of width d."""

    d: int
    groups: int  # of four channels
    pitch: int  # between two rows of a tile
    channels: int  # of a thread
    owned: int  # rows of a tile that a block owns
    walked: int  # rows of a tile that it walks along
    warps: int  # of a block
    per_thread: int  # walked rows of a thread
    weight_pitch: int  # between two rows of weights
    second: int  # where the second owned tile begins (backward; the first begins at 0)
    third: int  # the first walked tile
    fourth: int  # the second walked tile
    weights: int
    dlogits: int  # the gradient of the logits (backward)
    size: int  # of all of it


def layout_for(d: int, itemsize: int, tiles: tuple[tuple[int, int], ...], backward: bool) -> Layout:
    """The layout of the first tiles that fit; ValueError if none does.

    Forward a block owns one tile (q) and walks along two (k, v). Backward it owns two (q and dy, or k and v), walks
    along the other two, and has the logits' gradient besides the weights.
    """
    groups = -(-d // 4)
    pitch = 4 * (groups | 1)  # an odd number of groups: neighbouring rows start in different memory banks
    for owned, walked in tiles:
        weight_pitch = walked + max(ACROSS, 4)  # for the same reason
        second = owned * pitch if backward else 0
        third = second + owned * pitch
        fourth = third + walked * pitch
        weights = fourth + walked * pitch
        dlogits = weights + owned * weight_pitch if backward else weights
        size = dlogits + owned * weight_pitch
        if size * itemsize <= SHARED:
            channels, warps = 4 * -(-groups // ACROSS), owned // (LINES * HEIGHT)
            return Layout(
                *(d, groups, pitch, channels, owned, walked, warps, walked // ACROSS, weight_pitch),
                *(second, third, fourth, weights, dlogits, size),
            )
    raise ValueError(f"num_heads: heads of width {d} do not fit the tiles of the cuda backend; take more heads")


def tile_functions(layout: Layout) -> tuple[Any, Any]:
    """Device functions that load a tile into shared memory, and that write a row of sums."""
    d, groups, pitch, warps = layout.d, layout.groups, layout.pitch, layout.warps
    channels, columns = layout.channels, -(-4 * layout.groups // WARP)

    @device_function
    def load_tile(x: Matrix, top: Int, bottom: Int, left: Int, count: Int, shared: Any, tile: Int) -> None:
        """``count`` rows of a head of x, from ``top`` on, into shared memory; each by one of the block's warps."""
        thread = cuda.threadIdx.x & 1023
        for n in range(count // warps):
            i = thread // WARP + n * warps
            for m in range(columns):
                c = thread % WARP + m * WARP
                if c < d:
                    shared[tile + i * pitch + c] = at(x, top, bottom, left, i, c)
                elif c < 4 * groups:
                    shared[tile + i * pitch + c] = 0

    @device_function
    def write_row(sums: Any, factor: Real, r: Int, x: Int, i: Int, left: Int, y: Matrix) -> None:
        """y[i, left : left+d] = factor · the r-th row of sums, the channels of this thread."""
        for g in range(channels // 4):
            for c in range(4):
                e = (x + g * ACROSS) * 4 + c
                if e < d:
                    y[i, left + e] = sums[r, g * 4 + c] * factor

    return load_tile, write_row
