"""A tiled matrix multiply for the ``cuda`` rooms: shared memory, register blocking, and an epilogue.

y[i, j] = finish(Σ_k A[i, k] B[k, j]). A block of threads computes one tile of y, slice of k by slice of k:

1. fetch: its threads read the next slice of A and of B from the device's memory into registers, each number once
   (``linear_naive`` reads every number of x D times from there; here that is D / 64 times);
2. multiply: meanwhile they multiply the present slice, which lies in shared memory. Each thread keeps 8×8 results in
   registers: 8 + 8 numbers read from shared memory, by four instructions, feed 64 multiply-adds;
3. put: the fetched numbers go to the other of two places in shared memory, so that one barrier a slice is enough;
4. finish: what happens to a finished sum (bias, gain, skip connection, GELU) is the room's own device function. The sum
   has not left the chip yet, so this costs no pass over the device's memory.

A GPU's multiply-adds are as fast as little else is to be done between them. So the slice is written out, without a loop
over k, and addresses are added to, not worked out anew (``cuda_vectors``): five of six instructions are multiply-adds.

Two more things keep a wide GPU busy. Results of few tiles are cut into small ones. And a weight's gradient, a short and
narrow Aᵀ B summed over all tokens, is summed in parts, each by blocks of its own, which ``column_sums`` then adds. How
many parts depends on shapes alone and each sum is added in one order, so a run is the same as the run before. Sums over
channels are never cut, and both tiles add them in the same order: a token's result does not depend on how many tokens
there are.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from refvt.array import Array
from refvt.backends.cuda.intrinsics import ALIGNMENT, address, distance, load4, number_at, put, store4
from refvt.backends.cuda.kernel import (
    SIMULATED,
    Kernel,
    absent,
    as_many,
    column_sums,
    device_function,
    empty,
    kernel,
    rows_there,
    rows_told,
    there,
)

__all__ = ["Matmul", "plain", "products", "store"]

MULTIPROCESSORS = 1 if SIMULATED else 132  # of the GPU in mind, an H100 or H200
LEAST = 4 if SIMULATED else 256  # summands that are worth a part of their own
GAP = 4  # numbers between two rows of a slice in shared memory: the next row starts four memory banks further on


class Tile(NamedTuple):
    """How a block is laid out. All are powers of two, height and width multiples of 4."""

    down: int  # threads down a column of y
    across: int  # and along a row
    height: int  # results of a thread
    width: int
    depth: int  # of a slice of k

    @property
    def rows(self) -> int:
        return self.down * self.height

    @property
    def columns(self) -> int:
        return self.across * self.width

    @property
    def threads(self) -> int:
        return self.down * self.across

    def grid(self, M: int, N: int) -> tuple[int, int]:
        """Tiles of a result [M, N], down and across."""
        return -(-M // self.rows), -(-N // self.columns)


LARGE = Tile(2, 2, 8, 8, 4) if SIMULATED else Tile(16, 8, 8, 8, 8)  # 128×64 results
SMALL = Tile(2, 2, 4, 4, 4) if SIMULATED else Tile(16, 8, 4, 4, 16)  # 64×32 results


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
    """A matrix multiply with an epilogue. turned_a: A is given as its transpose [K, M]; turned_b: B as [N, K].

    Rows of A and B are contiguous, and may be those of a wider matrix.
    """

    def __init__(self, name: str, turned_a: bool, turned_b: bool, finish: Any = store) -> None:
        self.turned_a, self.turned_b = turned_a, turned_b
        self.in_parts = turned_a and finish is store  # a sum over tokens
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
        """A fresh y [M, N]. ``extra`` [M, N] is what the epilogue reads or writes beside y."""
        M, K = (a.shape[1], a.shape[0]) if self.turned_a else (a.shape[0], a.shape[1])
        N = b.shape[0] if self.turned_b else b.shape[1]
        cut = self.in_parts and bias is gain is residual is extra is None
        tile, part = plan(M, N, K, cut)
        parts = max(1, -(-K // part))
        y = empty((parts * M, N), a.dtype)  # the sums of the parts, one below the other
        none, nothing = absent(a.dtype, 1), absent(a.dtype, 2)
        optional = (
            none if bias is None else bias,
            none if gain is None else gain,
            nothing if residual is None else residual,
            nothing if extra is None else extra,
        )
        self.kernels[tile].blocks(
            (*tile.grid(M, N), parts),
            (tile.threads,),
            *(a, b, K, part, there(a), *optional, y),
            multiply_adds=lambda: (M if self.turned_a else rows_told(a)) * N * K,
        )
        if parts > 1:
            return column_sums(y.reshape(parts, M * N)).reshape(M, N)
        return y if self.turned_a else as_many(a, y)


@lru_cache(maxsize=1024)
def plan(M: int, N: int, K: int, cut: bool) -> tuple[Tile, int]:
    """The tile, and how many summands a part has: two blocks for each multiprocessor if sums may be cut.

    Small tiles where large ones would leave multiprocessors idle: fewer than three blocks for two of them.
    """
    for tile in (LARGE, SMALL):
        down, across = tile.grid(M, N)
        blocks, part = max(1, down * across), max(1, K)
        if cut:
            parts = max(1, min(-(-2 * MULTIPROCESSORS // blocks), K // LEAST))
            part = max(1, -(-K // (parts * tile.depth))) * tile.depth
            blocks *= parts
        if 2 * blocks >= 3 * MULTIPROCESSORS:
            break
    return tile, part


class _Mover(NamedTuple):
    """How a block brings slices of A, or of B, from the device's memory into shared memory: see ``_mover``."""

    each: int  # numbers of a thread in a slice
    locate: Any
    fetch: Any
    put: Any


