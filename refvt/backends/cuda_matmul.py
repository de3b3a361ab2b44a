"""A tiled matrix multiply for the ``cuda`` rooms: shared memory, register blocking, and an epilogue.

y[i, j] = finish(Σ_k A[i, k] B[k, j]). A block of threads computes one tile of y, and each of its threads a square of
8×8 results in registers (4×4 where y is too small to give every multiprocessor a large tile). It walks along k in
slices, and does three things at a time with them:

1. *fetch*: the numbers of the next slice leave the device's memory for registers, four neighbours by one instruction;
2. *multiply*: the present slice lies in shared memory, a row for every k. Two times 8 numbers of it, four at a time,
   feed 64 multiply-adds. (``linear_naive`` feeds one with two numbers, and those come from the device's memory.)
3. *put*: the numbers fetched go to the other of two places in shared memory, so that all threads wait for one another
   once a slice.

What happens to a finished sum (bias, gain, skip connection, GELU) is the room's own device function ``finish``: the sum
has not left the chip yet, so this costs no pass over the device's memory.

A weight's gradient AᵀB is a small matrix and a long sum, over all tokens. There the sum is cut into parts, each with
blocks of its own, and the parts are added up in order: no result depends on who was first.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from refvt.backends.cuda import SIMULATED, Kernel, absent, column_sums, device_function, empty, kernel
from refvt.backends.cuda_vectors import ALIGNMENT, address, distance, four_at, load4, put, store4
from refvt.ops import Array

__all__ = ["LARGE", "SMALL", "Matmul", "plain", "products", "store"]

GAP = 4  # numbers between two rows of a slice in shared memory, so that they start in different banks
MULTIPROCESSORS = 1 if SIMULATED else 132  # of the GPU in mind, an H100: what a result is cut for
SHORTEST = 4 if SIMULATED else 256  # part of a sum that is worth blocks of its own


class Tile(NamedTuple):
    """Threads of a block down and across its tile of y; results of a thread, multiples of 4; depth of a slice."""

    down: int
    across: int
    height: int
    width: int
    depth: int

    @property
    def rows(self) -> int:
        return self.down * self.height

    @property
    def columns(self) -> int:
        return self.across * self.width

    @property
    def threads(self) -> int:
        return self.down * self.across


LARGE = Tile(2, 2, 8, 8, 4) if SIMULATED else Tile(16, 8, 8, 8, 8)
SMALL = Tile(2, 2, 4, 4, 4) if SIMULATED else Tile(16, 8, 4, 4, 16)


@device_function
def store(value, i, j, bias, gain, residual, extra, y):  # type: ignore[no-untyped-def]
    """y = residual + gain · (value + bias): the epilogue of a linear layer; each of the three may be absent."""
    if bias.shape[0] > 0:
        value += bias[j]
    if gain.shape[0] > 0:
        value *= gain[i]
    if residual.shape[0] > 0:
        value += residual[i, j]
    y[i, j] = value


class Matmul:
    """A matrix multiply with an epilogue. turned_a: A is given as its transpose [K, M]; turned_b: B as [N, K]."""

    def __init__(self, name: str, turned_a: bool, turned_b: bool, finish: Any = store) -> None:
        self.turned_a, self.turned_b = turned_a, turned_b
        self.kernels = {
            LARGE: _matmul_kernel(name, LARGE, turned_a, turned_b, finish),
            SMALL: _matmul_kernel(f"{name}.small", SMALL, turned_a, turned_b, finish),
        }

    def __call__(
        self,
        a: Array,
        b: Array,
        bias: Array | None = None,
        gain: Array | None = None,
        residual: Array | None = None,
        extra: Array | None = None,
    ) -> Array:
        """A fresh y [M, N]. ``extra`` [M, N] is what the epilogue reads or writes beside y; not of AᵀB."""
        M, K = (a.shape[1], a.shape[0]) if self.turned_a else (a.shape[0], a.shape[1])
        N = b.shape[0] if self.turned_b else b.shape[1]
        tile, grid, part = plan(M, N, K, self.turned_a)
        parts = grid[2]
        y = empty((parts * M, N), a.dtype)  # the results of all parts, one below the other
        none, nothing = absent(a.dtype, 1), absent(a.dtype, 2)
        optional = (
            none if bias is None else bias,
            none if gain is None else gain,
            nothing if residual is None else residual,
            nothing if extra is None else extra,
        )
        self.kernels[tile].blocks(grid, (tile.threads,), a, b, K, part, *optional, y, multiply_adds=lambda: M * N * K)
        return y if parts == 1 else column_sums(y.reshape(parts, M * N)).reshape(M, N)


@lru_cache(maxsize=1024)
def plan(M: int, N: int, K: int, cut: bool) -> tuple[Tile, tuple[int, int, int], int]:
    """The tile for a result [M, N], the grid of blocks, and how many of the K summands a block adds (all, unless
    ``cut``): large tiles if there are enough of them for every multiprocessor, small ones if not.
    """
    for tile in (LARGE, SMALL):
        down, across, part, parts = -(-M // tile.rows), -(-N // tile.columns), max(K, 1), 1
        if cut:
            parts = max(1, min(-(-2 * MULTIPROCESSORS // max(1, down * across)), K // SHORTEST))
            part = max(1, -(-K // (parts * tile.depth))) * tile.depth
            parts = max(1, -(-K // part))
        if 2 * down * across * parts >= 3 * MULTIPROCESSORS:
            break
    return tile, (down, across, parts), part


@device_function
def _fours(x, length):  # type: ignore[no-untyped-def]
    """Can all of a matrix, rows of so many numbers, be read by fours? Each must begin at a multiple of 16 bytes."""
    start = address(x, 0, 0)
    return (start | (address(x, 1, 0) - start)) % 16 == 0 and length % 4 == 0


def _mover(lines: int, tile: Tile, along_k: bool) -> tuple[int, Any, Any, Any, Any]:
    """How a block brings a slice of a matrix, ``lines`` times ``depth`` numbers, into shared memory.

    along_k: neighbours in memory are neighbours in k, as in A [M, K]; otherwise neighbours in the line, as in Aᵀ. Each
    thread has some fours of the slice, and neighbouring threads neighbouring ones. How many fours, and four functions.
    """
    fours = lines * tile.depth // tile.threads // 4
    in_row = (tile.depth if along_k else lines) // 4
    rows = tile.threads // in_row

    @device_function
    def place(n, thread):  # type: ignore[no-untyped-def]
        """Line and k of the n-th four of a thread."""
        i, j = thread // in_row + n * rows, thread % in_row * 4
        return (i, j) if along_k else (j, i)

    @device_function
    def locate(x, last, thread, distances):  # type: ignore[no-untyped-def]
        """How far the fours of a thread lie behind the first number of their slice; the last line stands for those
        beyond it.
        """
        for n in range(fours):
            line, k = place(n, thread)
            if along_k:
                distances[n] = distance(x, min(np.int32(line), np.int32(last)), k)
            else:
                distances[n] = distance(x, k, min(np.int32(line), np.int32(last - 3)))

    @device_function
    def fetch_fours(x, start, distances, numbers):  # type: ignore[no-untyped-def]
        """The numbers of a thread, from the whole slice that starts at an address."""
        for n in range(fours):
            m = 4 * n
            numbers[m], numbers[m + 1], numbers[m + 2], numbers[m + 3] = four_at(x, start + distances[n])

    @device_function
    def fetch_ones(x, first, last, start, depth, thread, numbers):  # type: ignore[no-untyped-def]
        """The same one by one, from a slice that starts at this line and k; zeros beyond last line and depth."""
        for n in range(fours):
            for m in range(4):
                line, k = place(n, thread)
                if along_k:
                    k += m
                else:
                    line += m
                numbers[4 * n + m] = 0
                if k < depth and line <= last:
                    line += first
                    k += start
                    # an index without a sign need not be looked at to see whether it counts from the end
                    numbers[4 * n + m] = (
                        x[np.uint32(line), np.uint32(k)] if along_k else x[np.uint32(k), np.uint32(line)]
                    )

    @device_function
    def put_fours(numbers, thread, space, start):  # type: ignore[no-untyped-def]
        """The numbers of a thread to shared memory, from ``start`` on: a row of lines for every k."""
        for n in range(fours):
            line, k = place(n, thread)
            at, m = start + k * (lines + GAP) + line, 4 * n
            if along_k:
                for q in range(4):
                    put(space, at + q * (lines + GAP), numbers[m + q])
            else:
                store4(space, at, numbers[m], numbers[m + 1], numbers[m + 2], numbers[m + 3])

    return fours, locate, fetch_ones, fetch_fours, put_fours


def _multiplier(k: int, tile: Tile, a_row: int, b_row: int) -> Any:
    """The multiply-adds of the k-th step of a slice, after those of the steps before it.

    A loop over k would count, compare and form addresses in every step. Written out, as here, all of that is known to
    the compiler.
    """
    down, across, height, width, _ = tile
    before: Any = _multiplier(k - 1, tile, a_row, b_row) if k > 0 else None

    @device_function
    def multiply(space, a_start, b_start, column, row, sums):  # type: ignore[no-untyped-def]
        if k > 0:
            before(space, a_start, b_start, column, row, sums)
        for r in range(0, height, 4):
            at = a_start + k * a_row + r * down
            column[r], column[r + 1], column[r + 2], column[r + 3] = load4(space, at)
        for c in range(0, width, 4):
            at = b_start + k * b_row + c * across
            row[c], row[c + 1], row[c + 2], row[c + 3] = load4(space, at)
        for r in range(height):
            for c in range(width):
                sums[r, c] += column[r] * row[c]

    return multiply


def _matmul_kernel(name: str, tile: Tile, turned_a: bool, turned_b: bool, finish: Any) -> Kernel:
    down, across, height, width, slice_depth = tile
    rows, columns, threads = tile.rows, tile.columns, tile.threads
    a_row, b_row = rows + GAP, columns + GAP  # of a slice in shared memory
    b_place, size = slice_depth * a_row, slice_depth * (a_row + b_row)
    space_needed = max(2 * size, 4 * down * b_row)  # two slices; at the end a part of the finished tile
    a_fours, locate_a, fetch_a_ones, fetch_a_fours, put_a = _mover(rows, tile, along_k=not turned_a)
    b_fours, locate_b, fetch_b_ones, fetch_b_fours, put_b = _mover(columns, tile, along_k=turned_b)
    a_each, b_each = 4 * a_fours, 4 * b_fours
    multiply = _multiplier(slice_depth - 1, tile, a_row, b_row)

    @kernel("F F n n f f F F F", name, threads)
    def matmul(a, b, K, part, bias, gain, residual, extra, y):  # type: ignore[no-untyped-def]
        M, N = a.shape[1] if turned_a else a.shape[0], y.shape[1]
        top, left = cuda.blockIdx.x * rows, cuda.blockIdx.y * columns
        thread = cuda.threadIdx.x & (threads - 1)  # the mask tells the compiler that it is not negative
        # a thread has rows 4 z … 4 z + 3 of the tile, and as many again ``4 · down`` below; so with columns and x. A
        # warp is 4 z by 8 x: of the fours that it reads at a time no two different ones lie in the same banks
        x = (thread & 1) | (thread >> 1 & 6)
        z = (thread >> 1 & 1) | (thread >> 3 & 2) | (thread >> 5 << 2)
        space = cuda.shared.array(space_needed, a.dtype, alignment=ALIGNMENT)
        sums = cuda.local.array((height, width), a.dtype)
        column = cuda.local.array(height, a.dtype)
        row = cuda.local.array(width, a.dtype)
        a_next = cuda.local.array(a_each, a.dtype)
        b_next = cuda.local.array(b_each, a.dtype)
        a_apart = cuda.local.array(a_fours, np.uint32)
        b_apart = cuda.local.array(b_fours, np.uint32)
        locate_a(a, M - 1 - top, thread, a_apart)
        locate_b(b, N - 1 - left, thread, b_apart)
        for r in range(height):
            for c in range(width):
                sums[r, c] = 0
        # the first slice takes what does not fill a whole one, so that all others are whole
        begin = cuda.blockIdx.z * part
        depth = min(part, K - begin)
        slices = max(1, (depth + slice_depth - 1) // slice_depth)
        depth -= (slices - 1) * slice_depth
        fetch_a_ones(a, top, M - 1 - top, begin, depth, thread, a_next)
        fetch_b_ones(b, left, N - 1 - left, begin, depth, thread, b_next)
        put_a(a_next, thread, space, 0)
        put_b(b_next, thread, space, b_place)
        by_fours = _fours(a, M if turned_a else K) and _fours(b, K if turned_b else N)
        begin += depth
        a_at = address(a, begin, top) if turned_a else address(a, top, begin)
        b_at = address(b, left, begin) if turned_b else address(b, begin, left)
        a_step = (address(a, slice_depth, 0) if turned_a else address(a, 0, slice_depth)) - address(a, 0, 0)
        b_step = (address(b, 0, slice_depth) if turned_b else address(b, slice_depth, 0)) - address(b, 0, 0)
        here = 0  # where the present slice lies in shared memory
        for remaining in range(slices - 1, -1, -1):
            if remaining > 0:
                if by_fours:
                    fetch_a_fours(a, a_at, a_apart, a_next)
                    fetch_b_fours(b, b_at, b_apart, b_next)
                else:
                    fetch_a_ones(a, top, M - 1 - top, begin, slice_depth, thread, a_next)
                    fetch_b_ones(b, left, N - 1 - left, begin, slice_depth, thread, b_next)
                    begin += slice_depth
                a_at += a_step
                b_at += b_step
            cuda.syncthreads()  # the present slice is complete, and nobody reads the other place any more
            multiply(space, here + 4 * z, here + b_place + 4 * x, column, row, sums)
            here = size - here
            put_a(a_next, thread, space, here)
            put_b(b_next, thread, space, here + b_place)
        # the tile goes through shared memory, four rows of each thread at a time: registers cannot be indexed by a
        # number known only at run time, and the epilogue is too long to be written out for each of them
        for upper in range(0, height, 4):
            cuda.syncthreads()
            for r in range(4):
                for c in range(0, width, 4):
                    at = (4 * z + r) * b_row + c * across + 4 * x
                    store4(space, at, sums[r, c], sums[r, c + 1], sums[r, c + 2], sums[r, c + 3])
            cuda.syncthreads()
            for e in range(thread, 4 * down * columns, threads):
                i, j = top + upper * down + e // columns, left + e % columns
                if i < M and j < N:
                    value = space[e // columns * b_row + e % columns]
                    i += cuda.blockIdx.z * M
                    finish(value, np.uint32(i), np.uint32(j), bias, gain, residual, extra, y)
            for r in range(height - 4):
                for c in range(width):
                    sums[r, c] = sums[r + 4, c]

    return matmul


plain = Matmul("matmul", turned_a=False, turned_b=False)  # A B
products = Matmul("matmul.turned", turned_a=True, turned_b=False)  # Aᵀ B, the sum over rows of a weight's gradient
