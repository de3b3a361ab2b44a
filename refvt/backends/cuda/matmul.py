"""A tiled matrix multiply: shared memory, register blocking, and an epilogue.

y[i, j] = epilogue(Σ_k A[i, k] B[k, j]). A block of threads computes one tile of y, slice of k by slice of k:

1. fetch: its threads read the next slice of A and of B from device memory into registers, each number once
   (``linear_naive`` reads every number of x D times from there; here that is D / 64 times);
2. multiply: meanwhile they multiply the present slice, which lies in shared memory. Each thread keeps 8×8 results in
   registers: 8 + 8 numbers read from shared memory, by four instructions, feed 64 multiply-adds;
3. put: the fetched numbers go to the other of two buffers in shared memory, so that one barrier per slice is enough;
4. epilogue: what happens to a finished sum (bias, gain, skip connection, GELU) is a device function of the operation.
   The sum is still on the chip, so this costs no pass over device memory.

A GPU reaches its peak only if few other instructions come between the multiply-adds. So the slice is unrolled, without
a loop over k, and addresses are incremented, not recomputed (``intrinsics``): five of six instructions are
multiply-adds.

Two more things keep a wide GPU busy. Results of few tiles are split into small tiles. And a weight's gradient, a small
Aᵀ B summed over all tokens, is summed in parts, each by blocks of its own; ``column_sums`` then adds the parts. The
number of parts depends on shapes alone and each sum is added in one order, so results are the same in every run. Sums
over channels are never split, and both tile sizes add them in the same order: a token's result does not depend on the
number of tokens.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from refvt.array import Array
from refvt.backends.cuda.arguments import Indices, Int, Matrix, Real, Vector
from refvt.backends.cuda.device_array import absent, empty, num_valid_of, read_num_valid, with_rows_of
from refvt.backends.cuda.elementwise import column_sums
from refvt.backends.cuda.intrinsics import address, distance, load4, number_at, put, store4
from refvt.backends.cuda.kernel import Kernel, device_function, kernel
from refvt.backends.cuda.sizes import ALIGNMENT, LANES, SIZES
from refvt.backends.cuda.threads import valid_rows

__all__ = ["Matmul", "matmul_nn", "matmul_tn"]

MULTIPROCESSORS, LEAST = SIZES.multiprocessors, SIZES.least_part
MOST_COLUMNS = 65535 * LANES  # that ``column_sums`` can sum: a grid's second axis ends there
GAP = 4  # numbers between two rows of a slice in shared memory: the next row starts four memory banks further on


class Tile(NamedTuple):
    """The tile of y that a block computes. All are powers of two, height and width multiples of 4."""

    down: int  # threads down a column of y
    across: int  # threads along a row of y
    height: int  # rows of a thread's results
    width: int  # columns of a thread's results
    depth: int  # length of a slice of k

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
        """Number of tiles of a result [M, N], down and across."""
        return -(-M // self.rows), -(-N // self.columns)


LARGE, SMALL = Tile(*SIZES.large_tile), Tile(*SIZES.small_tile)  # 128×64 and 64×32 results on a GPU


@device_function
def linear_epilogue(
    value: Real, i: Int, j: Int, bias: Vector, gain: Vector, residual: Matrix, extra: Matrix, y: Matrix
) -> None:
    """y = residual + gain · (value + bias), each of the three optional. bias [N], gain [M], residual [M, N]."""
    if bias.shape[0] > 0:
        value += bias[j]
    if gain.shape[0] > 0:
        value *= gain[i]
    if residual.shape[0] > 0:
        value += residual[i, j]
    y[i, j] = value


class Matmul:
    """A matrix multiply with an epilogue.

    transpose_a: A is given as its transpose [K, M]; transpose_b: B is given as [N, K]. Rows of A and B are contiguous,
    and may be those of a wider matrix. The epilogue's seventh argument is ``extra_input`` or ``extra_output``.
    """

    def __init__(self, name: str, *, transpose_a: bool, transpose_b: bool, epilogue: Any = linear_epilogue) -> None:
        self.transpose_a, self.transpose_b = transpose_a, transpose_b
        self.splits_sums = transpose_a and epilogue is linear_epilogue  # a sum over tokens
        self.kernels = {
            LARGE: _matmul_kernel(name, LARGE, transpose_a, transpose_b, epilogue),
            SMALL: _matmul_kernel(f"{name}.small", SMALL, transpose_a, transpose_b, epilogue),
        }

    def __call__(
        self,
        a: Array,
        b: Array,
        bias: Array | None = None,
        gain: Array | None = None,
        residual: Array | None = None,
        *,
        extra_input: Array | None = None,
        extra_output: Array | None = None,
    ) -> Array:
        """A fresh y [M, N].

        ``extra_input`` or ``extra_output`` [M, N]: what the epilogue reads, or writes besides y.
        """
        M, K = (a.shape[1], a.shape[0]) if self.transpose_a else (a.shape[0], a.shape[1])
        N = b.shape[0] if self.transpose_b else b.shape[1]
        extra = extra_output if extra_input is None else extra_input
        split = self.splits_sums and bias is gain is residual is extra is None
        tile, part = plan(M, N, K, split)
        parts = max(1, -(-K // part))
        y = empty((parts * M, N), a.dtype)  # the sums of the parts, one below the other
        no_vector, no_matrix = absent(a.dtype, 1), absent(a.dtype, 2)
        optional = (
            no_vector if bias is None else bias,
            no_vector if gain is None else gain,
            no_matrix if residual is None else residual,
            no_matrix if extra is None else extra,
        )
        self.kernels[tile].blocks(
            (*tile.grid(M, N), parts),
            (tile.threads,),
            *(a, b, K, part, num_valid_of(a), *optional, y),
            multiply_adds=lambda: (M if self.transpose_a else read_num_valid(a)) * N * K,
        )
        if parts > 1:
            return column_sums(y.reshape(parts, M * N)).reshape(M, N)
        return y if self.transpose_a else with_rows_of(a, y)


@lru_cache(maxsize=1024)
def plan(M: int, N: int, K: int, split: bool) -> tuple[Tile, int]:
    """The tile, and the number of summands of a part: two blocks per multiprocessor if sums may be split.

    Small tiles where large ones would leave multiprocessors idle: fewer than three blocks per two of them. Sums are not
    split where the results of the parts would have more columns than a grid.
    """
    split = split and M * N <= MOST_COLUMNS
    for tile in (LARGE, SMALL):
        down, across = tile.grid(M, N)
        blocks, part = max(1, down * across), max(1, K)
        if split:
            parts = max(1, min(-(-2 * MULTIPROCESSORS // blocks), K // LEAST))
            part = max(1, -(-K // (parts * tile.depth))) * tile.depth
            blocks *= parts
        if 2 * blocks >= 3 * MULTIPROCESSORS:
            break
    return tile, part


class _SliceLoader(NamedTuple):
    """The device functions that load slices of A, or of B, into shared memory: see ``_slice_loader``."""

    per_thread: int  # numbers of a slice that each thread loads
    locate: Any
    fetch: Any
    put: Any


def _slice_loader(lines: int, tile: Tile, along_k: bool) -> _SliceLoader:
    """The loader of a matrix of which a tile needs ``lines`` rows (of A) or columns (of B).

    along_k: neighbours in memory are neighbours in k, as in A [M, K]. Either way neighbouring threads read neighbouring
    numbers, and in shared memory a row holds all lines of one k. No two threads of a warp write to one bank (except
    for pairs of threads where a slice is 16 deep), because a row starts four banks after the one before.
    """
    threads, depth = tile.threads, tile.depth
    count = lines * depth // threads

    @device_function
    def line_and_k(n: Int, thread: Int) -> Any:
        """Line and k, in the slice, of a thread's n-th number."""
        if along_k:
            return thread // depth + n * threads // depth, thread % depth + n * threads % depth
        return thread % lines + n * threads % lines, thread // lines + n * threads // lines

    @device_function
    def locate(x: Matrix, last: Int, thread: Int, distances: Any) -> None:
        """Distances of a thread's numbers from the first of the slice [count]; lines beyond the last one repeat it."""
        for n in range(count):
            line, k = line_and_k(n, thread)
            line = min(np.int32(line), np.int32(last))
            distances[n] = distance(x, line, k) if along_k else distance(x, k, line)

    @device_function
    def fetch(x: Matrix, start: Int, depth_left: Int, thread: Int, distances: Any, numbers: Any) -> None:
        """A thread's numbers of the slice at an address [count]; zeros for k ≥ depth_left."""
        for n in range(count):
            numbers[n] = 0
            if line_and_k(n, thread)[1] < depth_left:
                numbers[n] = number_at(x, start + distances[n])

    @device_function
    def put_all(numbers: Any, thread: Int, space: Any, start: Int) -> None:
        """Write a thread's numbers [count] into shared memory."""
        for n in range(count):
            line, k = line_and_k(n, thread)
            put(space, start + k * (lines + GAP) + line, numbers[n])

    return _SliceLoader(count, locate, fetch, put_all)