def _mover(lines: int, tile: Tile, along_k: bool) -> _Mover:
    """For a matrix of which a tile needs so many lines: rows of A or columns of B.

    along_k: neighbours in memory are neighbours in k, as in A [M, K]. Either way neighbouring threads read neighbouring
    numbers, and in shared memory a row holds all lines of one k. No two threads of a warp write to one bank (but
    for pairs of them where a slice is 16 deep), for a row starts four banks after the one before.
    """
    threads, depth = tile.threads, tile.depth
    each = lines * depth // threads

    @device_function
    def place(n, thread):  # type: ignore[no-untyped-def]
        """Line and k, in the slice, of a thread's n-th number."""
        if along_k:
            return thread // depth + n * threads // depth, thread % depth + n * threads % depth
        return thread % lines + n * threads % lines, thread // lines + n * threads // lines

    @device_function
    def locate(x, last, thread, distances):  # type: ignore[no-untyped-def]
        """How far a thread's numbers lie from the first of the slice; a line beyond the last one is that one again."""
        for n in range(each):
            line, k = place(n, thread)
            line = min(np.int32(line), np.int32(last))
            distances[n] = distance(x, line, k) if along_k else distance(x, k, line)

    @device_function
    def fetch(x, start, there, thread, distances, numbers):  # type: ignore[no-untyped-def]
        """A thread's numbers of the slice from an address on; zeros for k that are not ``there``."""
        for n in range(each):
            numbers[n] = 0
            if place(n, thread)[1] < there:
                numbers[n] = number_at(x, start + distances[n])

    @device_function
    def put_all(numbers, thread, space, start):  # type: ignore[no-untyped-def]
        """The same numbers into shared memory."""
        for n in range(each):
            line, k = place(n, thread)
            put(space, start + k * (lines + GAP) + line, numbers[n])

    return _Mover(each, locate, fetch, put_all)


def _multiply(tile: Tile, k: int) -> Any:
    """The multiply-adds of a thread for k of a slice and all before it, one after another.

    Written out so that every place in shared memory is a constant away from one address, and that reads can be made
    ahead of their use; the compiler would make a loop of so many.
    """
    _, _, height, width, _ = tile
    a_row, b_row, down, across = tile.rows + GAP, tile.columns + GAP, tile.down, tile.across
    before: Any = _multiply(tile, k - 1) if k > 0 else None

    @device_function
    def multiply(space, of_a, of_b, column, row, sums):  # type: ignore[no-untyped-def]
        if k > 0:
            before(space, of_a, of_b, column, row, sums)
        for r in range(0, height, 4):
            column[r], column[r + 1], column[r + 2], column[r + 3] = load4(space, of_a + k * a_row + r * down)
        for c in range(0, width, 4):
            row[c], row[c + 1], row[c + 2], row[c + 3] = load4(space, of_b + k * b_row + c * across)
        for r in range(height):
            for c in range(width):
                sums[r, c] += column[r] * row[c]

    return multiply