def _multiply(tile: Tile, k: int) -> Any:
    """A thread's multiply-adds for the first k + 1 steps of a slice, unrolled.

    Unrolled so that every read of shared memory is at a constant distance from one address, and can be made ahead of
    its use; the compiler itself would keep a loop of this length.
    """
    _, _, height, width, _ = tile
    a_row, b_row, down, across = tile.rows + GAP, tile.columns + GAP, tile.down, tile.across
    before: Any = _multiply(tile, k - 1) if k > 0 else None

    @device_function
    def multiply(space: Any, of_a: Int, of_b: Int, column: Any, row: Any, sums: Any) -> None:
        """sums [height, width] += column · row, of the slices that begin at of_a and of_b in shared memory."""
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


def _matmul_kernel(name: str, tile: Tile, transpose_a: bool, transpose_b: bool, epilogue: Any) -> Kernel:
    """The kernel for one tile: sizes are constants, so that loops are unrolled and results stay in registers."""
    down, across, height, width, depth = tile
    rows, columns, threads = tile.rows, tile.columns, tile.threads
    b_start = depth * (rows + GAP)  # where the slice of B begins in a buffer, behind that of A
    size = b_start + depth * (columns + GAP)  # of a buffer: one slice of each
    out_row = columns + GAP
    space_size = max(2 * size, 4 * down * out_row)
    cells = 4 * down * columns  # results that pass through shared memory at a time
    of_a, of_b = _slice_loader(rows, tile, along_k=not transpose_a), _slice_loader(columns, tile, along_k=transpose_b)
    a_count, locate_a, fetch_a, put_a = of_a
    b_count, locate_b, fetch_b, put_b = of_b
    multiply = _multiply(tile, depth - 1)

    @kernel(name=name, threads=threads)
    def matmul(
        a: Matrix,
        b: Matrix,
        K: Int,
        part: Int,
        num_valid: Indices,
        bias: Vector,
        gain: Vector,
        residual: Matrix,
        extra: Matrix,
        y: Matrix,
    ) -> None:
        """a [M, K] or [K, M], b [K, N] or [N, K], bias [N], gain [M], residual and extra [M, N] → y [parts·M, N].

        A block per tile of y and part of k; ``part`` summands in a part.
        """
        M, N = a.shape[1] if transpose_a else valid_rows(num_valid, a.shape[0]), y.shape[1]
        top, left = cuda.blockIdx.x * rows, cuda.blockIdx.y * columns
        if top >= M:
            return
        thread = cuda.threadIdx.x & (threads - 1)  # no-op; tells the compiler that the value is not negative
        # the 32 threads of a warp are a rectangle, 4 down and 8 across: they read 4 + 8 vectors for each 4 rows and
        # columns. The order of threads suits shared memory: of lanes 0 to 3, pairs read the same numbers
        x = (thread & 1) | (thread >> 1 & 6)
        z = (thread >> 1 & 1) | (thread >> 3 & 2) | (thread >> 5 << 2)
        space = cuda.shared.array(space_size, a.dtype, alignment=ALIGNMENT)  # two buffers; at the end the finished tile
        sums = cuda.local.array((height, width), a.dtype)
        column = cuda.local.array(height, a.dtype)
        row = cuda.local.array(width, a.dtype)
        a_next = cuda.local.array(a_count, a.dtype)
        b_next = cuda.local.array(b_count, a.dtype)
        a_distances = cuda.local.array(a_count, np.uint32)
        b_distances = cuda.local.array(b_count, np.uint32)
        locate_a(a, M - 1 - top, thread, a_distances)
        locate_b(b, N - 1 - left, thread, b_distances)
        for r in range(height):
            for c in range(width):
                sums[r, c] = 0

        # the first slice may be short, padded with zeros; all others are whole and need no check
        begin = cuda.blockIdx.z * part
        count = min(part, K - begin)
        slices = max(1, (count + depth - 1) // depth)
        short = count - (slices - 1) * depth
        a_at = address(a, begin, top) if transpose_a else address(a, top, begin)
        b_at = address(b, left, begin) if transpose_b else address(b, begin, left)
        fetch_a(a, a_at, short, thread, a_distances, a_next)
        fetch_b(b, b_at, short, thread, b_distances, b_next)
        put_a(a_next, thread, space, 0)
        put_b(b_next, thread, space, b_start)
        begin += short
        a_at = address(a, begin, top) if transpose_a else address(a, top, begin)
        b_at = address(b, left, begin) if transpose_b else address(b, begin, left)
        a_step = (address(a, depth, 0) if transpose_a else address(a, 0, depth)) - address(a, 0, 0)
        b_step = (address(b, 0, depth) if transpose_b else address(b, depth, 0)) - address(b, 0, 0)

        here = 0  # the buffer of the present slice
        for remaining in range(slices - 1, -1, -1):
            if remaining > 0:
                fetch_a(a, a_at, depth, thread, a_distances, a_next)
                fetch_b(b, b_at, depth, thread, b_distances, b_next)
                a_at += a_step
                b_at += b_step
            # the present slice is complete, and no thread reads the one before any more. The barrier comes after the
            # reads above; otherwise the compiler would move them to their use, behind the multiply
            cuda.syncthreads()
            multiply(space, here + 4 * z, here + b_start + 4 * x, column, row, sums)
            here = size - here
            put_a(a_next, thread, space, here)
            put_b(b_next, thread, space, here + b_start)

        # the tile passes through shared memory, four rows of each thread at a time: registers cannot be indexed at run
        # time, and the epilogue is too long to be unrolled
        for upper in range(0, height, 4):
            cuda.syncthreads()
            for r in range(4):
                for c in range(0, width, 4):
                    at = (4 * z + r) * out_row + c * across + 4 * x
                    store4(space, at, sums[r, c], sums[r, c + 1], sums[r, c + 2], sums[r, c + 3])
            cuda.syncthreads()
            for n in range(cells // threads):
                e = (thread + n * threads) & (cells - 1)  # no-op, as above
                e_row, e_column = e // columns, e % columns
                i, j = top + upper * down + e_row, left + e_column
                if i < M and j < N:
                    value = space[e_row * out_row + e_column]
                    i += cuda.blockIdx.z * M
                    epilogue(value, np.uint32(i), np.uint32(j), bias, gain, residual, extra, y)
            for r in range(height - 4):  # the next four move up
                for c in range(width):
                    sums[r, c] = sums[r + 4, c]

    return matmul


matmul_nn = Matmul("matmul.nn", transpose_a=False, transpose_b=False)  # A B
matmul_tn = Matmul("matmul.tn", transpose_a=True, transpose_b=False)  # Aᵀ B, the sum over rows of a weight's gradient