def _matmul_kernel(name: str, tile: Tile, turned_a: bool, turned_b: bool, finish: Any) -> Kernel:
    down, across, height, width, depth = tile
    rows, columns, threads = tile.rows, tile.columns, tile.threads
    b_start = depth * (rows + GAP)  # where the slice of B begins, in the place of a slice of each
    size = b_start + depth * (columns + GAP)  # of such a place
    out_row = columns + GAP
    space_size = max(2 * size, 4 * down * out_row)
    cells = 4 * down * columns  # results that go through it at a time
    of_a, of_b = _mover(rows, tile, along_k=not turned_a), _mover(columns, tile, along_k=turned_b)
    a_each, locate_a, fetch_a, put_a = of_a
    b_each, locate_b, fetch_b, put_b = of_b
    multiply = _multiply(tile, depth - 1)

    @kernel("F F n n i f f F F F", name, threads)
    def matmul(a, b, K, part, there, bias, gain, residual, extra, y):  # type: ignore[no-untyped-def]
        M, N = a.shape[1] if turned_a else rows_there(there, a.shape[0]), y.shape[1]
        top, left = cuda.blockIdx.x * rows, cuda.blockIdx.y * columns
        if top >= M:
            return
        thread = cuda.threadIdx.x & (threads - 1)  # itself, but now the compiler knows that it is not negative
        # the 32 threads of a warp are a rectangle, 4 down and 8 across: they read 4 + 8 vectors for each 4 rows and
        # columns. Which thread sits where follows what shared memory can do at once: of lanes 0 to 3, pairs read alike
        x = (thread & 1) | (thread >> 1 & 6)
        z = (thread >> 1 & 1) | (thread >> 3 & 2) | (thread >> 5 << 2)
        space = cuda.shared.array(space_size, a.dtype, alignment=ALIGNMENT)  # two places; at the end the finished tile
        sums = cuda.local.array((height, width), a.dtype)
        column = cuda.local.array(height, a.dtype)
        row = cuda.local.array(width, a.dtype)
        a_next = cuda.local.array(a_each, a.dtype)
        b_next = cuda.local.array(b_each, a.dtype)
        a_apart = cuda.local.array(a_each, np.uint32)
        b_apart = cuda.local.array(b_each, np.uint32)
        locate_a(a, M - 1 - top, thread, a_apart)
        locate_b(b, N - 1 - left, thread, b_apart)
        for r in range(height):
            for c in range(width):
                sums[r, c] = 0

        # the first slice may be a short one, filled up with zeros; so all others are whole, and need not ask
        begin = cuda.blockIdx.z * part
        count = min(part, K - begin)
        slices = max(1, (count + depth - 1) // depth)
        short = count - (slices - 1) * depth
        a_at = address(a, begin, top) if turned_a else address(a, top, begin)
        b_at = address(b, left, begin) if turned_b else address(b, begin, left)
        fetch_a(a, a_at, short, thread, a_apart, a_next)
        fetch_b(b, b_at, short, thread, b_apart, b_next)
        put_a(a_next, thread, space, 0)
        put_b(b_next, thread, space, b_start)
        begin += short
        a_at = address(a, begin, top) if turned_a else address(a, top, begin)
        b_at = address(b, left, begin) if turned_b else address(b, begin, left)
        a_step = (address(a, depth, 0) if turned_a else address(a, 0, depth)) - address(a, 0, 0)
        b_step = (address(b, 0, depth) if turned_b else address(b, depth, 0)) - address(b, 0, 0)

        here = 0  # the place of the present slice
        for remaining in range(slices - 1, -1, -1):
            if remaining > 0:
                fetch_a(a, a_at, depth, thread, a_apart, a_next)
                fetch_b(b, b_at, depth, thread, b_apart, b_next)
                a_at += a_step
                b_at += b_step
            # the present slice is there, and nobody reads the one before any more. The barrier stands behind the reads
            # above, or the compiler would move them to where they are used, behind the multiply
            cuda.syncthreads()
            multiply(space, here + 4 * z, here + b_start + 4 * x, column, row, sums)
            here = size - here
            put_a(a_next, thread, space, here)
            put_b(b_next, thread, space, here + b_start)

        # the tile goes through shared memory, four rows of each thread at a time: registers cannot be indexed by a
        # number known only at run time, and the epilogue is too long to be written out for each of them
        for upper in range(0, height, 4):
            cuda.syncthreads()
            for r in range(4):
                for c in range(0, width, 4):
                    at = (4 * z + r) * out_row + c * across + 4 * x
                    store4(space, at, sums[r, c], sums[r, c + 1], sums[r, c + 2], sums[r, c + 3])
            cuda.syncthreads()
            for n in range(cells // threads):
                e = (thread + n * threads) & (cells - 1)  # itself
                e_row, e_column = e // columns, e % columns
                i, j = top + upper * down + e_row, left + e_column
                if i < M and j < N:
                    value = space[e_row * out_row + e_column]
                    i += cuda.blockIdx.z * M
                    finish(value, np.uint32(i), np.uint32(j), bias, gain, residual, extra, y)
            for r in range(height - 4):  # the next four move up
                for c in range(width):
                    sums[r, c] = sums[r + 4, c]

    return matmul


plain = Matmul("matmul", turned_a=False, turned_b=False)  # A B
products = Matmul("matmul.turned", turned_a=True, turned_b=False)  # Aᵀ B, the sum over rows of a weight's gradient
